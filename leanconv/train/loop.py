"""fit: one training run, from a recipe to a run folder. Accelerate handles device, processes, mixed precision.

On the CPU a recipe gives bit-identical weights, resumed or not; with mode=auto, which decides by measurement, if it
decides alike: metrics.json has the mode, to be named in a recipe. Image order, augmentation, learning rate and random
state of step n depend on (seed, n) alone; `last/` stores the rest. Masks and labels belong to the task (`tasks/`).
"""

import math
import shlex
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, closing
from typing import Any

import torch
from torch import Tensor

from leanconv.errors import BadInput, Diverged, Interrupted
from leanconv.nn import Schedule
from leanconv.runs import RunFolder, load_weights
from leanconv.train import checkpoint, setup
from leanconv.train.data.batches import Batch, Order, batches, mix
from leanconv.train.distillation.guide import Guide
from leanconv.train.distillation.teacher import load_teacher, teacher_folder
from leanconv.train.interrupts import Interrupts, Stopped
from leanconv.train.optimizer import make_optimizer, rate_at
from leanconv.train.processes import Processes
from leanconv.train.progress import Reporter, write_history
from leanconv.train.recipe import Recipe
from leanconv.train.results import write_metrics
from leanconv.train.resume import check_resumed, claimed, keep_best, load_schedule, processes_note, restore_files
from leanconv.train.state import State
from leanconv.train.step.modes import BFLOAT16, Forward
from leanconv.train.step.run_mode import run_forward
from leanconv.train.tasks.task import make_task, task_of


def fit(
    recipe: Recipe,
    *,
    resume: bool = False,
    progress: bool = True,
    trust_code: bool = False,
    again: str = "",
    notes: set[str] | None = None,
) -> RunFolder:
    """Train as the recipe says, and return the run folder: best weights, history, metrics on validation and test.

    Args:
        resume: go on where `recipe.out` was left.
        progress: show the bar and a line an epoch, on standard error.
        trust_code: run the Python file that `recipe.model` names.
        again: the command that Interrupted names (default: `leanconv train RUN --resume`).
        notes: notes that were shown already and are not repeated; the new ones are added.
    Raises: BadInput for data, settings or a folder that cannot be used; Diverged for a loss that is not finite;
        Interrupted after Ctrl-C or SIGTERM, when `last/` is written.
    """
    threads = torch.get_num_threads()
    try:
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        accelerator = setup.accelerator(recipe)
        with claimed(recipe, resume, main=accelerator.is_main_process) as folder:
            return _Run(recipe, folder, accelerator, resume, trust_code, progress, notes).train(again)
    except OSError as error:
        raise BadInput(f"{error.filename or recipe.out}: {error.strerror or error}") from error
    finally:
        torch.set_num_threads(threads)


