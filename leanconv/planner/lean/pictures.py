"""A network with images alone: it agrees with the dense one or not, and is trained to answer as that one does."""

import math
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.convert import Plan
from leanconv.deploy.export import export
from leanconv.errors import Diverged
from leanconv.files import write_json
from leanconv.planner.lean.agreement import Agreement, main_output, measure_of
from leanconv.planner.lean.asked import Asked
from leanconv.planner.lean.subject import Score, is_run, load_asked, store_model, write_version
from leanconv.progress import tracked
from leanconv.running import call, evaluating
from leanconv.runs import RunFolder
from leanconv.train.data.augment import to_float
from leanconv.train.data.batches import Order, mix
from leanconv.train.data.image_files import images_in
from leanconv.train.data.image_reader import ImageReader
from leanconv.train.data.labelled import prepared
from leanconv.train.data.samples import CACHE_BYTES
from leanconv.train.distillation.distill import Distillation
from leanconv.train.progress import Reporter
from leanconv.train.recipe import Recipe

SIZE, BATCH, RATE = 224, 32, 1e-3
HELD = 5  # every so many images, one is held out for the score
_WARM = 0.05


class PictureSubject:
    """A run or a model, and a folder of images without labels. See `Subject`."""

    split = "agreement"

    def __init__(self, asked: Asked, place: Path, report: Reporter, *, trust_code: bool) -> None:
        self.asked, self.report, self.trust_code = asked, report, trust_code
        self.run = self._stored(place)
        self.network = self.run.load_model(trust_code=trust_code)
        self.size = self._size()
        shape = asked.input or (1, 3, self.size, self.size)
        self.inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            self.measure = measure_of(main_output(call(self.network, self.inputs)))
        self.paths = images_in(Path(os.path.expanduser(asked.data))).images
        self.reader = ImageReader(self.run.read_model().bits, lambda: ((path, str(path)) for path in self.paths))
        held = self.paths[::HELD]
        self.held = held
        self.kept = [path for path in self.paths if path not in set(held)] or held
        if self.kept is held:
            report.note(f"note   {len(held)} image alone: it is fitted to and judged by, so the agreement is flattered")
        self._cache: dict[Path, Tensor] = {}
        self._room = CACHE_BYTES

    def _stored(self, place: Path) -> RunFolder:
        if is_run(self.asked.model):
            return RunFolder.open(self.asked.model)
        run = RunFolder(place)
        if not run.model_json.is_file():
            store_model(run, self.asked.model, load_asked(self.asked.model, trust_code=self.trust_code))
        return run

    def _size(self) -> int:
        known = Recipe.read(self.run.recipe).size if self.run.recipe.is_file() else 0
        return self.asked.size or known or (self.asked.input[2] if self.asked.input else SIZE)

    @property
    def visible(self) -> bool:
        return self.report.visible

    @property
    def judged(self) -> str:
        return f"{len(self.held)} images that the fit did not see"

    def _squares(self, paths: Sequence[Path]) -> Tensor:
        """uint8 `n 3 S S`. Raises BadInput for a file that cannot be read."""
        found = []
        for path in paths:
            square = self._cache.get(path)
            if square is None:
                square = prepared(self.reader.read(path, str(path)), self.size)
                if square.numel() <= self._room:
                    self._cache[path], self._room = square, self._room - square.numel()
            found.append(square)
        return torch.stack(found)

    def calibration(self) -> Sequence[Tensor]:
        """Batches `n 3 S S`, the first images by name."""
        chosen = self.kept[: self.asked.images]
        return [to_float(self._squares(chosen[i : i + BATCH])) for i in range(0, len(chosen), BATCH)]

    @cached_property
    def _answers(self) -> list[Tensor]:
        return list(self._run(self.network))

    @torch.no_grad()
    def _run(self, network: nn.Module) -> Iterator[Tensor]:
        starts = range(0, len(self.held), BATCH)
        with evaluating(network):
            for i in tracked(starts, "agreement", progress=self.visible):
                yield main_output(network(to_float(self._squares(self.held[i : i + BATCH]))))

    def score(self, network: nn.Module) -> Score:
        agreement = Agreement(self.measure)
        for dense, lean in zip(self._answers, self._run(network), strict=True):
            agreement.add(dense, lean)
        return Score(agreement.value, {}, {"images": len(self.held), "measure": self.measure, "value": agreement.value})

    def write(self, folder: RunFolder, network: nn.Module, plan: Plan, score: Score) -> None:
        self._write(folder, self.run, network, plan, score)

    def _write(self, folder: RunFolder, like: RunFolder, network: nn.Module, plan: Plan, score: Score) -> None:
        write_version(folder, like, network, plan)
        if self.run.recipe.is_file():
            Recipe.read(self.run.recipe).write(folder.recipe)
        write_json(folder.metrics, {self.split: score.details})

    def recover(self, fitted: RunFolder, out: Path, again: str, error: float | None = None) -> Score:
        """Train the fitted network to answer as the dense one: soft targets, and the maps of swapped blocks."""
        # In eval mode: so few images would spoil the statistics of BatchNorms, which the fit has just taken.
        student = fitted.load_model(trust_code=self.trust_code)
        order = Order(len(self.kept), min(BATCH, max(2, len(self.kept))), 0)
        total = self.asked.epochs * order.steps_per_epoch
        optimizer = torch.optim.AdamW(student.parameters(), lr=self.asked.lr or RATE, weight_decay=0.01)
        with Distillation(student, self.network, output=main_output) as distil:
            for step in tracked(range(total), "recover", progress=self.visible):
                squares = self._squares([self.kept[place] for place in order.images(step)])
                self._step(distil, student, _mirrored(to_float(squares), mix(0, step)), optimizer, step, total)
        score = self.score(student)
        self._write(RunFolder(out), fitted, student, Plan([]), score)
        return score

    def _step(self, distil: Distillation, student: nn.Module, x: Tensor, optimizer: Any, step: int, total: int) -> None:
        warm = max(1, round(_WARM * total))
        share = (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))
        for group in optimizer.param_groups:
            group["lr"] = (self.asked.lr or RATE) * share
        loss = distil(x, student(x))
        if not bool(torch.isfinite(loss)):
            raise Diverged(f"the loss is not finite at step {step} of {total}: try a smaller --lr")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def export(self, folder: RunFolder, path: Path) -> Any:
        return export(folder.load_model(trust_code=self.trust_code), self.inputs, path)


def _mirrored(images: Tensor, seed: int) -> Tensor:
    """`n 3 S S`, half of them left for right."""
    flip = torch.rand(len(images), generator=torch.Generator().manual_seed(seed)) < 0.5
    return torch.where(flip[:, None, None, None], images.flip(3), images)
