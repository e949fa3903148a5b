"""Layers timed alone, in plain PyTorch: the timer for what the fused engine cannot run (a GPU, no Halide)."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from leanconv.convert import fold_
from leanconv.copies import copied
from leanconv.deploy.failures import root_cause
from leanconv.measure.timing.latency import once_ms
from leanconv.measure.timing.paired import Turns
from leanconv.nn import Operator
from leanconv.planner.in_context import LEAST_ROUNDS, MOST_ROUNDS, in_turns
from leanconv.planner.latency import MOST_ERROR, Figure, Latencies, Whole
from leanconv.planner.trial_swaps import DENSE
from leanconv.progress import Progress
from leanconv.running import as_call, call, to_eval_, watched

HOW = "each layer alone, in plain PyTorch"


class Alone:
    """Times each layer's module on the input that it meets, without its neighbours; whole networks as they are."""

    def __init__(self, model: nn.Module, inputs: Any, names: list[str], why: str) -> None:
        """`why`: the reason why the fused engine does not time them."""
        self._model, self._inputs, self._names, self._why = model, inputs, names, why
        held = [*model.parameters(), *model.buffers()]
        on_cpu = not held or held[0].device.type == "cpu"
        self._clock = "process" if on_cpu and torch.get_num_threads() == 1 else "wall"

    def layers(self, swapped: Mapping[str, nn.Module], swaps: Mapping[str, set[str]], progress: Progress) -> Latencies:
        met = self._met()
        progress.begin("timing layers", len(self._names) + 1)
        whole = self._whole_ms()
        progress.advance()
        rows: dict[str, dict[str, Figure]] = {}
        for name in self._names:
            modules = {DENSE: self._model.get_submodule(name)}
            modules |= {to: model.get_submodule(name) for to, model in swapped.items() if name in swaps[to]}
            rows[name] = self._timed({to: _folded(module) for to, module in modules.items()}, met[name], whole)
            progress.advance(name)
        made = Latencies(whole, rows, how=HOW, notes=[f"each layer was timed alone, in plain PyTorch: {self._why}"])
        for to in swapped:
            made.uniform[to] = whole - sum(made.saved_ms(name, to) for name in self._names if to in rows[name])
        made.notes += [note for note in (made.noise(),) if note]
        return made

    def _met(self) -> dict[str, list[Tensor]]:
        """The input of every call of each layer."""
        met: dict[str, list[Tensor]] = {name: [] for name in self._names}

        def note(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
                met[name].append((given[0] if given else next(iter(named.values()))).detach().clone())

            return hook

        handles = [
            self._model.get_submodule(name).register_forward_pre_hook(note(name), with_kwargs=True)
            for name in self._names
        ]
        try:
            with watched(self._model):
                call(self._model, self._inputs)
        finally:
            for handle in handles:
                handle.remove()
        return met

    def _whole_ms(self) -> float:
        run = self._running(self._model)
        with torch.no_grad():
            return Figure.of([once_ms(run, self._clock) for _ in range(2 + LEAST_ROUNDS)][2:]).ms

    def _timed(self, modules: Mapping[str, nn.Module], inputs: list[Tensor], whole: float) -> dict[str, Figure]:
        """ms of all calls of each module, in turns, until known to `MOST_ERROR` / 4 of the network's time."""

        def running(module: nn.Module) -> Callable[[], object]:
            return lambda: [module(x) for x in inputs]

        turns = Turns({to: running(each) for to, each in modules.items()}, clock=self._clock, primed=True)
        with torch.no_grad():
            for done in range(1, MOST_ROUNDS + 1):
                turns.round()
                figures = {to: Figure.of(times) for to, times in turns.times.items()}
                if done >= LEAST_ROUNDS and all(f.error_ms <= MOST_ERROR / 4 * whole for f in figures.values()):
                    break
        return figures

    def wholes(self, models: Mapping[str, nn.Module], progress: Progress) -> dict[str, Whole | str]:
        runs = {DENSE: self._running(self._model)}
        found: dict[str, Whole | str] = {}
        for name, model in models.items():
            try:
                runs[name] = self._running(model)
                runs[name]()
            except Exception as error:
                runs.pop(name, None)
                found[name] = root_cause(error)
        return found | in_turns(Turns(runs, clock=self._clock, primed=True), DENSE, progress)

    def _running(self, model: nn.Module) -> Callable[[], object]:
        """A call of a copy in eval mode, with all exact folds."""
        made = copied(model).requires_grad_(False)
        to_eval_(made)
        fold_(made, self._inputs)
        arguments, named = as_call(self._inputs)
        return lambda: made(*arguments, **named)


def _folded(module: nn.Module) -> nn.Module:
    """The cheapest module of the same outputs in eval mode."""
    made = copied(module).requires_grad_(False)
    to_eval_(made)
    return cast(nn.Module, made.fold()) if isinstance(made, Operator) else made
