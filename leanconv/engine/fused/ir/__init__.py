"""The intermediate representation: the graph (graph.py) and the kinds of its nodes (kinds/)."""
