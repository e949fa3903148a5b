"""Preparation of a run: folder, device, data, model, and the headline that describes them."""

import dataclasses
import math
import os
import random
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from leanconv.copies import copied
from leanconv.errors import BadFiles, BadInput, UntrustedCode
from leanconv.extras import needs
from leanconv.files import read_json, write_json
from leanconv.measure import label
from leanconv.measure.counting.count import count
from leanconv.nn import Schedule, quiet_gates_
from leanconv.runs import RunFolder
from leanconv.runs.kinds import build, read, with_outputs
from leanconv.table import si
from leanconv.text import one_line
from leanconv.train.data.augment import Augmentation, PlainTransform, TrainTransform
from leanconv.train.data.batches import Batch, Order, augmented
from leanconv.train.data.check import refuse
from leanconv.train.data.crops import Crops, memory_batch
from leanconv.train.data.image_reader import listing
from leanconv.train.data.labelled import Labelled
from leanconv.train.data.samples import Samples
from leanconv.train.data.splits import NoSplit
from leanconv.train.distillation.teacher import check_teacher
from leanconv.train.progress import Reporter
from leanconv.train.recipe import Recipe
from leanconv.train.swapped import Calibration, check_swap, swap_, with_weights
from leanconv.train.tasks.task import Task, open_split


def last(folder: RunFolder) -> Path:
    """The checkpoint that a killed run resumes from."""
    return folder.last / "state.safetensors"


def accelerator(recipe: Recipe) -> Any:
    """Accelerate's `Accelerator` for the recipe's device and precision. Raises BadInput where the device lacks it."""
    with needs("accelerate", "train"):
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    # Accelerate keeps the precision of a process's first run; a second run may need another.
    AcceleratorState._reset_state()
    # Without an accelerator, name the CPU: launched processes would not find each other.
    cpu = recipe.device == "cpu" or not torch.accelerator.is_available()
    try:
        made = Accelerator(mixed_precision="no" if recipe.amp == "auto" else recipe.amp, cpu=cpu)
    except ValueError as error:
        raise BadInput(f"amp={recipe.amp} is not possible here: {error}") from error
    if recipe.amp == "fp16" and made.device.type == "cpu":
        raise BadInput("amp=fp16 needs a GPU; on a CPU say amp=bf16 or amp=no")
    if made.num_processes != int(os.environ.get("WORLD_SIZE", "1")):
        raise BadInput(f"{os.environ['WORLD_SIZE']} processes were launched, accelerate joined {made.num_processes}")
    return made


def launch_note(processes: int) -> str:
    """A remark for `accelerate launch --cpu --num_processes N`: without MPI it starts one process only."""
    if processes == 1 and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        return (
            "note   this is one process: accelerate starts several on a CPU as "
            "accelerate launch --multi_gpu --num_processes N -m leanconv train ... device=cpu (or torchrun)"
        )
    return ""


def open_splits(recipe: Recipe, kind: str, report: Reporter, *, before: RunFolder | None = None) -> dict[str, Any]:
    """The splits of the recipe's data, every file looked at: train, val, and test where there is one.

    With keep=last nothing is chosen on val, and it may be absent where there is a test split.
    Raises: BadInput for a bad file, BadFiles for several.

    Args:
        report: gets what a user should know of the splits.
        before: the run that goes on, or the teacher's: it has written down the range of its 16-bit images.
    """
    bits = before.read_model().bits if before is not None and before.model_json.is_file() else None
    splits, absent = {}, ""
    for split in ("train", "val", "test"):
        try:
            splits[split] = open_split(
                recipe.data, split, task=kind, size=recipe.size, bits=bits, classes=recipe.class_names
            )
        except NoSplit as error:  # a split that exists and is invalid raises as usual
            if split == "train" or (split == "val" and recipe.keep == "best"):
                raise
            absent = f"no {split} scores: {error}"
    if splits.keys() == {"train"}:
        raise BadInput(f"{recipe.data} has neither a val nor a test split: nothing would be scored")
    for note in dict.fromkeys([absent, *(samples.note for samples in splits.values())]):
        if note:
            report.note(one_line(f"note   {note}"))
    _check(splits, report)
    return splits


