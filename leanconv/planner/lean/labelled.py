"""A network with labelled data: its task's own score, and recovery by `leanconv train`, the dense one its teacher."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanconv import recipes
from leanconv.convert import Plan
from leanconv.deploy.camera import export_camera
from leanconv.errors import BadInput
from leanconv.files import write_json
from leanconv.planner.lean.asked import Asked
from leanconv.planner.lean.subject import Score, load_asked, store_model, write_version
from leanconv.runs import RunFolder
from leanconv.train import setup
from leanconv.train.data.batches import Order
from leanconv.train.data.image_reader import listing
from leanconv.train.data.splits import same_name
from leanconv.train.inference.contract import contract_of, same_masks, same_top1
from leanconv.train.inference.score import read_metrics, stored_threshold
from leanconv.train.loop import fit
from leanconv.train.progress import Reporter
from leanconv.train.recipe import Recipe
from leanconv.train.tasks.task import make_task, open_run_data, task_of

# Of the recipe `recover`, what is said here.
_SAID = ("teacher", "out", "swap", "init", "fit_images", "batch", "epochs")
# The rate from a fit whose outputs are off by less than that, relative; leanconv/recipes/recover.toml has the figures.
_NEAR, _NEAR_LR = 0.2, 1e-3
_BATCH = 64  # images per step of the recovery, at most: an epoch has few enough steps
# Of the run's own recipe, what is of another start, optimizer or schedule.
_RESET: dict[str, Any] = {
    "swap": "", "where": "", "pretrained": False, "init": "project", "steps": 0, "momentum": 0.9, "nesterov": False,
    "drop": 0.1, "drop_epochs": 30, "drop_at": "", "eval_every": 1, "fit_images": 512,
}  # fmt: skip
SIZE = 224  # of the images of a model that is no run


class LabelledSubject:
    """A run folder, or a model that was stored as one, and its labelled data. See `Subject`."""

    def __init__(self, run: RunFolder, recipe: Recipe, asked: Asked, report: Reporter, *, trust_code: bool) -> None:
        self.run, self.recipe, self.asked, self.report, self.trust_code = run, recipe, asked, report, trust_code
        self.network = run.load_model(trust_code=trust_code)
        self.inputs = torch.randn(
            asked.input or (1, 3, recipe.size, recipe.size), generator=torch.Generator().manual_seed(0)
        )
        self.kind = task_of(recipe)
        self.measure = {"classify": "top-1", "segment": "Dice"}[self.kind]

    @classmethod
    def of_run(cls, asked: Asked, report: Reporter, *, trust_code: bool) -> "LabelledSubject":
        """The network of a run folder. Raises BadInput for one that says nothing of its data, or has no recipe."""
        run = RunFolder.open(asked.model)
        if not run.recipe.is_file():
            raise BadInput(
                f"{run.path} has no recipe.toml, so its image size and training are not known: it is a converted "
                "model; give the run that it was converted from"
            )
        recipe = Recipe.read(run.recipe)
        if asked.size not in (0, recipe.size):
            raise BadInput(f"--size {asked.size}: {run.path} was trained on {recipe.size} pixels; leave --size out")
        return cls(run, replace(recipe, data=asked.data or recipe.data), asked, report, trust_code=trust_code)

    @classmethod
    def of_model(cls, asked: Asked, place: Path, report: Reporter, *, trust_code: bool) -> "LabelledSubject":
        """Any model reference, stored as a run folder at `place` at the first call."""
        run = RunFolder(place)
        size = asked.size or (asked.input[2] if asked.input else SIZE)
        recipe = Recipe(model=asked.model, data=asked.data, out=str(place), size=size, batch=32, epochs=1, warmup=0.1)
        if not run.model_json.is_file():
            network = load_asked(asked.model, trust_code=trust_code)
            kind = task_of(recipe)
            data = setup.open_splits(recipe, kind, report)
            task = make_task(recipe, kind, tuple(data["train"].classes))
            task.check(network, torch.zeros(1, 3, size, size))
            recipe.write(run.recipe)
            store_model(run, asked.model, network, task=kind, classes=task.classes, bits=setup.bits_of(data))
        return cls(run, recipe, asked, report, trust_code=trust_code)

    @cached_property
    def data(self) -> dict[str, Any]:
        """The splits, every file looked at. Raises BadInput for data of other classes than the network's."""
        recipe, known = self.recipe, self.run.read_model().classes
        data = setup.open_splits(recipe, self.kind, self.report, before=self.run)
        now = tuple(data["train"].classes)
        if known and tuple(map(same_name, known)) != tuple(map(same_name, now)):
            raise BadInput(
                f"{recipe.data} has the classes {listing(now)}, {self.run.path} was trained on {listing(known)}: "
                "give the data that it was trained on"
            )
        return data

    @cached_property
    def task(self) -> Any:
        train = self.data["train"]
        task = make_task(self.recipe, self.kind, tuple(train.classes), ignores=train.ignores)
        task.check(self.network, torch.zeros(1, 3, self.recipe.size, self.recipe.size))
        return task

    @property
    def split(self) -> str:
        """The split that is scored."""
        return "test" if "test" in self.data else "val"

    @property
    def visible(self) -> bool:
        return self.report.visible

    @property
    def judged(self) -> str:
        return f"{len(self.data[self.split])} {self.split} images"

    def calibration(self) -> Sequence[tuple[Tensor, Tensor]]:
        """Training batches, images `N 3 S S` and their labels or masks, as the training cuts them."""
        recipe = self.recipe if self.kind == "segment" else replace(self.recipe, augment=False)
        samples = self.data["train"]
        batch = min(recipe.batch, self.asked.images)
        order = Order(len(samples), batch, recipe.seed)
        at: Callable[[int], Any] = setup.batch_at(recipe, samples, order)
        return [at(step) for step in range(max(1, min(self.asked.images // batch, order.steps_per_epoch)))]

    def score(self, network: nn.Module) -> Score:
        """Choose thresholds on validation images, as a training does, then score."""
        network = network.eval()
        chosen = self.task.choose(network, self.data["val"]) if "val" in self.data else self.task.unchosen()
        found = self.task.evaluate(network, self.data[self.split], **chosen.options)
        return Score(float(getattr(found, self.task.goal)), chosen.stored, found.to_dict())

    def write(self, folder: RunFolder, network: nn.Module, plan: Plan, score: Score) -> None:
        write_version(folder, self.run, network, plan)
        replace(self.recipe, out=str(folder.path)).write(folder.recipe)
        params = sum(p.numel() for p in network.parameters())
        kind = {"task": self.task.name, "keep": "last", "mode": "eager"}
        write_json(folder.metrics, {**kind, **score.chosen, self.split: score.details, "params": params})

    def recovery(self, fitted: RunFolder, out: Path, error: float | None = None) -> Recipe:
        """The built-in recipe `recover` on the run's data, from the fitted weights, the dense one its teacher.

        error: of the fitted network's outputs, relative: a near one takes a lower rate.
        """
        how = {key: value for key, value in recipes.read("recover").items() if key not in _SAID}
        own = {
            "model": str(fitted.path), "out": str(out), "teacher": str(self.run.path), "epochs": self.asked.epochs,
            "batch": min(_BATCH, self.recipe.batch),
            # An epoch shows each image once. As it is, it teaches more: leanconv/recipes/recover.toml has the figures.
            "augment": self.recipe.augment and not (self.kind == "classify" and self.asked.epochs == 1),
        }  # fmt: skip
        near = {"lr": _NEAR_LR} if error is not None and error < _NEAR else {}
        rate = {"lr": self.asked.lr} if self.asked.lr else near
        return replace(self.recipe, **_RESET | how | own | rate)

    def recover(self, fitted: RunFolder, out: Path, again: str, error: float | None = None) -> Score:
        recipe = self.recovery(fitted, out, error)
        resume = (out / "recipe.toml").is_file()
        if resume:
            move_recipe(out / "recipe.toml", recipe)
        folder = fit(
            recipe,
            resume=resume,
            progress=self.report.visible,
            trust_code=self.trust_code,
            again=again,
            notes=self.report.notes,
        )
        metrics = read_metrics(folder)
        return Score(float(metrics[self.split][self.task.goal]), {}, metrics[self.split])

    def export(self, folder: RunFolder, path: Path) -> Any:
        """A file for cameras: uint8 images in, compared with `leanconv predict` on validation images."""
        network = folder.load_model(trust_code=self.trust_code)
        contract = contract_of(folder, network, stored_threshold(folder))
        split = "val" if "val" in self.data else "test"
        samples = open_run_data(folder, self.recipe.data, split)
        masks = self.kind == "segment"
        check = same_masks(network, contract, samples, split) if masks else same_top1(contract, samples, split)
        return export_camera(network, contract, path, check=check)


def move_recipe(path: Path, recipe: Recipe) -> None:
    """Give a stored recipe the paths of today's: the folder may have moved, or be spelt otherwise. The rest stays."""
    before = Recipe.read(path)
    now = replace(before, model=recipe.model, out=recipe.out, teacher=recipe.teacher)
    if now != before:
        now.write(path)
