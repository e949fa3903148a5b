"""Static quantization: which values of a graph are 8 bits wide, and with which scales.

| file | what it does |
|---|---|
| ranges.py | the interval that 256 levels cover, from histograms of the calibration images |
| observe.py | those histograms, for every map of a graph and every map inside a block |
| harm.py | what the network's answer loses by each block alone |
| speed.py | which blocks are faster in integers, with the conversions around them |
| search.py | the blocks that stay float32, so that the loss keeps its limit |

`passes/quantization.py` rewrites the graph by these decisions.
"""
