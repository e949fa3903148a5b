"""The end of a fit: all new layers at once, for the output of the network, and norms that suit training."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.convert.absorb import is_norm
from leanconv.convert.fit.batches import Batches
from leanconv.convert.fit.norms import affine, behind, output_error, recalibrate_, spreads_of, statistics
from leanconv.convert.fit.observed import macs
from leanconv.convert.fit.refine import MEMORY, Example, as_type, error, refine_
from leanconv.convert.fit.twin import Twin
from leanconv.copies import copied
from leanconv.kernels.training import use_training_kernels_
from leanconv.nn import Operator
from leanconv.nn.starts import restate_norm_
from leanconv.running import Inputs, as_call, call

# Steps, between these: as many as so many MACs of forward passes allow, some minutes of a core.
STEPS, MACS = (20, 600), 2e12
# As `refine.RATES`, for all layers at once. A ResNet-20 of 91.2 % top-1, hetconv(part=4) in place of 18 layers, 436
# images to refine on, 300 steps: 77.6 % before; with `refine.RATES` the error grows; with these 79.6 %, 80.2 if images
# are flipped at random, 80.7 if they are shifted too, 80.6 with sums of two images. With 600 steps 81.6 %.
RATES = 0.003, 0.003
REACH = 8  # images are shifted by up to their side over this
_LEAST = 8  # images of a step


def finish_(twin: Twin, news: Sequence[Operator], batches: Batches, images: int, most: int | None) -> float:
    """Recalibrate norms, refine the network as a whole, and restate norms; the copy's output error on held-out images.

    Args:
        news: the new layers, all in the copy.
        images: that the last statistics are of.
        most: the most steps; None: by the network's size.
    """
    found = _recalibrated(twin, news, batches)
    if most != 0:
        found = _refined(twin, news, batches, most, found)
    _restate(twin, news, batches, images)
    return found


def _recalibrated(twin: Twin, news: Sequence[Operator], batches: Batches) -> float:
    """All BatchNorms behind the first new layer once more, if the network's output gains from it."""
    held, rest, _ = batches.divided()
    before = output_error(twin, [held])
    norms = behind(twin, set(map(id, news)), held)
    kept = [(norm, copied(norm).state_dict()) for _, norm in norms]
    recalibrate_(twin, norms, rest)
    after = output_error(twin, [held])
    if not after < before:
        for norm, state in kept:
            norm.load_state_dict(state)
    return min(before, after)


def _refined(twin: Twin, news: Sequence[Operator], batches: Batches, most: int | None, found: float) -> float:
    """All new layers once more, for the output of the network, where that is one tensor; else `found`."""
    held, rest, _ = batches.divided()
    judged = _example(twin, held)
    if judged is None:
        return found
    examples, room = list[Example](), float(MEMORY)
    for batch in rest:
        example = _example(twin, batch)
        if example is None:  # another kind of answer, by what the images hold
            return found
        examples.append(example)
        room -= example.bytes
        if room <= 0:
            break
    a_step = macs(twin.original, held) / _rows([judged]) * _rows([p for each in examples for p in each.parts(_LEAST)])
    steps = min(max(round(MACS / max(a_step, 1)), STEPS[0]), STEPS[1])
    steps = steps if most is None else min(steps, most)
    norms = [norm for _, norm in behind(twin, set(map(id, news)), held)]
    moved = [p for new in news for p in new.parameters()] + affine(norms, within=twin.copy)
    with use_training_kernels_(twin.copy):
        refine_(twin.copy, moved, examples, [judged], steps, least=_LEAST, rates=RATES, varied=_variation(twin, held))
    return error(twin.copy, [judged])


def _variation(twin: Twin, batch: Inputs) -> Callable[[Example], Example] | None:
    """Examples of the same images, flipped and shifted at random, and what the original gives for them.

    None where the network takes other things than one map `N C H W`.
    """
    positional, named = as_call(batch)
    first = positional[0] if len(positional) == 1 and not named else None
    if not (isinstance(first, Tensor) and first.is_floating_point() and first.ndim == 4):
        return None
    dtype, dice = first.dtype, torch.Generator().manual_seed(0)

    def varied(example: Example) -> Example:
        images: Tensor = example.arguments[0][0].to(dtype)
        flip, *where = torch.rand(3, generator=dice).tolist()
        reach = [side // REACH for side in images.shape[2:]]
        top, left = (int(share * (2 * most + 1)) for share, most in zip(where, reach, strict=True))
        height, width = images.shape[2:]
        edges = F.pad(images.flip(-1) if flip < 0.5 else images, (reach[1], reach[1], reach[0], reach[0]), "reflect")
        with torch.no_grad():
            return _example(twin, edges[:, :, top : top + height, left : left + width].contiguous()) or example

    return varied


def _restate(twin: Twin, news: Sequence[Operator], batches: Batches, images: int) -> None:
    """Norms get the statistics of what they see now, and the weights with which they answer as before.

    Until here a norm may divide by another deviation than its input's. In train mode it would divide by that, and the
    network would be another one than in eval mode.
    """
    held, rest, _ = batches.divided()
    norms = [norm for _, norm in behind(twin, set(map(id, news)), held)]
    norms += [m for new in news for m in new.modules() if is_norm(m) and statistics(m)]
    for norm, spread in spreads_of(twin, norms, rest, images).items():
        if spread.count > 1 and isinstance(norm.weight, nn.Parameter) and isinstance(norm.bias, nn.Parameter):
            restate_norm_(norm, *spread.found())


def _example(twin: Twin, batch: Inputs) -> Example | None:
    target = call(twin.original, batch)
    if not (isinstance(target, Tensor) and target.is_floating_point() and target.ndim):
        return None
    arguments = as_call(twin.inputs(batch))
    return Example(arguments, as_type(target.clone(), arguments))


def _rows(examples: Sequence[Example]) -> float:
    """Images of an example, on average."""
    return sum(max(1, len(each.target)) for each in examples) / len(examples)
