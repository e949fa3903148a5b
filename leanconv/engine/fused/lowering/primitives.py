"""The primitive of `leanconv.ops` that computes a node, with weights of the precision that kernels take."""

import torch

from leanconv.engine.fused.ir.graph import Node, Primitive
from leanconv.ops.quantized import Quantized


def primitive(node: Node) -> Primitive | None:
    """Form and weights, in float32 where the node is bfloat16; None where no primitive computes the node.

    Those of an integer primitive have types of their own.
    """
    found = node.op.primitive(node)
    if found is None:
        return None
    form, weights = found
    if isinstance(form, Quantized):
        return form, weights
    dtype = torch.float32 if node.dtype.itemsize == 2 else node.dtype
    return form, [w.to(dtype).contiguous() for w in weights]
