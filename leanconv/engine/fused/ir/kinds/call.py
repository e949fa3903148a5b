"""Any operator that has no kind of its own, called as the program calls it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from leanconv.engine.fused.ir.graph import Op


@dataclass(frozen=True)
class Ref:
    """The place of a node's input inside the arguments of a `Call`."""

    place: int


@dataclass(frozen=True, repr=False)
class Call(Op):
    """An aten operator and its arguments; `Ref` stands where an input goes."""

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    may_alias = any_operand_decides = True

    def __call__(self, *inputs: Any) -> Any:
        def fill(value: Any) -> Any:
            if isinstance(value, Ref):
                return inputs[value.place]
            return type(value)(map(fill, value)) if isinstance(value, list | tuple) else value

        return self.target(*fill(self.args), **{key: fill(value) for key, value in self.kwargs.items()})

    def __repr__(self) -> str:
        return str(self.target)
