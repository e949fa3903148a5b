"""Leaf functions of torch.fx: each is one node of a traced graph, called whole when the graph runs."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torch.fx import Proxy

P = ParamSpec("P")
R = TypeVar("R")


def leaf_function(function: Callable[P, R]) -> Callable[P, R]:
    """For a function that asks what a tensor alone can say: type, layout, size, whether autocast is on.

    `torch.fx.wrap` does the same for a name in one file's globals. Another file that imports the function under that
    name traces through it. This one is a leaf for every caller and every tracer.
    """

    @functools.wraps(function)
    def leaf(*args: P.args, **kwargs: P.kwargs) -> R:
        for each in args:
            if isinstance(each, Proxy):
                return each.tracer.create_proxy("call_function", leaf, args, kwargs)  # type: ignore[return-value]
        return function(*args, **kwargs)

    return leaf
