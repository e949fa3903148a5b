"""Served: a model that starts in plain PyTorch and goes over to the fastest engine once that pays."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.runs.digest import of_model
from leanconv.serving.kept import Kept
from leanconv.serving.rule import EAGER, RACE_FROM_S, calls_left
from leanconv.serving.shape import AUTO, Shape

# Shapes that get a form of their own. Further shapes run in plain PyTorch.
MOST_FORMS = 16

# Seconds of plain PyTorch from which a line says that it ran.
SAY_FROM_S = 0.5


class Served(nn.Module):
    """A model of one tensor: same attributes, and the answers of the model or of a form that agrees with it.

    The first call of each shape runs the model itself, and so does every call before another engine pays. `close` keeps
    what was learnt.
    """

    def __init__(
        self,
        model: nn.Module,
        engine: str = AUTO,
        *,
        folder: Path | None = None,
        say: Callable[[str], object] = str,
        left: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Serve a model.

        Args:
            model: in eval mode, on its device. It takes one tensor and returns one.
            engine: "auto", or an engine of `optimize`. "eager" is the model alone. On a GPU, "auto" is "eager".
            folder: where choices are kept, or None.
            say: gets a line on which engine runs, and why.
            left: the number of pictures after the present one, or None if nobody knows.
        Raises: UnknownName for an unknown engine; BadInput for one that is not installed.
        """
        super().__init__()
        if engine != AUTO:
            from leanconv.serving.forms import check  # the engines, which `auto` may never need

            check(engine)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.model = model
        plain = engine == EAGER or (engine == AUTO and device.type != "cpu")
        held: dict[str, Any] = {
            "engine": EAGER if plain else engine, "folder": folder, "say": say, "_left": left, "_first": left(),
            "_shapes": {}, "_digest": "",
        }  # fmt: skip
        self.__dict__.update(held)

    def __getattr__(self, name: str) -> Any:
        """Attributes of the model, for example `size_multiple`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        if self.engine == EAGER:
            return self.model(x)  # type: ignore[no-any-return]
        shape = self._shapes.get(x.shape)
        if shape is None:
            shape = self._shapes[x.shape] = Shape(self, x)
        return shape.run(x)  # type: ignore[no-any-return]

    def kept(self, x: Tensor) -> Kept:
        """What the run folder keeps for inputs like `x`."""
        if not self._digest:
            self.__dict__["_digest"] = of_model(self.model)
        return Kept(self.folder, self._digest, x.shape, x.dtype, self.engine)

    def calls_left(self, calls: int) -> float:
        """Calls that are still expected at a shape that had `calls` so far."""
        left = self._left()
        done = 0 if left is None or self._first is None else self._first - left
        return calls_left(calls, left, done)

    @property
    def crowded(self) -> bool:
        """Whether no further shape gets a form of its own."""
        return sum(1 for each in self._shapes.values() if each.form) >= MOST_FORMS

    def lender(self, engine: str = "") -> Shape | None:
        """A shape whose form takes any shape, of that engine if one is named."""
        found = (each for each in self._shapes.values() if each.lends and engine in ("", each.engine))
        return next(found, None)

    def close(self, *, quiet: bool = False) -> None:
        """Keep the seconds that plain PyTorch took, and say so if no engine was found to be faster."""
        open_, seconds = [each for each in self._shapes.values() if not each.settled], 0.0
        for each in open_:
            seconds += each.close()
        if not quiet and seconds >= SAY_FROM_S and len(open_) == len(self._shapes):
            several = "" if len(open_) == 1 else f", in {len(open_)} sizes"
            self.say(
                f"engine eager: the network took {seconds:.2g} s{several}; a faster engine is looked for once a size "
                f"has taken {RACE_FROM_S:g} s in all, or name one with --engine"
            )