def _check(splits: dict[str, Any], report: Reporter) -> None:
    """Check every file of the splits, and report all faults together."""
    faults: list[str] = []
    before: Any = None
    for samples in splits.values():
        if before is not None:
            samples.like(before)
        before = samples
        try:
            samples.check(progress=report.visible)
        except BadInput as error:
            faults += error.faults if isinstance(error, BadFiles) else [str(error)]
    refuse(faults, sum(map(len, splits.values())))
    remarks: dict[str, list[str]] = {}
    for split, samples in splits.items():
        for remark in samples.remarks():
            remarks.setdefault(remark, []).append(split)
    for remark, among in remarks.items():
        report.note(one_line(f"note   {', '.join(among)}: {remark}"))
    train = splits.get("train")
    if isinstance(train, Samples) and (unseen := train.unseen()):
        report.note(one_line(f"note   no training mask that was read has a pixel of {listing(unseen)}"))


def bits_of(splits: dict[str, Any]) -> int | None:
    """The bits in use per channel of the 16-bit images; None without 16-bit images."""
    return next((samples.bits for samples in splits.values() if samples.bits), None)


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's random numbers, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - a model's own code may draw from the global one
    torch.manual_seed(seed)


def check_used(recipe: Recipe) -> None:
    """Raise BadInput for a setting that another one makes useless, unless it has its default."""
    check_swap(recipe)
    check_teacher(recipe)
    sgd, steps = recipe.optimizer == "sgd", recipe.schedule == "step"
    taught = ("teacher_weight", "temperature", "feature_weight", "blockwise_steps")
    useless = {
        **dict.fromkeys(taught, (not recipe.teacher, 'teacher=""')),
        "fit_images": (recipe.init != "fit", f"init={recipe.init}"),
        "momentum": (not sgd, f"optimizer={recipe.optimizer}"),
        "drop": (not steps, f"schedule={recipe.schedule}"),
        "drop_epochs": (not steps or bool(recipe.drop_at), "drop_at" if steps else f"schedule={recipe.schedule}"),
        "zoom": (not recipe.augment, "augment=false"),
        "defect_crop": (not recipe.augment, "augment=false"),
    }
    defaults = {field.name: field.default for field in dataclasses.fields(recipe)}
    for key, (idle, why) in useless.items():
        if idle and (value := getattr(recipe, key)) != defaults[key]:
            raise BadInput(f"recipe: {key}={value} is of no use with {why}: leave it out, or say {key}={defaults[key]}")


def build_model(recipe: Recipe, trust_code: bool, outputs: int | None = None) -> nn.Module:
    """The recipe's model with fresh weights (pretrained ones if it says so; of a run folder, those of that run).

    `outputs`: how many it gets where the recipe's reference does not say; None: its own default.
    Raises: UntrustedCode for a Python file, unless `trust_code`.
    """
    reference = read(recipe.model)
    if reference.kind == "path":
        return RunFolder.open(recipe.model).load_model(trust_code=trust_code).train()
    if reference.kind == "code" and not trust_code:
        raise UntrustedCode(
            f"the recipe asks to run {reference.name}:{reference.factory}; read that file, and say --trust-code (or "
            "trust_code=True) if you trust it"
        )
    if outputs is not None:
        reference = read(with_outputs(recipe.model, outputs))
    net: nn.Module = build(with_weights(reference, recipe)).train()
    if recipe.quiet_gates and reference.kind == "leanconv":  # others may come with trained weights
        quiet_gates_(net)
    return net


def network(
    recipe: Recipe,
    trust_code: bool,
    report: Reporter,
    *,
    outputs: int | None,
    before: RunFolder | None,
    calibration: Calibration | None = None,
) -> tuple[nn.Module, Sequence[tuple[str, str]]]:
    """The network to train and its swapped layers, pairs (layer, operator) for model.json. The plan is shown.

    Args:
        outputs: as `build_model` has it.
        before: the run that goes on. Its model.json says what was swapped: nothing is planned or downloaded again.
        calibration: images for `init="fit"`.
    """
    if before is not None and last(before).is_file() and (recipe.swap or recipe.pretrained):
        return before.build_model(trust_code=trust_code), before.read_model().swaps
    net = build_model(recipe, trust_code, outputs)
    if calibration is not None:
        net.to(calibration.device)
    found = swap_(net, recipe, calibration, report)
    net.cpu()
    swaps = [(swap.name, str(swap.to)) for swap in found.swapped]
    if found:
        report.say(f"swap   {recipe.swap}, layer by layer:\n{found}")
    return net, swaps


