"""What a run's file for cameras says and must keep: classes, threshold, sizes; and the checks on real images."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.deploy.camera import Contract
from leanconv.errors import BadCheckpoint, BadInput, ExportMismatch
from leanconv.running import evaluating
from leanconv.runs import RunFolder
from leanconv.train.data.augment import MEAN, STD, to_uint8
from leanconv.train.data.references import side_of
from leanconv.train.data.splits import same_name
from leanconv.train.inference.predict import palette
from leanconv.train.inference.tiles import OVERLAP, TILE, predict_logits
from leanconv.train.recipe import Recipe
from leanconv.train.tasks import classify, evaluate
from leanconv.train.tasks.decision import Threshold, predicted_classes
from leanconv.train.tasks.task import run_size, run_task

# Cuts of each compared image: odd, without padding in most networks, small.
CUTS = ((201, 199), (200, 200), (37, 53), (1, 1))
_IMAGES = 8
# Another runtime adds the same numbers in another order: the error of a logit, as a share of the largest.
_ROUNDING = 1e-4
Check = Callable[[nn.Module], dict[str, float]]


def contract_of(folder: RunFolder, network: nn.Module, threshold: Threshold) -> Contract:
    """Read what a run says about its classes and pictures.

    Args:
        network: the run's, in eval mode.
        threshold: the one that belongs to its weights, or None.
    Raises: BadCheckpoint if the network does not answer for these classes; BadInput for a classifier without recipe.
    """
    stored, task = folder.read_model(), run_task(folder)
    recipe = Recipe.read(folder.recipe) if folder.recipe.is_file() else None
    size = run_size(folder) if task == "classify" else None
    unit = size or int(getattr(network, "size_multiple", 32))
    with torch.no_grad(), evaluating(network):
        answer = network(torch.zeros(1, 3, unit, unit))
    wanted = (1, unit, unit) if task == "segment" else ()
    if not isinstance(answer, Tensor) or answer.dim() != 2 + 2 * bool(wanted) or answer.shape[2:] != wanted[1:]:
        shown = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise BadInput(f"{folder.path}: the network gives {shown} for one image of {unit}x{unit}; say --raw")
    outputs = answer.shape[1]
    classes = stored.classes or _numbered(max(2, outputs))
    if outputs != len(classes) and (task, outputs, len(classes)) != ("segment", 1, 2):
        raise BadCheckpoint(
            f"{folder.model_json}: names {len(classes)} classes ({', '.join(classes[:10])}), the network has {outputs} "
            "outputs: the run's classes were changed; train it again"
        )
    one = task == "segment" and outputs == 1
    return Contract(
        task=task,
        classes=classes,
        threshold=0.5 if one and threshold is None else threshold,
        mean=MEAN,
        std=STD,
        multiple=1 if size else unit,
        tile=TILE,
        overlap=OVERLAP,
        side=side_of(recipe.data) if recipe and task == "segment" else None,
        size=size,
        bits=stored.bits,
        palette=tuple(palette(len(classes))) if task == "segment" and outputs > 2 else (),
    )


def same_masks(network: nn.Module, contract: Contract, samples: Any, split: str) -> Check:
    """A check of a file for cameras: IoU and Dice on a split, and the classes of pixels at odd sizes.

    `network`: what `leanconv predict` runs. Raises BadInput for data of other classes than the contract's.
    """
    _same_classes(contract, samples)
    threshold: Any = contract.threshold

    def check(form: nn.Module) -> dict[str, float]:
        scores = evaluate.evaluate(FromFloat(form), samples, threshold=threshold)
        wrong: int = sum(other_pixels(network, form, cut, threshold) for cut in cuts(samples))
        if wrong:
            raise ExportMismatch(
                f"{wrong} pixels have another class than by leanconv predict, at sizes like "
                f"{'x'.join(map(str, CUTS[0]))}; nothing was written"
            )
        return {
            f"{split} IoU": scores.iou,
            f"{split} Dice": scores.dice,
            f"{split} mean IoU": scores.mean_iou,
            "pixels of another class": wrong,
        }

    return check


def same_top1(contract: Contract, samples: Any, split: str) -> Check:
    """The same for a classifier: top-1 on a split."""
    _same_classes(contract, samples)
    return lambda form: {f"{split} top-1": classify.evaluate(FromFloat(form), samples).top1}


def lost_in_int8(contract: Contract, samples: Any, split: str) -> Check:
    """A check of a file in int8: Dice or top-1 on a split. It may answer otherwise than the network in places."""
    _same_classes(contract, samples)
    threshold: Any = contract.threshold
    if contract.task == "classify":
        return lambda form: {f"{split} top-1": classify.evaluate(FromFloat(form), samples).top1}
    return lambda form: {f"{split} Dice": evaluate.evaluate(FromFloat(form), samples, threshold=threshold).dice}


def cuts(samples: Any) -> Iterator[Tensor]:
    """Pieces `3 h w` of the sizes in `CUTS` from some images, spread over the set."""
    for index in range(0, len(samples), max(1, len(samples) // _IMAGES)):
        image = samples[index].image
        yield from (image[:, :h, :w] for h, w in CUTS)


def other_pixels(network: nn.Module, form: nn.Module, image: Tensor, threshold: Any) -> int:
    """The number of pixels of `3 H W` to which file and `leanconv predict` give different classes.

    Pixels at which file and network agree within rounding do not count: their probability is the threshold.
    """
    with torch.no_grad():
        found = FromFloat(form).frames(image[None])
    logits = predict_logits(network, image)[None]
    differs = predicted_classes(logits, threshold) != predicted_classes(found, threshold)
    apart = (logits - found).abs().amax(1) > _ROUNDING * logits.abs().max()
    return int((differs & apart).sum())


class FromFloat(nn.Module):
    """A file for cameras in the call signature of its network: float `N 3 H W` -> logits."""

    size_multiple = 1  # it pads inside

    def __init__(self, form: nn.Module) -> None:
        super().__init__()
        self.form = form
        self.train(form.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.frames(to_uint8(x))

    def frames(self, images: Tensor) -> Tensor:
        """Logits of uint8 `N 3 H W`."""
        found: Tensor = self.form(image=images.permute(0, 2, 3, 1).contiguous())["logits"]  # N 3 H W -> N H W 3
        return found


def _numbered(count: int) -> tuple[str, ...]:
    """Names for the classes of a run that has none."""
    return tuple(map(str, range(count)))


def _same_classes(contract: Contract, samples: Any) -> None:
    ours, theirs = ([same_name(name) for name in each] for each in (contract.classes, samples.classes))
    if ours != theirs and contract.classes != _numbered(len(theirs)):
        raise BadInput(
            f"the data's classes are {', '.join(samples.classes[:10])}, the run's {', '.join(contract.classes[:10])}: "
            "give the --data it was trained on, or train again"
        )
