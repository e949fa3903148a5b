"""Calibration: the pictures from which int8 forms take their ranges, and the loss of a form on them.

Without a metric of the user, the loss is the relative squared error Σ(y' - y)² / Σ(y - mean y)². y: the float model's
answers, y': the form's. Of several outputs the worst counts. Of an output of integers (classes) it is the share that
differs. With a metric (higher is better), the loss is the float model's metric less the form's.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.convert.fit.batches import Batches
from leanconv.deploy.calls import Frame
from leanconv.deploy.program import Axes
from leanconv.errors import BadInput, LeanconvError, error_line
from leanconv.running import Call, Inputs, as_call, cloned, explained, shapes, untouched_random

MAX_LOSS = 0.005
# As many pictures are read as have so many numbers (32 of 256 x 256 pixels in colour), within these bounds.
NUMBERS, FEWEST, MOST = 6 << 20, 8, 128
# Data whose numbers span so many times more, or less, than the inputs' are probably on another scale.
OTHER_SCALE = 12.0
Metric = Callable[[nn.Module], float]
ERROR, CLASSES, METRIC = "relative squared error", "share of other classes", "loss of the metric"


def checked_limit(max_loss: float) -> float:
    """The limit as a float. Raises BadInput if it is no number above 0."""
    if isinstance(max_loss, bool) or not isinstance(max_loss, int | float) or not 0 < max_loss < math.inf:
        raise BadInput(f"max_loss={max_loss!r}: must be a number above 0, for example {MAX_LOSS}")
    return float(max_loss)


class Calibration:
    """A few of the user's batches in the shapes of the model's call, and the float model's answers to them.

    Attributes:
        calls: the batches as calls of the model. Every tensor has shape and dtype of the one in `inputs`.
        tensors: the tensors of each call in one flat list, as captured programs take them.
        limit: the largest loss that a form may have.
        pictures: how many rows were read.
        how: the loss in words.
        remark: that the data seems to be on another scale than the inputs, or "".
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        data: Any,
        *,
        metric: Metric | None = None,
        max_loss: float = MAX_LOSS,
        axes: Axes | None = None,
    ) -> None:
        """Read the data.

        Args:
            model: the float model, in eval mode. It is not changed.
            inputs: as of `optimize`; its shapes are those of all calls.
            data: a tensor of pictures, a list of batches or a DataLoader; labels behind the inputs are left out.
            metric: `metric(form) -> number`, higher is better. The form takes what the model takes.
            axes: dimensions that a form takes in any size. Then the calls have the sizes of the data.
        Raises: BadInput for no data, other shapes or dtypes, NaN, or a `max_loss` that is no number above 0.
        """
        if metric is not None and not callable(metric):
            raise BadInput(f"metric is a {type(metric).__name__}; give a function of the model that returns a number")
        self._model, self._metric, self.limit, self._axes = model, metric, checked_limit(max_loss), axes or {}
        self._like, self._frame = Frame.split(_named_in_order(as_call(inputs)))
        with untouched_random():
            self.tensors, self.pictures = self._read(data)
        self.remark = next(filter(None, map(_scales, zip(*self.tensors, strict=True), self._like)), "")
        with torch.no_grad(), explained("the calibration data"):
            self._answers = [Frame.split(self._run(model, each))[0] for each in self.tensors]
        for answer in self._answers:
            if any(not bool(t.isfinite().all()) for t in answer if t.is_floating_point()):
                raise BadInput("the model's answers to the calibration data have NaN or infinite numbers in them")
        self._own = None if metric is None else self._measured(model)
        self._last: tuple[Any, float] = (None, 0.0)  # an engine may ask for the loss of the form that it returns
        floating = all(t.is_floating_point() for t in self._answers[0])
        self.how = METRIC if metric is not None else ERROR if floating else CLASSES

    @property
    def calls(self) -> list[Call]:
        return [self._frame.join(each) for each in self.tensors]

    def loss(self, form: Callable[..., Any]) -> float:
        """The loss of a form with the model's call signature. Infinite for NaN or another structure of the answer."""
        if self._last[0] is not form:
            self._last = (form, self._error(form) if self._own is None else self._lost(form, self._own))
        return self._last[1]

    def _lost(self, form: Callable[..., Any], own: float) -> float:
        found = self._measured(form)
        return own - found if math.isfinite(found) else math.inf

    def _error(self, form: Callable[..., Any]) -> float:
        sums = Loss()
        with torch.no_grad():
            for tensors, answer in zip(self.tensors, self._answers, strict=True):
                sums.add(answer, Frame.split(self._run(form, tensors))[0])
        return sums.value

    def accepts(self, loss: float) -> bool:
        return loss <= self.limit

    def refusal(self, loss: float) -> str:
        """The words for a form whose loss is above the limit."""
        return f"refused: {self.how} {loss:.2g}, allowed {self.limit:g}"

    @property
    def judged(self) -> str:
        """What the loss is, in one line."""
        if self._own is not None:
            return f"int8: error is the loss of the metric, which is {self._own:.4g} in float{self.remark}"
        where = f"{self.pictures} picture{'s' * (self.pictures != 1)} of the data"
        return f"int8: error is the {self.how} on {where}{self.remark}"

    def agrees(self, form: Callable[..., Any], answer: Any, given: Any) -> bool:
        """Whether an int8 form's answer to another call is as near to the float model's as on the calibration data.

        Up to twice its error there, and always up to the limit where there is no metric.
        """
        error = relative_squared_error(*(Frame.split(each)[0] for each in (answer, given)))
        allowed = 0.0 if self._own is not None else self.limit
        return error <= allowed or error <= 2 * self._error(form)

    def _run(self, form: Callable[..., Any], tensors: Sequence[Tensor]) -> Any:
        args, kwargs = cloned(self._frame.join(tensors))  # a model may write into its inputs
        return form(*args, **kwargs)

    def _measured(self, form: Callable[..., Any]) -> float:
        assert self._metric is not None
        rows = len(self._like[0]) if self._like and self._like[0].dim() else 0
        own = form is self._model
        try:
            with torch.no_grad():
                found = self._metric(self._model if own else ByRows(form, rows, self._model))
        except LeanconvError:
            raise
        except Exception as error:  # the user's code
            raise BadInput(f"metric failed: {error_line(error, of_function=True)}") from error
        try:
            value = float(found)
        except (TypeError, ValueError) as error:
            raise BadInput(f"metric gave {found!r:.80}; return a number, higher for better") from error
        if own and not math.isfinite(value):
            raise BadInput(f"metric gave {value} for the float model; return a finite number, higher for better")
        return value

    def _read(self, data: Any) -> tuple[list[list[Tensor]], int]:
        """Return the calls' tensors and the number of pictures in them."""
        if data is None:
            raise BadInput(
                "int8 takes its ranges from calibration data, and there is none: pass data=, a few dozen inputs as the "
                "model takes them (a tensor, a list of batches or a DataLoader); labels are not needed"
            )
        found: list[list[Tensor]] = []
        pictures, left = 0, NUMBERS
        for number, batch in enumerate(Batches(data, self._model), 1):
            tensors, frame = Frame.split(_named_in_order(as_call(batch), self._frame_names()))
            self._check(tensors, frame, number)
            size = max(1, sum(t.numel() for t in tensors) // max(1, len(tensors[0]) if tensors[0].dim() else 1))
            most = min(MOST - pictures, max(FEWEST - pictures, left // size))
            for piece, count in self._pieces(tensors, max(1, most)):
                found.append(piece)
                pictures, left = pictures + count, left - count * size
            if pictures >= MOST or (pictures >= FEWEST and left < size):
                break
        return found, pictures

    def _frame_names(self) -> list[str]:
        return list(self._frame.join(self._like)[1])

    def _check(self, tensors: Sequence[Tensor], frame: Frame, number: int) -> None:
        """Raises BadInput for a batch that is not like the inputs in all but its number of rows."""
        if frame.spec != self._frame.spec or len(tensors) != len(self._like):
            raise BadInput(
                f"batch {number} of data has the tensors {shapes(list(tensors))}, the inputs {shapes(self._like)}: "
                "give batches as the model takes them"
            )
        for index, (have, like) in enumerate(zip(tensors, self._like, strict=True)):
            free = {0, *self._axes.get(index, ())}
            if have.dtype != like.dtype:
                wanted = str(like.dtype).removeprefix("torch.")
                raise BadInput(
                    f"batch {number} of data is {str(have.dtype).removeprefix('torch.')}, the inputs are {wanted}: "
                    "give data as the model takes it"
                )
            if have.dim() != like.dim() or any(
                have.shape[dim] != like.shape[dim] for dim in range(like.dim()) if dim not in free
            ):
                what = "height, width and rows" if len(free) > 1 else "the number of rows"
                raise BadInput(
                    f"batch {number} of data has the shape {tuple(have.shape)}, the inputs {tuple(like.shape)}: only "
                    f"{what} may differ; crop or resize the data, or give inputs of its size"
                )

    def _pieces(self, tensors: Sequence[Tensor], left: int) -> Iterator[tuple[list[Tensor], int]]:
        """Cut a batch into calls of the inputs' number of rows. Rows from the start fill the last one."""
        rows, wanted = ({t.shape[0] for t in each if t.dim()} for each in (tensors, self._like))
        if len(rows) != 1 or len(wanted) != 1:
            if [t.shape for t in tensors] != [t.shape for t in self._like]:
                raise BadInput(
                    f"data has batches of {shapes(list(tensors))}, the inputs are {shapes(self._like)}: the number of "
                    "rows is not one, so it cannot be cut; give batches of the inputs' shapes"
                )
            yield list(tensors), 1
            return
        count, size = min(rows.pop(), left), wanted.pop()
        if 0 in self._axes.get(0, ()):
            size = count
        for start in range(0, count, size):
            index = torch.arange(start, start + size) % count
            yield [t[index.to(t.device)] if t.dim() else t for t in tensors], min(size, count - start)


class Loss:
    """The sums of a loss without a metric, over calls. `value`: of the worst output."""

    def __init__(self) -> None:
        # Output -> [error, Σ y, Σ y², count]; of integers [how many differ, 0, NaN, count].
        self._outputs: dict[int, list[float]] = {}
        self._unlike = False

    def add(self, answer: Sequence[Tensor], given: Sequence[Tensor]) -> None:
        """One call: the tensors of the float model's answer and of the form's."""
        if [(t.shape, t.dtype) for t in answer] != [(t.shape, t.dtype) for t in given]:
            self._unlike = True
            return
        for index, (want, have) in enumerate(zip(answer, given, strict=True)):
            sums = self._outputs.setdefault(index, [0.0, 0.0, 0.0, 0.0])
            sums[3] += want.numel()
            if not want.is_floating_point():
                sums[0] += float((want != have).sum())
                sums[2] = math.nan
                continue
            want, have = want.double(), have.double()
            sums[0] += float((have - want).square().sum())
            sums[1] += float(want.sum())
            sums[2] += float(want.square().sum())

    @property
    def value(self) -> float:
        if self._unlike:
            return math.inf
        return max((_share(*sums) for sums in self._outputs.values() if sums[3]), default=0.0)


def relative_squared_error(answer: Sequence[Tensor], given: Sequence[Tensor]) -> float:
    """The loss of one call's answer."""
    sums = Loss()
    sums.add(answer, given)
    return sums.value


def _share(error: float, total: float, squares: float, count: float) -> float:
    if math.isnan(squares):
        return error / count
    # A constant output has no spread: its error is relative to its size.
    spread = squares - total * total / count
    scale = spread if spread > 1e-12 * squares else squares
    if math.isnan(error):
        return math.inf
    return error / scale if scale else math.inf if error else 0.0


class ByRows(nn.Module):
    """A form that takes `rows` rows, as a module that takes any number. Other attributes are the model's."""

    def __init__(self, form: Callable[..., Any], rows: int, like: nn.Module) -> None:
        super().__init__()
        self.__dict__.update(form=form, rows=rows, like=like)
        self.eval()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["like"], name)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        return self.like.named_parameters(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        tensors, frame = Frame.split((args, kwargs))
        counts = {t.shape[0] for t in tensors if t.dim()}
        if len(counts) != 1 or counts == {self.rows} or not self.rows:
            return self.form(*args, **kwargs)
        count = counts.pop()
        answers = []
        for start in range(0, count, self.rows):
            index = torch.arange(start, start + self.rows) % count
            one, named = frame.join([t[index] if t.dim() else t for t in tensors])
            answers.append(Frame.split(self.form(*one, **named)))
        joined = [torch.cat(parts)[:count] for parts in zip(*(found for found, _ in answers), strict=True)]
        return answers[0][1].join(joined)


def _scales(data: Sequence[Tensor], like: Tensor) -> str:
    """The remark where one input's numbers span another range in the data than in the inputs of the call."""
    if not like.is_floating_point() or like.numel() < 2:
        return ""
    low, high = min(float(t.min()) for t in data), max(float(t.max()) for t in data)
    least, most = float(like.min()), float(like.max())
    known = high > low and most > least  # zeros are common as inputs, and have no scale
    if not known or 1 / OTHER_SCALE <= (high - low) / (most - least) <= OTHER_SCALE:
        return ""
    return (
        f"; the data is {low:.3g} to {high:.3g}, the inputs are {least:.3g} to {most:.3g}: int8 is right for the scale "
        "of the data alone, so give it as the model takes it"
    )


def _named_in_order(call: Call, names: Sequence[str] = ()) -> Call:
    """The same call with its named arguments in the order of `names`."""
    args, kwargs = call
    return args, {name: kwargs[name] for name in sorted(kwargs, key=lambda n: (n not in names, [*names, n].index(n)))}
