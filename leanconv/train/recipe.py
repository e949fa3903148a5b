"""Recipe: every setting of a training run, one frozen dataclass, read from flat TOML and `key=value` words."""

import dataclasses
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from leanconv import recipes
from leanconv.errors import BadInput
from leanconv.files import write_atomic
from leanconv.text import is_utf8
from leanconv.train.inherited import inherited
from leanconv.train.recipe_text import TOO_LARGE, shown, toml, typed, word

# The allowed words of each key that takes words.
CHOICES = {
    "task": ("auto", "segment", "classify"),
    "optimizer": ("adamw", "muon", "sgd"),
    "schedule": ("cosine", "poly", "step", "constant"),
    "keep": ("best", "last"),
    "loss": ("auto", "bce_dice", "ce"),
    "amp": ("no", "auto", "bf16", "fp16"),
    "device": ("auto", "cpu"),
    "init": ("project", "fit", "fresh"),
}
_LARGEST = 1e6  # of settings other than counts; larger values train nothing, or diverge at once
_LARGEST_ZOOM = 64
MOST_MERGE = 1000  # pixels between two fragments
# Beyond these memory or OpenMP gives up without a word of what was wrong; one pixel is no picture to resize to.
_RANGES = {
    "size": (2, 2**14), "batch": (1, 2**20), "threads": (0, 2**12), "workers": (0, 2**12),
    "teacher_weight": (0, 1), "blockwise_steps": (0, 2**31), "fit_images": (1, 2**31),
    "min_area": (-1, 2**31), "merge": (-1, MOST_MERGE), "max_defects": (-1, 2**31), "max_area": (-1, 2**31),
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """One training run.

    Attributes:
        model: a model reference, `leanconv:unet?base=16&conv=splconv(alpha=0.5)`.
        data: a data reference: a folder, a folder of Parquet splits, `synthetic:wafer`, `torchvision:CIFAR10`.
        out: the run folder, created by the run.
        swap: an operator that replaces convolutions of the finished model, like "hetconv(part=4)"; "" changes none.
            For timm's, smp's and own models; those of leanconv also take `conv=`. `leanconv plan` shows the same plan.
        where: the layers to swap, a glob over names ("decoder.*"); "" is every one that the operator's paper means.
        pretrained: start a timm or smp model from published weights. They are downloaded; nothing else is.
        init: of swapped layers: `project` takes over what a closed form can of the weights, `fit` fits each layer to
            the old one's outputs on training images, `fresh` draws new ones.
        fit_images: training images that `init="fit"` looks at; their labels are not used.
        teacher: a run folder (or a model with published weights) to learn from: the original of a swapped model. Files
            and commands that leave out model, data, size, classes and the like take those of its run.
        teacher_weight: w in loss = (1 - w) · task + w · soft targets + feature_weight · features.
        temperature: of the soft targets.
        feature_weight: of the squared error of the outputs of blocks with swapped layers; 0 compares none.
        blockwise_steps: steps before the first one, in which each such block learns by itself.
        task: `segment` (a mask an image) or `classify` (a class an image); `auto` takes what the data has.
        classes: names of the classes, the background first, `["background", "scratch"]`, or how many there are; empty
            takes those of the data. For segmentation.
        size: side of the square training crops, in pixels; for classification of all squares that the model sees.
        batch: images per step, over all processes together.
        epochs, steps: how long; one of the two is above 0.
        seed: weights, data order and augmentation follow from it.
        optimizer, lr, momentum and nesterov (SGD), weight_decay (not on biases and norms): the update. `muon` is of the
            filters; what is no matrix takes AdamW's steps.
        clip: largest norm of the gradient; 0 leaves it alone.
        warmup: steps in which the rate grows linearly to `lr`; below 1, a share of all steps.
        schedule: how the rate falls afterwards: `cosine` and `poly` to 0 at the last step, `step` times `drop` after
            every `drop_epochs` epochs (counted from the first).
        drop, drop_epochs: of `schedule="step"`. `drop_at`: the epochs of the falls themselves, "82,123", instead.
        loss: `bce_dice` (two classes, one logit), `ce` (K classes, K logits), `auto` takes what fits the data.
        smoothing: of the labels in a classification, from 0 to below 1.
        topology_epochs: epochs in which LHC layers learn their masks before those are frozen; 0 never freezes them.
        temperature_epochs: epochs in which ODConv's temperature falls to the 1 that it has in evaluation.
        quiet_gates: start the softmax gates of SPConv and SPLConv near one half (`leanconv.nn.quiet_gates_`); false
            starts them with their usual weights, which learn slowly. Of effect on new weights alone: those of
            `leanconv:` models and of swapped layers.
        keep: `best` keeps the weights of the best validation, `last` those after the last step.
        augment: train on random crops; false trains on whole images resized to `size`, none of the next four.
        flips: mirror images; for segmentation also quarter turns.
        light: strength of the changes of brightness, contrast and saturation.
        zoom: the largest random magnification; 1/zoom is the smallest. This and the next for segmentation only: a
            classifier sees small pictures shifted by up to size/8, photographs as crops of 8 to 100 % of their area.
        defect_crop: share of the crops that are laid around a defect.
        amp: mixed precision; `auto`: bf16 where that is faster and agrees with float32 (see `mode`).
        mode: how a step is run. `auto` tries what there is on the first batch, prints the table, and keeps the fastest
            with the same loss and gradients; it takes 5 % of the run's time at most. `eager` tries nothing; a mode's
            name ("compile") takes that. The run keeps its mode when it is resumed, and metrics.json names it.
        channels_last, compile: what makes a step cheaper; results differ by rounding. compile=true is mode=compile. On
            an AMD EPYC, one thread, batch 8 at 96 px, channels_last takes 15-27 % off a base-8 U-Net's step, dense,
            SPLConv or depthwise-separable.
        device: `auto` takes the accelerator that is there.
        threads: of the CPU; 0 leaves torch's own.
        workers: processes that prepare the images; 0 does it in the training process.
        save_every: steps between two checkpoints; 0 saves at the end of each epoch.
        eval_every: epochs between two validations.
        log_every: steps between two lines in `events/`.
        min_area: pixels of the smallest defect that is reported; -1: what serves the validation images best. This and
            the rest are read when a run predicts, and may be changed in its recipe.toml. For segmentation.
        merge: fragments of one class with at most so many pixels between them are one defect; -1 likewise.
        max_defects: a picture fails with more defects than this; -1 sets no limit.
        max_area: it fails with more defect pixels than this; -1 sets no limit.
        fail_classes: it fails with any defect of these classes. Without this and the last two any defect fails it.
    """

    model: str = "leanconv:unet?base=16"
    data: str = "synthetic:wafer"
    out: str = "runs/train"
    swap: str = ""
    where: str = ""
    pretrained: bool = False
    init: str = "project"
    fit_images: int = 512
    teacher: str = ""
    teacher_weight: float = 0.5
    temperature: float = 2.0
    feature_weight: float = 0.5
    blockwise_steps: int = 0
    task: str = "auto"
    classes: tuple[str, ...] = ()
    size: int = 128
    batch: int = 16
    epochs: int = 0
    steps: int = 0
    seed: int = 0
    optimizer: str = "adamw"
    lr: float = 1e-3
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.01
    clip: float = 0.0
    warmup: float = 0.05
    schedule: str = "cosine"
    drop: float = 0.1
    drop_epochs: int = 30
    drop_at: str = ""
    loss: str = "auto"
    smoothing: float = 0.0
    topology_epochs: int = 100
    temperature_epochs: float = 10.0
    quiet_gates: bool = True
    keep: str = "best"
    augment: bool = True
    flips: bool = True
    light: float = 0.2
    zoom: float = 1.0
    defect_crop: float = 0.0
    amp: str = "no"
    mode: str = "auto"
    channels_last: bool = True
    compile: bool = False
    device: str = "auto"
    threads: int = 0
    workers: int = 0
    save_every: int = 0
    eval_every: int = 1
    log_every: int = 10
    min_area: int = -1
    merge: int = -1
    max_defects: int = -1
    max_area: int = -1
    fail_classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_writable()
        for key in ("model", "data", "out"):
            if not getattr(self, key).strip():
                raise BadInput(f"recipe: {key} is empty: say which, or leave it out")
        for key, words in CHOICES.items():
            if getattr(self, key) not in words:
                raise BadInput(f"recipe: {key}={shown(getattr(self, key))}: one of {', '.join(words)}")
        for key in ("drop_epochs", "eval_every", "log_every"):
            if getattr(self, key) < 1:
                raise BadInput(f"recipe: {key}={getattr(self, key)}: must be at least 1")
        for key, (least, most) in _RANGES.items():
            if not least <= getattr(self, key) <= most:
                raise BadInput(f"recipe: {key}={getattr(self, key)}: must be at least {least} and at most {most}")
        for key in (
            "epochs",
            "steps",
            "seed",
            "lr",
            "momentum",
            "weight_decay",
            "clip",
            "warmup",
            "drop",
            "smoothing",
            "topology_epochs",
            "light",
            "defect_crop",
            "save_every",
            "feature_weight",
        ):
            if not 0 <= (value := getattr(self, key)) < math.inf:
                raise BadInput(f"recipe: {key}={value}: must be a number of at least 0")
            if isinstance(value, float) and value > _LARGEST:
                raise BadInput(f"recipe: {key}={value}: must be a number of at most {_LARGEST:g}")
        if self.defect_crop > 1:
            raise BadInput(f"recipe: defect_crop={self.defect_crop}: a share, from 0 to 1")
        for key in ("temperature_epochs", "temperature"):
            if not 0 < (value := getattr(self, key)) <= _LARGEST:
                raise BadInput(f"recipe: {key}={value}: must be above 0 and at most {_LARGEST:g}")
        for key in ("light", "smoothing"):
            if getattr(self, key) >= 1:
                raise BadInput(f"recipe: {key}={getattr(self, key)}: from 0 to below 1")
        self._check_mode()
        falls = [part.strip() for part in self.drop_at.split(",") if self.drop_at]
        if not all(part.isdecimal() and len(part) < 19 for part in falls):
            raise BadInput(f'recipe: drop_at="{self.drop_at[:40]}": whole epochs, like "82,123"')
        if falls and self.schedule != "step":
            raise BadInput(
                f'recipe: drop_at="{self.drop_at[:40]}" is of schedule=step, not of schedule={self.schedule}: '
                'say schedule=step, or drop_at=""'
            )
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise BadInput("recipe: nesterov=true is a form of SGD with momentum: say optimizer=sgd, momentum=0.9")
        if not 1 <= self.zoom <= _LARGEST_ZOOM:
            raise BadInput(f"recipe: zoom={self.zoom}: the largest magnification, from 1 to {_LARGEST_ZOOM}")
        if (self.epochs > 0) == (self.steps > 0):
            raise BadInput(f"recipe: epochs={self.epochs}, steps={self.steps}: say one of the two, above 0")

    def _check_mode(self) -> None:
        if self.compile and self.mode == "eager":
            raise BadInput("recipe: compile=true, mode=eager: say mode=compile, or leave one out")
        if self.mode in ("auto", "eager"):
            return
        from leanconv.train.step.modes import COMPILE, Mode

        if COMPILE not in Mode.parse(self.mode) and self.compile:
            raise BadInput(f"recipe: compile=true, mode={self.mode}: say mode='{self.mode} compile', or leave one out")

    def _check_writable(self) -> None:
        """Raise BadInput for values that recipe.toml cannot hold: numbers beyond 64 bits, text that is not UTF-8."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is int and abs(value) >= TOO_LARGE:
                digits = len(str(abs(value))) if abs(value).bit_length() < 14_000 else "thousands of"
                raise BadInput(f"recipe: {field.name} has {digits} digits: must be below 2**63")
            texts = (value,) if isinstance(value, str) else value if isinstance(value, tuple) else ()
            if any("\0" in text or not is_utf8(text) for text in texts):
                kind = sys.getfilesystemencoding().upper()
                raise BadInput(f"recipe: {field.name}={shown(value)} is no {kind} text: rename it, or link to it")

    def falls(self, epoch: int) -> int:
        """The number of drops of the rate by `schedule="step"` before an epoch (from 0)."""
        if not self.drop_at:
            return epoch // self.drop_epochs
        return sum(epoch >= int(part) for part in self.drop_at.split(","))

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """The recipe of a TOML file or of a built-in name ("wafer"), with `key=value` words over it.

        Raises: UnknownName for a name or a key that no recipe has, BadInput for a value of another type or an
            unreadable file.
        """
        return cls.of(recipes.read(path), overrides, where=str(path))

    @classmethod
    def of(cls, values: dict[str, Any], overrides: Sequence[str] = (), *, where: str = "recipe") -> Self:
        """The recipe of a dictionary, with `key=value` words over it; a word for `epochs` puts `steps` aside.

        With a teacher, what is not said of the model and its images is as in the teacher's run (`inherited.py`).
        """
        fields = {field.name: field.type for field in dataclasses.fields(cls)}
        merged = {key: typed(key, value, fields, where) for key, value in values.items()}
        words: dict[str, Any] = {}
        for key, value in (word(text, fields) for text in overrides):
            if key in words:
                raise BadInput(f"{key}= is given twice; give it once")
            words[key] = value
        if teacher := words.get("teacher", merged.get("teacher", "")):
            left = inherited(teacher, merged.keys() | words.keys())
            merged |= {key: typed(key, value, fields, f"{teacher}/recipe.toml") for key, value in left.items()}
        for length, other in (("epochs", "steps"), ("steps", "epochs")):
            if words.get(length, 0) > 0 and other not in words:
                merged[other] = 0
        return cls(**merged | words)

    @property
    def class_names(self) -> tuple[str, ...] | int | None:
        """The setting `classes` as the readers of data take it: names, their number, or None."""
        one = self.classes[0] if len(self.classes) == 1 else ""
        return int(one) if one.isdecimal() and len(one) < 9 else self.classes or None

    def write(self, path: str | Path) -> Path:
        """Write the recipe as TOML, with every key."""
        lines = [f"{key} = {toml(value)}" for key, value in dataclasses.asdict(self).items()]
        return write_atomic(path, "\n".join(lines) + "\n")

    def __str__(self) -> str:
        changed = [
            f"{field.name}={getattr(self, field.name)}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return " ".join(changed)
