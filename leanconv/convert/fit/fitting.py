"""fit: every new layer from least squares at its own inputs, in the order in which the network runs.

For each layer the calibration batches run through the original (target: the old layer's output) and through the partly
swapped copy (input: what the new layer will really get), both only as far as that layer. The best dense layer for these
inputs is solved for, and the operator takes the member of its family that is nearest to it in the inputs' covariance.
BatchNorms after it get the statistics of its outputs. A block is refined by Muon once all its layers are there, and in
the end the network as a whole.
Sources: least squares at the inputs of the changed part, He et al. 2017, arXiv:1707.06168; blocks as the unit of
reconstruction, Li et al. 2021 (BRECQ), arXiv:2102.05426.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from leanconv.convert.absorb import is_norm
from leanconv.convert.fit.batches import Batches
from leanconv.convert.fit.closed_form import become_nearest_
from leanconv.convert.fit.moments import Sums, patches, sampled
from leanconv.convert.fit.norms import NUMBERS, affine, difference, output_error, set_statistics_, statistics
from leanconv.convert.fit.observed import Seen, observed
from leanconv.convert.fit.refine import EXACT, MEMORY, Example, as_type, divided, error, refine_, settle_norms_
from leanconv.convert.fit.twin import Twin, input_of
from leanconv.convert.fit.whole import finish_
from leanconv.convert.tree import Site, move_hooks
from leanconv.copies import copied
from leanconv.errors import BadInput
from leanconv.nn import Operator
from leanconv.ops.fold import bn_scale_shift
from leanconv.progress import Progress
from leanconv.running import Inputs, to_eval_, untouched_random, watched

MOST_D = 6000  # numbers of a patch: the gram of more takes over 8 · 6000² bytes = 288 MB
PIXELS, IMAGES = 30, 256  # a layer is decided by so many output pixels a number of its patch, of so many images
DENSE = 100 / IMAGES  # pixels of one image, a number of the patch: a larger map is sampled
# Steps: from a closed form, and where there is none, or it is that of a linear layer and the operator is not linear.
STEPS, FRESH_STEPS = 60, 200


@dataclass(frozen=True)
class Result:
    """One layer: its relative output error as projected and as fitted, on images it was not fitted on."""

    how: str
    error_before: float | None
    error: float | None
    seconds: float


@dataclass(frozen=True)
class Block:
    """One block: the relative error at its output before and after its layers were refined together."""

    name: str
    error_before: float
    error: float
    seconds: float


@dataclass
class Fitting:
    """What a fit found. The model is unchanged yet: `statistics` are its BatchNorms' numbers to be, by name.

    `output_errors`: of the network's output on images held out, before the fit and after it.
    """

    results: dict[str, Result] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    statistics: dict[nn.Module, dict[str, Tensor]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    output_errors: tuple[float, float] | None = None


@dataclass(frozen=True)
class Job:
    """One layer to fit: where the old one stands, and the new one with its projected weights (`projected`) or fresh."""

    site: Site
    new: Operator
    projected: bool


def fit(
    model: nn.Module, jobs: Sequence[Job], data: Any, *, progress: bool = True, whole_steps: int | None = None
) -> Fitting:
    """Fit the new layers of `jobs`; the model itself stays as it is.

    Args:
        whole_steps: the most steps for the network as a whole; default: by its size (`whole.py`).
    Raises: BadInput for data that cannot be read twice, is empty, holds NaN, or that the model does not take; for
        weights with NaN.
    """
    if any(t.is_meta for t in model.parameters()):
        raise BadInput("the model lies on the meta device and has no weights to fit to; load them first")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_inference():
            raise BadInput(
                f"{name} was made under torch.inference_mode(), and nothing can be fitted to it; make or load the "
                "model outside, or fit copy.deepcopy(model), made outside"
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise BadInput(f"{name} holds NaN or infinite numbers; nothing can be fitted to such a network")
    with torch.inference_mode(False), untouched_random(), watched(model):
        torch.manual_seed(0)  # the same result each time
        return _Fit(model, jobs, Batches(data, model), progress, whole_steps).run()


class _Fit:
    """One run of `fit`."""

    def __init__(
        self, model: nn.Module, jobs: Sequence[Job], batches: Batches, progress: bool, whole_steps: int | None
    ) -> None:
        self.whole_steps = whole_steps
        self.batches, self.found, self.progress = batches, Fitting(notes=batches.notes), progress
        self.held, _, self.same = batches.divided()
        self.jobs = {id(job.site.module): job for job in jobs}
        self.model, self.changed = model, False
        self.seen = observed(model, self.held, [job.site for job in jobs])
        self.twin = Twin(model)
        self.dice = torch.Generator().manual_seed(0)

    def run(self) -> Fitting:
        total = 1 + len(self.seen) + len({id(s.block) for s in self.seen if s.block is not None})
        types = [(job.new, next(job.new.parameters()).dtype, job.new.training) for job in self.jobs.values()]
        if self.same:
            self.found.notes.append("data holds one image: the errors are of the image that was fitted on")
        with Progress("fit", total, visible=self.progress, counted=True) as bar:
            before, starts = self._started()
            for place, seen in enumerate(self.seen):
                bar.show(seen.site.name)
                self._layer(seen)
                bar.advance()
                block = seen.block
                if block is not None and all(s.block is not block for s in self.seen[place + 1 :]):
                    self._block(block)
                    bar.advance()
            bar.show("the whole network")
            self.found.output_errors = before, self._finished(before, starts)
            bar.advance()
        self._statistics()
        for new, dtype, training in types:
            new.to(dtype).train(training)
        return self.found

    def _started(self) -> tuple[float, dict[Operator, Operator]]:
        """The output error with the new layers as they come, and copies of them; the twin is as before."""
        kept = {}
        for job in self.jobs.values():
            job.new.to(self.twin.dtype(cast(nn.Conv2d, job.site.module)))
            to_eval_(job.new)
            kept[job.new], place = copied(job.new), self.twin.places[job.site.module]
            move_hooks(place.module, kept[job.new])
            place.replace(kept[job.new])
        try:
            return output_error(self.twin, [self.held]), kept
        finally:
            for job in self.jobs.values():
                place = self.twin.places[job.site.module]
                place.replace(place.module)

    def _finished(self, before: float, starts: Mapping[Operator, Operator]) -> float:
        """The output error in the end. A fit that raised it is taken back: layers are as in `starts`."""
        if not self.changed:  # every new layer gives what the old one gave: norms keep their statistics, too
            return before
        after = finish_(self.twin, list(starts), self.batches, IMAGES, self.whole_steps)
        if after <= before or math.isnan(before):
            return after
        for new, start in starts.items():
            new.load_state_dict(start.state_dict())
        for old, site in self.twin.places.items():
            if is_norm(old):
                site.module.load_state_dict(old.state_dict())
        how = {job.site.name: "projected" if job.projected else "fresh" for job in self.jobs.values()}
        self.found.results = {
            name: Result(how[name], each.error_before, each.error_before, each.seconds)
            for name, each in self.found.results.items()
        }
        self.found.blocks = []
        self.found.notes.append(
            f"the fit raised the network's output error from {before:.3g} to {after:.3g} and was taken back: give it "
            "more images"
        )
        return before

    def _layer(self, seen: Seen) -> None:
        start, job = time.perf_counter(), self.jobs[id(seen.site.module)]
        name, new, conv = seen.site.name, job.new, cast(nn.Conv2d, seen.site.module)
        how, before, after = "projected" if job.projected else "fresh", None, None
        if seen.calls:
            held, rest, _ = self.batches.divided()
            judged = self._examples(seen, [held])
            if not job.projected:  # a projection sets the norms inside by itself
                settle_norms_(new, judged)
            before = after = error(new, judged, scales=scales_of(seen))
            if not max(before, error(new, judged)) <= EXACT:  # a shift counts here: norms would have to follow
                fitted = self._fitted(seen, rest, judged, before)
                how, after = (how, before) if fitted is None else ("fitted", fitted)
        else:
            self.found.notes.append(f"{name}: the data does not reach it; it is {how}")
        move_hooks(self.twin.places[conv].module, new)
        self.twin.places[conv].replace(new)
        self.found.results[name] = Result(how, before, after, time.perf_counter() - start)

    def _fitted(self, seen: Seen, batches: Iterator[Inputs], judged: Sequence[Example], before: float) -> float | None:
        """Fit one layer: its error then; None where that is above `before`, and the layer is as it was."""
        job, self.changed = self.jobs[id(seen.site.module)], True
        new, kept = job.new, copied(job.new)
        sums, examples = self._sums(seen, batches)
        factor = self._solve(seen, sums, new, judged)
        solved, factor = factor is not None, torch.ones_like(sums.y) if factor is None else factor
        if not (solved or job.projected):
            settle_norms_(new, examples)
        if not solved or (seen.block is None and not _is_linear(new)):
            steps = STEPS if solved or job.projected else FRESH_STEPS
            near, near_judged = examples, judged
            if bool((factor != 1).any()):
                shift = difference(new, examples, factor)
                near, near_judged = ([each.moved(factor, shift) for each in part] for part in (examples, judged))
            refine_(new, list(new.parameters()), near, near_judged, steps)
        after = error(divided(new, factor), judged, scales=scales_of(seen))
        if not after <= before:
            new.load_state_dict(kept.state_dict())
            factor = torch.ones_like(factor)
        self._follow(seen, new, examples, factor)
        return after if after <= before else None

    def _examples(self, seen: Seen, batches: Sequence[Inputs]) -> list[Example]:
        """Whole maps of the layer, for each of its calls."""
        found = []
        for batch in batches:
            targets = self.twin.outputs(seen.site.module, batch, seen.calls)
            given = self.twin.arguments(seen.site.module, batch, seen.calls)
            found += [Example(((input_of(a, seen.site.name),), {}), as_type(t, a)) for a, t in zip(given, targets)]
        return found

    def _sums(self, seen: Seen, batches: Iterator[Inputs]) -> tuple[Sums, list[Example]]:
        """The layer's sums over sampled pixels, and as many whole maps as the memory limit holds."""
        conv, kept, room = cast(nn.Conv2d, seen.site.module), list[Example](), float(MEMORY)
        d, images, sums = conv.weight[0].numel(), 0, None
        for batch in batches:
            found = self._examples(seen, [batch])
            for each in found:
                x, y = each.arguments[0][0], each.target
                pixels = sampled(y, math.ceil(DENSE * d), self.dice)
                rows, targets = patches(conv, x, pixels), y[pixels[0], :, pixels[1], pixels[2]]
                if not (bool(rows.isfinite().all()) and bool(targets.isfinite().all())):
                    raise BadInput(f"{seen.site.name}: its input or output holds NaN or infinite numbers on this data")
                sums = sums or Sums.like(rows, targets, gram=d <= MOST_D)
                sums.add_(rows, targets)
                if room > 0:
                    kept.append(each)
                    room -= each.bytes
            images += len(found[0].target) if found else 0
            if sums is not None and sums.count >= PIXELS * d and images >= IMAGES:
                break
        if sums is None:
            raise BadInput(f"{seen.site.name}: the data reaches it in its first batch alone; give more of it")
        if not sums.is_finite():
            raise BadInput(
                f"{seen.site.name}: squares of its inputs are beyond float32 on this data; scale the images as the "
                "model was trained on them"
            )
        return sums, kept

    def _solve(self, seen: Seen, sums: Sums, new: Operator, judged: Sequence[Example]) -> Tensor | None:
        """Least squares, then the nearest member of the operator's family; None where it has no closed form.

        Returns: the factor of each output that the norms take away, `O`.
        """
        if sums.gram is None:
            what = f"a patch has {sums.x.shape[1]} numbers, over {MOST_D}; projected and refined"
            self.found.notes.append(f"{seen.site.name}: {what}")
            return None
        old, centred = cast(nn.Conv2d, seen.site.module), seen.only_norm or seen.site.module.bias is not None
        return become_nearest_(new, old, sums, judged, centred=centred, scales=scales_of(seen))

    def _follow(self, seen: Seen, new: Operator, examples: Sequence[Example], factor: Tensor) -> None:
        """The BatchNorms that read the layer get the statistics of its new outputs."""
        for norm in seen.norms:
            inner = self.twin.places[norm].module
            set_statistics_(inner, norm, new, examples, factor)

    def _block(self, block: nn.Module) -> None:
        start = time.perf_counter()
        inner = self.twin.places[block].module
        news = [job.new for job in self.jobs.values() if any(m is job.new for m in inner.modules())]
        held, rest, _ = self.batches.divided()

        def example(batch: Inputs) -> Example:
            target = self.twin.outputs(block, batch, 1)[0]
            arguments = self.twin.arguments(block, batch, 1)[0]
            return Example(arguments, as_type(target, arguments))

        judged, examples, room = [example(held)], list[Example](), float(MEMORY)
        for batch in rest:
            examples.append(example(batch))
            room -= examples[-1].bytes
            if room <= 0:
                break
        before = error(inner, judged)
        norms = [self.twin.places[n].module for s in self.seen if s.block is block for n in s.norms]
        moved = [p for new in news for p in new.parameters()] + affine(norms, within=inner)
        refine_(inner, moved, examples, judged, STEPS if all(map(_is_linear, news)) else FRESH_STEPS)
        name = self.twin.places[block].name
        self.found.blocks.append(Block(name, before, error(inner, judged), time.perf_counter() - start))

    def _statistics(self) -> None:
        """The norms in which the copy differs now, with their numbers."""
        for old, site in self.twin.places.items():
            if not (statistics(old) and statistics(site.module)):
                continue
            now = {name: getattr(site.module, name) for name in NUMBERS}
            fresh = {
                name: value.detach().to(getattr(old, name).dtype) for name, value in now.items() if value is not None
            }
            if not all(torch.equal(getattr(old, name), value) for name, value in fresh.items()):
                self.found.statistics[old] = fresh


def scales_of(seen: Seen) -> Tensor | None:
    """What the norms multiply the layer's outputs by, `O`; None where something else reads them."""
    if not seen.only_norm:
        return None
    found = [bn_scale_shift(cast(nn.BatchNorm2d, norm))[0].double().square() for norm in seen.norms]
    scales = torch.stack(found).sum(0).sqrt()
    return scales if bool(scales.any()) else torch.ones_like(scales)


def _is_linear(new: Operator) -> bool:
    return new.dense_weight() is not None