class _Run:
    """The state and the steps of one training; start reading at `train`."""

    def __init__(
        self, recipe: Recipe, folder: RunFolder, accelerator: Any, resume: bool, trust_code: bool, progress: bool,
        notes: set[str] | None,
    ) -> None:  # fmt: skip
        self.recipe, self.folder, self.accelerator = recipe, folder, accelerator
        self.processes = Processes(accelerator)
        self.main = self.processes.main
        self.report = Reporter(active=self.main, visible=progress, notes=notes)
        if note := setup.launch_note(self.processes.count):
            self.report.note(note)
        kind = task_of(recipe)
        self.data = setup.open_splits(recipe, kind, self.report, before=folder if resume else teacher_folder(recipe))
        self.watched = "val" if "val" in self.data else "test"
        self.task = make_task(recipe, kind, tuple(self.data["train"].classes), ignores=self.data["train"].ignores)
        # Before the fit, which takes minutes: it may be refused. Before the seed: building it draws random numbers.
        teacher = load_teacher(recipe, self.task, trust_code=trust_code, note=self.report.note)
        setup.seed_everything(recipe.seed)
        calibration = setup.calibration(recipe, self.data["train"], accelerator.device)
        going_on = folder if resume else None
        self.net, swaps = setup.network(
            recipe, trust_code, self.report, outputs=self.task.outputs, before=going_on, calibration=calibration
        )
        self.task.check(self.net, torch.zeros(1, 3, recipe.size, recipe.size))
        setup.check_batch(self.net, recipe, self.processes.count)
        if recipe.channels_last:
            self.net.to(memory_format=torch.channels_last)
        self.order = Order(
            len(self.data["train"]),
            recipe.batch,
            recipe.seed,
            rank=self.processes.rank,
            processes=self.processes.count,
        )
        self.batch_at = setup.batch_at(recipe, self.data["train"], self.order)
        self.per_epoch = self.order.steps_per_epoch
        self.total = recipe.steps or recipe.epochs * self.per_epoch
        self.epochs = math.ceil(self.total / self.per_epoch)
        self.accelerator.wait_for_everyone()  # until all have checked that the folder is free
        self.model, self.optimizer = self.accelerator.prepare(self.net, make_optimizer(self.net, recipe))
        self.guide = Guide(recipe, self.net, teacher)
        self.schedule = Schedule(
            self.net,
            steps_per_epoch=self.per_epoch,
            topology_epochs=recipe.topology_epochs or None,
            seed=recipe.seed,
            temperature_epochs=recipe.temperature_epochs,
        )
        self.state = State(images=len(self.data["train"]), teacher=self.guide.teacher)
        if resume and setup.last(folder).exists():  # else it was stopped before the first checkpoint: start again
            self.state = self._resumed()
        self.state.processes = self.processes.count
        if self.main:  # after the last check that may refuse the run
            setup.write_start(self.folder, recipe, self.task, setup.bits_of(self.data), swaps)
            restore_files(self.folder, self.net, self.state)
        self.forward: Forward | None = None  # in the mode of the run's steps, once that is known
        # Summed on the device: reading it at every step would stall a GPU. The saved sum is of all processes: the main
        # one continues it, the others start at zero.
        before = self.state.loss_sum * self.processes.count if self.main else 0.0
        self.loss_sum = torch.tensor(before, dtype=torch.float64, device=self.accelerator.device)

    def train(self, again: str = "") -> RunFolder:
        """Step, validate at the end of an epoch, save; at the end score the best weights on validation and test."""
        recipe, state = self.recipe, self.state
        with Interrupts() as self.interrupts, self._showing(), closing(self._batches()) as coming:
            self.report.say(setup.headline(recipe, self.net, self.data, self.total, self.epochs, self.accelerator))
            if note := setup.schedule_note(self.schedule, self.total):
                self.report.note(note)
            self.clock = time.perf_counter() - state.seconds
            while True:
                try:
                    if self.guide.pending:
                        self.guide.reconstruct_(
                            self.batch_at, self._on_device, self.processes, self.report, self._stop_at_once
                        )
                    if self._validation_is_due():
                        self._validate()
                    if state.step == self.total:
                        return self._finish()
                    self.forward = self.forward or self._fastest()
                    self._step(*next(coming))
                    if recipe.save_every and state.step % recipe.save_every == 0:
                        self._save()
                    self._stop_if_asked()
                except Stopped:
                    # During the final scoring `net` holds the best weights; the last ones are saved already.
                    if not self.guide.pending and (state.step < self.total or self._validation_is_due()):
                        self._save()
                    where = "in the block-wise phase, which begins again" if self.guide.pending else "saved"
                    raise Interrupted(
                        f"stopped at step {state.step} of {self.total}, {where}; "
                        f"go on with: {again or f'leanconv train {shlex.quote(str(self.folder.path))} --resume'}"
                    ) from None

    def _showing(self) -> AbstractContextManager[None]:
        return self.report.running(self.folder.events, self.state.step, self.total, self.task.shown[0][0])

    def _batches(self) -> Generator[Batch, None, None]:
        return batches(
            self.batch_at,
            self.state.step,
            self.total,
            workers=self.recipe.workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def _on_device(self, images: Tensor, truth: Tensor) -> Batch:
        device = self.accelerator.device
        images, truth = images.to(device, non_blocking=True), truth.to(device, non_blocking=True)
        if self.recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, truth

    def _fastest(self) -> Forward:
        """The network in the mode of the run's steps: the resumed run's, the recipe's, or the fastest here."""

        def first_batch() -> tuple[Tensor, Any]:
            images, truth = self._on_device(*self.batch_at(self.state.step))
            targets = self.guide.targets(images)

            def loss(logits: Tensor) -> Tensor:
                return self.guide.loss(self.task.loss(logits, truth), logits, targets) + self.schedule.penalty()

            return images, loss

        def on_part(mode: str, share: float) -> None:
            self.report.racing(mode, share)
            self._stop_at_once()

        left = self.total - self.state.step
        return run_forward(self.recipe, self.state, self.model, left, first_batch, self.processes, self.report, on_part)

    def _step(self, images: Tensor, truth: Tensor) -> None:
        """One update on this process's share of the batch: images `N 3 H W`, their masks `N H W` or labels `N`."""
        recipe, state, device = self.recipe, self.state, self.accelerator.device
        setup.seed_everything(mix(recipe.seed, state.step, self.processes.rank))
        images, truth = self._on_device(images, truth)
        rate = rate_at(state.step, self.total, recipe, self.per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        forward: Forward = self.forward  # type: ignore[assignment]
        targets = self.guide.targets(images, bfloat16=BFLOAT16 in forward.mode)
        logits = forward(images)
        loss = self.task.loss(logits, truth, processes=self.processes.count, total=self.processes.total)
        loss = self.guide.loss(loss, logits, targets) + self.schedule.penalty()
        self.accelerator.backward(loss)
        if recipe.clip:
            self.accelerator.clip_grad_norm_(self.net.parameters(), recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loss_sum += loss.detach()
        self.schedule.step(self._shared(loss.detach()))
        state.loss_steps += 1
        state.step += 1
        state.seconds = time.perf_counter() - self.clock
        shown = {}
        if state.step % recipe.log_every == 0 or device.type == "cpu":
            self._check_finite()
            shown = {"loss": float(loss.detach()), "score": float(self.task.batch_score(logits, truth))}
        if state.step % recipe.log_every == 0:
            names = {"loss": "loss", "score": self.task.shown[0][1]}
            self.report.log(state.step, **{f"train/{names[key]}": value for key, value in shown.items()}, lr=rate)
        self.report.step(state.step, **shown)

    def _shared(self, loss: Tensor) -> Tensor:
        """The mean loss of all processes, if the schedule needs it: all processes need the same penalty."""
        if not self.schedule.learned or self.schedule.epoch:
            return loss
        return self.processes.mean(loss)

    def _validation_is_due(self) -> bool:
        """After every `eval_every`-th epoch and at the end of the run, unless the history has it already."""
        step, every = self.state.step, self.per_epoch * self.recipe.eval_every
        due = step > 0 and (step % every == 0 or step == self.total)
        return due and (not self.state.history or self.state.history[-1]["step"] != step)

    def _validate(self) -> None:
        """Validate, append a history row, checkpoint, and keep the best weights."""
        state = self.state
        self._check_finite()
        scores = self._evaluate(self.task.evaluate, self.watched)
        row = {
            "epoch": math.ceil(state.step / self.per_epoch), "step": state.step,
            "loss": float(self.processes.mean(self.loss_sum)) / max(1, state.loss_steps),
            **{column: getattr(scores, column) for column in self.task.columns},
            "lr": rate_at(max(0, state.step - 1), self.total, self.recipe, self.per_epoch),
            "seconds": round(state.seconds, 3),
        }  # fmt: skip
        last = self.recipe.keep == "last"
        best = last or row[self.task.goal] > state.best
        state.history.append(row)
        state.loss_steps = 0
        self.loss_sum.zero_()
        if best:
            state.best, state.best_epoch = row[self.task.goal], row["epoch"]
        self._save()  # first: a run that is killed now restores the following files from it
        if self.main:
            if best:
                keep_best(self.folder, self.net)
            write_history(self.folder.history, state.history)
        self.report.epoch(row, self.epochs, self.task.shown, self.task.columns, best=best and not last)

    def _evaluate(self, measure: Any, split: str, **options: Any) -> Any:
        """Run `measure(model, samples)` on a split, every process on its share."""
        self.processes.share_buffers(self.net)
        images = len(self.data[split])

        def on_images(done: int) -> None:
            self.report.validating(done, images)
            self._stop_at_once()

        return measure(
            self.net,
            self.data[split],
            rank=self.processes.rank,
            processes=self.processes.count,
            total=self.processes.total,
            on_images=on_images,
            **options,
        )

    def _finish(self) -> RunFolder:
        """Score the best weights: thresholds and what a defect is are chosen on validation, then both splits scored."""
        self.accelerator.wait_for_everyone()
        self.guide.close()
        self.net = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False, keep_torch_compile=False)
        load_weights(self.net, self.folder.weights)
        chosen = self._evaluate(self.task.choose, "val") if "val" in self.data else self.task.unchosen()
        scores = {
            split: self._evaluate(self.task.evaluate, split, **chosen.options).to_dict()
            for split in ("val", "test")
            if split in self.data
        }
        if chosen.note:
            self.report.note(chosen.note)
        if self.main:
            write_metrics(self.folder, self.recipe, self.task, self.state, self.net, chosen.stored, scores)
        self.accelerator.wait_for_everyone()
        return self.folder

    def _save(self) -> None:
        """Checkpoint to `last/`, unless weights are not finite."""
        self._check_finite()
        # A finite loss of step n does not imply finite weights after it: check before replacing the old file.
        if not all(bool(torch.isfinite(p).all()) for p in self.net.parameters()):
            raise self._diverged("the weights are")
        self.state.loss_sum = float(self.processes.mean(self.loss_sum))
        self.state.schedule = self.schedule.state_dict()
        if self.main:
            scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None
            checkpoint.save(setup.last(self.folder), self.state, self.net, self.optimizer, scaler)

    def _resumed(self) -> State:
        """The state restored from `last/`."""
        self.guide.pending = False
        state, scaler = checkpoint.load(setup.last(self.folder), self.net, self.optimizer)
        facts = self.data["train"], self.task, self.total, self.per_epoch, self.guide.teacher
        check_resumed(state, self.recipe, self.folder, self.net, *facts)
        load_schedule(self.schedule, state, self.folder)
        if note := processes_note(state.processes, self.processes.count):
            self.report.note(note)
        if scaler and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(scaler)
        return state

    def _check_finite(self) -> None:
        """Raise Diverged in every process as soon as one has a loss that is not finite."""
        if not math.isfinite(float(self.processes.total(self.loss_sum))):
            raise self._diverged("the loss is")

    def _diverged(self, what: str) -> Diverged:
        kept = f"{setup.last(self.folder)} holds the last good checkpoint; " if self.folder.last.is_dir() else ""
        return Diverged(
            f"{what} not finite at step {self.state.step} of {self.total}; {kept}"
            f"try a smaller lr (now {self.recipe.lr:g}), clip=1, or amp=no"
        )

    def _stop_at_once(self) -> None:
        """Stop within a step's work. Of several processes each goes on to the step at which all of them stop."""
        if self.processes.count == 1 and self.interrupts.asked:
            raise Stopped

    def _stop_if_asked(self) -> None:
        if self.processes.count > 1:  # all processes stop at the same step, whichever got the signal
            if self.state.step % self.recipe.log_every:
                return
            self.interrupts.asked = self.processes.any(self.interrupts.asked)
        if self.interrupts.asked:
            raise Stopped
