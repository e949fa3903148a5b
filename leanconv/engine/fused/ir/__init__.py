"""The intermediate representation: graphs, and the blocks that their nodes hold."""