@torch.no_grad()
def check_batch(net: nn.Module, recipe: Recipe, processes: int) -> None:
    """Raise BadInput if the model cannot train on single images: BatchNorm over one pixel has no variance."""
    if recipe.batch > processes:
        return
    try:
        copied(net).train()(torch.zeros(1, 3, recipe.size, recipe.size))
    except ValueError as error:
        raise BadInput(
            f"{recipe.model} cannot train on one image of {recipe.size}x{recipe.size} at a time ({error}): "
            "take a larger batch or size"
        ) from error


def schedule_note(schedule: Schedule, total: int) -> str:
    """A remark if ODConv's temperature is still above 1 after the last step: evaluation takes 1."""
    warm = schedule.temperature_epochs * schedule.steps_per_epoch
    if not schedule.dynamic or total >= warm:
        return ""
    return (
        f"note   ODConv's temperature reaches 1 after {schedule.temperature_epochs:g} epochs, this run ends after "
        f"{total / schedule.steps_per_epoch:g}, and evaluation takes 1: say temperature_epochs= half of them or fewer"
    )


def write_start(
    folder: RunFolder, recipe: Recipe, task: Task, bits: int | None, swaps: Sequence[tuple[str, str]] = ()
) -> None:
    """Write recipe.toml and model.json. A model from a run folder keeps that folder's reference and swaps."""
    recipe.write(folder.recipe)
    if read(recipe.model).kind == "path":
        before = read_json(RunFolder(recipe.model).model_json)
        meaning = {"task": task.name, "classes": list(task.classes), **({"bits": bits} if bits else {})}
        pairs = dict(before.get("swaps", [])) | dict(swaps)
        write_json(folder.model_json, before | meaning | {"swaps": [list(pair) for pair in pairs.items()]})
    else:
        reference = with_outputs(recipe.model, task.outputs)
        folder.write_model(reference, swaps=swaps, task=task.name, classes=task.classes, bits=bits)


def batch_at(recipe: Recipe, samples: Any, order: Order) -> Callable[[int], Batch]:
    """Images as the model takes them, with their masks or labels, as a function of the step."""
    if not isinstance(samples, Labelled):
        return partial(augmented, samples, transform(recipe), order)
    crops = Crops(recipe.size, recipe.augment, recipe.flips, recipe.light)
    return partial(memory_batch if samples.images is not None else augmented, samples, crops, order)


def calibration(recipe: Recipe, samples: Any, device: torch.device) -> Calibration | None:
    """The training images for `init="fit"`, the same in every process; None for another start."""
    if recipe.init != "fit":
        return None
    order = Order(len(samples), recipe.batch, recipe.seed)
    steps = min(math.ceil(recipe.fit_images / recipe.batch), order.steps_per_epoch)
    return Calibration(batch_at(recipe, samples, order), steps, device)


def transform(recipe: Recipe) -> Augmentation:
    """The augmentation of training images and their masks."""
    if not recipe.augment:
        return PlainTransform(recipe.size)
    scale = (1 / recipe.zoom, recipe.zoom)
    return TrainTransform(recipe.size, scale, recipe.defect_crop, recipe.flips, recipe.light)


def headline(recipe: Recipe, net: nn.Module, data: dict[str, Any], total: int, epochs: int, accelerator: Any) -> str:
    """One line: model, data, steps, device, and folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `profile` reports operations without a rule
        macs = count(net, torch.zeros(1, 3, recipe.size, recipe.size, device=accelerator.device)).flops
    params = sum(p.numel() for p in net.parameters())
    images = ", ".join(f"{len(samples)} {split}" for split, samples in data.items())
    device = label(accelerator.device)
    processes = f", {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
    classes = list(data["train"].classes)
    names = ", ".join(classes) if len(classes) <= 20 else f"{len(classes)} classes"
    swapped = f", swapped to {recipe.swap}" if recipe.swap else ""
    taught = f", taught by {recipe.teacher}" if recipe.teacher else ""
    at = f"3x{recipe.size}x{recipe.size}"
    lines = (
        f"model  {recipe.model}{swapped}{taught}: {si(params)} parameters, {si(macs)} MACs at {at}",
        f"data   {recipe.data}: {images} images; {names}",
        f"run    {total} steps of {recipe.batch}, {epochs} epochs, on {device}{processes}",
        f"into   {recipe.out}",
    )
    return "\n".join(map(one_line, lines))
