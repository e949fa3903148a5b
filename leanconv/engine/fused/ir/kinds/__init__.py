"""The kinds of nodes, a class each, with its operands' dtypes, its work, its primitive and its function of PyTorch.

| kind | inputs | file |
|---|---|---|
| Input, Constant, Size, AverageOf | none; other sizes; a node with a second result | values.py |
| Block | maps of one concatenation, then residual and gate where it has them | block.py |
| GatedSum | a, average of a, maps of b's input, their averages | gated_sum.py |
| Upsample | a map | upsample.py |
| MaxPool | a map | max_pool.py |
| Affine, Activation, Scale, Add, Cast | a map; a gate `N C 1 1`; a second map | elementwise.py |
| Cat, Slice, Shuffle, Pad | maps | data_movement.py |
| Average, Sum | a map | reductions.py |
| Integer, Quantize, Dequantize | those of the float node; a map | integer.py |
| Linear | `N C` | linear.py |
| Call | any | call.py |

A new kind is one file here and one line in `lowering/implementations.py`.
"""
