"""Autocast's rule for operators of one map: the map is cast, weights stay. Kernels cast those that they multiply."""

from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("leanconv", "IMPL")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def casts_its_map(operator: Any) -> None:
    """Give a `torch.library.custom_op` of this project the rule, on a CPU. Its first argument is the map."""

    def cast(x: Tensor, *rest: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)):
            return operator(x.to(torch.get_autocast_dtype("cpu")) if x.dtype in _FLOATS else x, *rest)

    _LIBRARY.impl(operator._name, cast, "AutocastCPU")
