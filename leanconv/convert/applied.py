"""Applied: what `apply_` did, layer by layer, and the way back."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.convert.fit import Block, Result
from leanconv.convert.optimizer import Regrouped
from leanconv.convert.swap import Swap
from leanconv.convert.tree import Site
from leanconv.errors import BadInput
from leanconv.nn import Operator
from leanconv.table import number, table


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        how: the source of its weights, "projected", "fitted" or "fresh".
        error: ‖new - old‖ / ‖old‖ of its output on the given data. After a fit: at the inputs that the swapped network
            gives it, on images it was not fitted on, less each channel's mean where a BatchNorm takes that away.
        error_before: the same before the fit.
        seconds: what its fit took.
    """

    name: str
    to: str
    how: str
    error: float | None
    error_before: float | None = None
    seconds: float | None = None


@dataclass
class Pending:
    """One swap that is ready: the old module and where it stands, the new one, and the sums for its output error."""

    swap: Swap
    site: Site
    new: Operator
    how: str
    difference: float = 0.0
    scale: float = 0.0
    measured: bool = False
    fitted: Result | None = None

    def error(self) -> float | None:
        """‖new - old‖ / ‖old‖ over all outputs of all calls (the square sums are kept)."""
        if not self.measured:
            return None
        return (self.difference / self.scale) ** 0.5 if self.scale else (0.0 if not self.difference else float("inf"))

    def layer(self) -> Layer:
        """The line of the table."""
        name, to = self.swap.name, str(self.swap.to)
        if (r := self.fitted) is not None:
            return Layer(name, to, r.how, r.error, r.error_before, r.seconds)
        return Layer(name, to, self.how, self.error())


@dataclass(frozen=True)
class Changed:
    """One tensor of a BatchNorm that a fit replaced, and what it was."""

    norm: nn.Module
    name: str
    before: Tensor


class Applied:
    """What `apply_` did, layer by layer; `undo_` takes it back.

    Attributes:
        layers: one `Layer` each.
        blocks: after a fit, the blocks whose layers were refined together.
        norms: how many BatchNorms got other statistics.
        output_error: after a fit, ‖new - old‖ / ‖old‖ of the whole network's output on the images held out.
        output_error_before: the same before the fit, with the new layers as they came.
        notes: what the fit met, one line each.
    """

    def __init__(
        self,
        pending: list[Pending],
        regrouped: Regrouped | None,
        changed: Sequence[Changed] = (),
        blocks: Sequence[Block] = (),
        notes: Sequence[str] = (),
        output_errors: tuple[float, float] | None = None,
    ) -> None:
        self.layers = tuple(each.layer() for each in pending)
        self.blocks, self.notes = tuple(blocks), tuple(notes)
        before_and_after: tuple[float | None, float | None] = output_errors or (None, None)
        self.output_error_before, self.output_error = before_and_after
        self.norms = len({id(each.norm) for each in changed})
        self._pending: list[Pending] | None = pending
        self._regrouped, self._changed = regrouped, changed

    def undo_(self) -> None:
        """Put the old modules back, the very objects with the very weights, and the optimizer's groups and state.

        BatchNorm statistics that a fit replaced return, too. Training after the swap is lost with the new layers.
        Raises BadInput the second time, and where a new layer is no longer in its place (folded, or swapped again):
        undo what came later first, or keep a copy.
        """
        if self._pending is None:
            raise BadInput("this swap was already undone")
        for each in self._pending:
            if any(parent._modules.get(key) is not each.new for parent, key in each.site.holders):
                raise BadInput(f"{each.swap.name!r} was replaced or folded after this swap, which cannot be undone now")
        for each in self._pending:
            each.site.module.train(each.new.training)
            each.site.replace(each.site.module)
        if self._regrouped is not None:
            self._regrouped.undo_()
        put_(self._changed)
        self._pending = None

    def __len__(self) -> int:
        return len(self.layers)

    def __str__(self) -> str:
        fitted = any(layer.seconds is not None for layer in self.layers)
        columns = ["layer", "to", "weights", "output error"]
        rows = [[i.name, i.to, i.how, number(i.error, ".3g")] for i in self.layers]
        if fitted:
            columns = ["layer", "to", "weights", "error before", "error after", "seconds"]
            rows = [
                [i.name, i.to, i.how, number(i.error_before, ".3g"), number(i.error, ".3g"), number(i.seconds, ".1f")]
                for i in self.layers
            ]
        return table(columns, rows, note=self._note(fitted))

    def _note(self, fitted: bool) -> list[str]:
        count = {how: sum(i.how == how for i in self.layers) for how in ("fitted", "projected", "fresh")}
        words = f"{count['fitted']} fitted, " if fitted else ""
        note = f"{len(self)} layers swapped, {words}{count['projected']} projected from the old weights, "
        note += f"{count['fresh']} fresh"
        if not fitted:
            if self.layers and all(i.error is None for i in self.layers):
                note += "; pass data= to see each layer's relative output error"
            return [note]
        lines = [note]
        if self.blocks:
            before = sum(block.error_before for block in self.blocks) / len(self.blocks)
            after = sum(block.error for block in self.blocks) / len(self.blocks)
            lines.append(f"{len(self.blocks)} blocks refined: mean error at their outputs {before:.3g} -> {after:.3g}")
        if self.norms:
            lines.append(f"{self.norms} BatchNorms have new statistics")
        if self.output_error is not None:
            errors = f"{number(self.output_error_before, '.3g')} -> {self.output_error:.3g}"
            lines.append(f"the whole network's relative output error, on images held out: {errors}")
        return [*lines, *self.notes]

    def __repr__(self) -> str:
        return f"Applied({len(self)} layers)"

    def to_dict(self) -> dict[str, Any]:
        """The table's numbers; after a fit with those of the blocks and of the whole network."""
        found: dict[str, Any] = {"layers": [asdict(layer) for layer in self.layers]}
        if self.output_error is not None:
            found |= {"blocks": [asdict(block) for block in self.blocks], "norms": self.norms}
            found |= {"output_error_before": self.output_error_before, "output_error": self.output_error}
            found |= {"notes": list(self.notes)}
        return found


@torch.no_grad()
def put_(changed: Sequence[Changed]) -> None:
    """Give the tensors back what they were; under `.data`, so that autograd sees no write."""
    for each in changed:  # by name: a move to another type or device has made other tensors
        getattr(each.norm, each.name).data.copy_(each.before)


@torch.no_grad()
def changed_(found: dict[nn.Module, dict[str, Tensor]]) -> list[Changed]:
    """Put new statistics, weights and biases into BatchNorms; returns what they were."""
    done = []
    for norm, values in found.items():
        for name, value in values.items():
            tensor = getattr(norm, name)
            done.append(Changed(norm, name, tensor.detach().clone()))
            tensor.data.copy_(value)
    return done
