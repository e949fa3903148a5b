"""Schedule: what changes from step to step in operators that are trained in stages: ODConv's temperature, LHC's masks.

With e the epoch, i the step, I the steps of `temperature_epochs`, ten:

    ODConv   T = 1 + (T0 - 1) · max(0, (I - i) / I)      (eval: 1)
    LHC 1    a filter's mask is on with probability e/20, drawn at the start of an epoch; from epoch 20 on always
             penalty = min(e, 20) · 4/20 · scale0 · (0.01 F + 0.99 |density - S|)
             S = live taps / all taps of all LHC layers, F likewise with each layer weighed by its output's area
             scale0 = mean loss of epoch 0 / (0.01 + 0.99 · max(|1 - density|, density))
    LHC 2    the scores are frozen, all masks on, no penalty: the weights are fine-tuned
Source: the authors' `utils/misc.py` (ODConv) and `LhcUpdate`, `train.py` (LHC: stage 1 has 100 epochs there).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import BadCheckpoint, BadInput
from leanconv.nn.lhconv import LHConv2d
from leanconv.nn.odconv import ODConv2d

TEMPERATURE_EPOCHS = 10
WARMUP_EPOCHS = 20
SHARES = (0.01, 0.99)  # of F and of the distance to the target
GROWTH = 4.0  # the penalty's weight once warm; the authors mark it doubtful


class Schedule:
    """Drives every ODConv and LHC of a model; does nothing for a model that has none. Two lines of a training loop:

        schedule = Schedule(model, steps_per_epoch=len(batches))
        for x, target in batches:
            loss = criterion(model(x), target) + schedule.penalty()
            ...                                  # backward, optimizer.step()
            schedule.step(loss)

    Everything follows from the number of steps done, the seed and the mean loss of epoch 0, so that a resumed run goes
    on with the same masks. Processes with the same seed draw the same masks.

    Args:
        model: as it is trained; operators inside are found by their class, once.
        steps_per_epoch: optimizer steps an epoch has.
        topology_epochs: LHC's stage 1; None never freezes the scores.
        temperature_epochs: in which ODConv's T falls to 1, the authors' ten; a training of fewer epochs needs fewer,
            since in eval T = 1 whatever it was in training.
        seed: of the draws of LHC's warm-up.
    Raises: BadInput for LHC layers that aim at different densities: the penalty knows one.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        steps_per_epoch: int,
        topology_epochs: int | None = 100,
        seed: int = 0,
        temperature_epochs: float = TEMPERATURE_EPOCHS,
    ) -> None:
        if steps_per_epoch < 1:
            raise BadInput(f"steps_per_epoch={steps_per_epoch} must be at least 1")
        if not 0 < temperature_epochs < math.inf:
            raise BadInput(f"temperature_epochs={temperature_epochs} must be above 0")
        self.temperature_epochs = temperature_epochs
        self.steps_per_epoch, self.topology_epochs, self.seed = steps_per_epoch, topology_epochs, seed
        self.dynamic = [m for m in model.modules() if isinstance(m, ODConv2d)]
        self.learned = [m for m in model.modules() if isinstance(m, LHConv2d)]
        densities = sorted({m.density for m in self.learned})
        if len(densities) > 1:
            raise BadInput(f"the LHC layers aim at densities {densities}: give all the same density=")
        self.density = densities[0] if densities else -1
        self._trainable = [m.scores.requires_grad for m in self.learned]  # what stage 1 goes back to
        self.steps, self._loss_sum = 0, 0.0
        self._sum: Tensor | float = 0.0
        self._apply(new_epoch=True)

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return self.steps // self.steps_per_epoch

    @property
    def stage(self) -> int:
        """LHC's: 1 while the topology is learned, 2 once it is frozen."""
        return 1 if self.topology_epochs is None or self.epoch < self.topology_epochs else 2

    def penalty(self) -> Tensor | float:
        """What to add to this step's loss. 0.0 without LHC layers, in epoch 0, in stage 2 and without a target."""
        weight = self._penalty_weight()
        if weight == 0.0:
            return 0.0
        live = [layer.mask().sum() for layer in self.learned]
        areas = [layer.output_area for layer in self.learned]
        if not all(areas):
            raise BadInput("an LHC layer was not run in train mode yet: take the penalty after the model's forward")
        totals = [layer.weight.numel() for layer in self.learned]
        weighed = _total([n * area for n, area in zip(live, areas, strict=True)])
        f = weighed / sum(n * area for n, area in zip(totals, areas, strict=True))
        s = _total(live) / sum(totals)
        return weight * (SHARES[0] * f + SHARES[1] * (self.density - s).abs())

    def _penalty_weight(self) -> float:
        if not self.learned or self.density == -1 or self.stage == 2 or self.epoch == 0:
            return 0.0
        largest = SHARES[0] + SHARES[1] * max(abs(1 - self.density), self.density)
        scale = self._loss_sum / self.steps_per_epoch / largest
        return min(self.epoch, WARMUP_EPOCHS) * (GROWTH / WARMUP_EPOCHS) * scale

    def step(self, loss: Tensor | float) -> None:
        """Say that an optimizer step was made with this loss; sets everything for the next one."""
        if self.learned and self.epoch == 0:
            self._sum = self._sum + (loss.detach().double() if isinstance(loss, Tensor) else loss)
            if self.steps + 1 == self.steps_per_epoch:
                self._loss_sum = float(self._sum)  # the one time a device has to answer
        self.steps += 1
        self._apply(new_epoch=self.steps % self.steps_per_epoch == 0)

    def _apply(self, *, new_epoch: bool) -> None:
        last = self.temperature_epochs * self.steps_per_epoch
        cold = max(0.0, (last - self.steps) / last)
        for layer in self.dynamic:
            layer.temperature = 1.0 + (layer.start_temperature - 1.0) * cold
        if not new_epoch:
            return
        share = min(1.0, self.epoch / WARMUP_EPOCHS) if self.stage == 1 else 1.0
        for index, (masked, trainable) in enumerate(zip(self.learned, self._trainable, strict=True)):
            masked.scores.requires_grad_(trainable and self.stage == 1)
            dice = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) * 65_537 + index)
            drawn = torch.rand(masked.out_channels, generator=dice) < share
            masked.enabled.copy_(drawn)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON or any checkpoint."""
        loss_sum = self._loss_sum if self.epoch else float(self._sum)
        return {"steps": self.steps, "seed": self.seed, "loss_sum": loss_sum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken: temperatures, masks and frozen scores are set. Raises BadCheckpoint."""
        if set(state) != set(self.state_dict()):
            raise BadCheckpoint(f"not a state of Schedule: {str(state)[:120]}")
        whole, loss_sum = [type(state[key]) is int for key in ("steps", "seed")], state["loss_sum"]
        if not all(whole) or type(loss_sum) not in (int, float):
            raise BadCheckpoint(f"not a state of Schedule: {str(state)[:120]}")
        if state["steps"] < 0 or not -1e300 < loss_sum < 1e300:
            raise BadCheckpoint(f"not a state of Schedule: steps={state['steps']}, loss_sum={loss_sum}")
        self.steps, self.seed = state["steps"], state["seed"]
        self._loss_sum = self._sum = float(loss_sum)
        self._apply(new_epoch=True)


def _total(numbers: list[Tensor]) -> Tensor:
    """Their sum, where the first of them is: layers may stand on several devices."""
    return torch.stack([n.to(numbers[0]) for n in numbers]).sum()
