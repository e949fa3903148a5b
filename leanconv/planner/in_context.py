"""Layers timed inside their network, as the fused engine runs it: one program of the dense network, one per candidate.

A layer's time depends on its neighbours: which BatchNorm, activation or residual its kernel takes in, what the caches
hold. So each candidate is put into all its layers at once, the whole network is built, and every step of the program is
timed in place. |candidates| + 1 programs give the time of every layer with every candidate. The programs run in turns.
What was measured is kept in the cache folder, by the shapes of all steps, threads, machine and versions.
"""

import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from leanconv.copies import copied
from leanconv.deploy.failures import root_cause
from leanconv.engine.fused.capture.export import to_graph
from leanconv.engine.fused.execution.program import Program
from leanconv.engine.fused.ir.graph import Graph, origin
from leanconv.engine.fused.lowering.autotune import NothingRuns, autotune
from leanconv.engine.fused.lowering.samples import geometry
from leanconv.engine.fused.passes.fusion import fuse
from leanconv.engine.fused.passes.precision import lower_precision
from leanconv.engine.workbench import Workbench
from leanconv.errors import BadInput
from leanconv.kernels import cpuinfo, mask
from leanconv.measure.timing.latency import once_ms
from leanconv.measure.timing.paired import Ratio, Turns
from leanconv.planner.kept import digest, read_cached, write_cached
from leanconv.planner.latency import MOST_ERROR, Figure, Latencies, Whole
from leanconv.planner.owners import NOBODY, owners
from leanconv.planner.trial_swaps import DENSE
from leanconv.progress import Progress
from leanconv.running import Call, as_call, to_eval_
from leanconv.version import __version__

LEAST_ROUNDS, MOST_ROUNDS = 12, 60
PREPARING_S = 20.0  # seconds of autotuning, of each network
HOW = "inside the network, as the fused engine runs it"
_FORMAT = 2  # of the cached figures, and of what they count


class Built:
    """A network as the fused engine runs it: captured and fused at once, tuned and laid out by `prepare`."""

    def __init__(self, model: nn.Module, call: Call, names: list[str]) -> None:
        """Raises BadInput, or what PyTorch's capture raises, where the engine cannot run the model."""
        made = copied(model).requires_grad_(False)
        to_eval_(made)
        self.bench = bench = Workbench(made, *call, torch.get_num_threads())
        if bench.device.type != "cpu" or bench.dtype not in (torch.float32, torch.bfloat16):
            raise BadInput(f"its kernels are for float32 and bfloat16 on the CPU, not {bench.dtype} on {bench.device}")
        if bench.obstacle:
            raise BadInput(bench.obstacle)
        self._names = names
        self._read({})
        parts = [(repr(geometry(node)), sorted(self.owner[node].items())) for node in self.graph.nodes]
        self.signature = digest(parts)
        self._program: Program | None = None
        self._shares: dict[int, dict[str, float]] = {}

    def _read(self, plain: Mapping[str, str]) -> None:
        """The fused graph and the owners of its nodes; `plain`: operators that stay calls of PyTorch."""
        self.graph: Graph = fuse(to_graph(self.bench.program, None, plain))
        self.owner = owners(self.bench.program, self.graph, self._names)
        if self.bench.dtype == torch.bfloat16:
            lower_precision(self.graph, torch.bfloat16)

    @torch.no_grad()
    def prepare(self) -> Program:
        """Tune and lay out the program, once. Raises NothingRuns where PyTorch cannot run a step either."""
        if self._program is not None:
            return self._program
        plain: dict[str, str] = {}
        while True:
            try:
                runs, _ = autotune(self.graph, seconds=PREPARING_S, clock=self.bench.clock, target=self.bench.target)
                break
            except NothingRuns as failed:
                new = {origin(node): why for node, why in failed.nodes.items()}
                if new.keys() <= plain.keys():
                    raise
                plain |= new
                self._read(plain)
        program = Program(self.graph, runs, self.bench.dense)
        for _ in range(2):  # the second call follows the plan of the first
            program(*self.bench.tensors)
        # The head of a split step, which tuning adds, is of the same layers as its tail.
        by_origin = {origin(node): owner for node, owner in self.owner.items()}
        self._shares = {
            program.places[node]: self.owner.get(node) or by_origin.get(origin(node)) or {NOBODY: 1.0}
            for node in self.graph.nodes
        }
        self._program = program
        return program

    def run(self) -> None:
        """One call."""
        self.prepare()(*self.bench.tensors)

    def by_layer(self) -> dict[str, float]:
        """ms of each layer's steps in one call; copies at the ends belong to nobody."""
        found: dict[str, float] = {}
        for place, seconds in self.prepare().timed(*self.bench.tensors).items():
            for layer, share in self._shares.get(place, {NOBODY: 1.0}).items():
                found[layer] = found.get(layer, 0.0) + 1e3 * seconds * share
        return found


class InContext:
    """The timer for CPUs. Raises whatever the engine raises where it cannot run the dense network."""

    def __init__(self, model: nn.Module, inputs: Any, names: list[str]) -> None:
        """`names`: every layer that some candidate swaps."""
        self._call, self._names = as_call(inputs), names
        self.dense = self._built(model)

    def _built(self, model: nn.Module) -> Built:
        return Built(model, self._call, self._names)

    def layers(self, swapped: Mapping[str, nn.Module], swaps: Mapping[str, set[str]], progress: Progress) -> Latencies:
        networks, refused = {DENSE: self.dense}, dict[str, str]()
        progress.begin("reading the networks", len(swapped))
        for to, model in swapped.items():
            try:
                networks[to] = self._built(model)
            except Exception as error:  # one candidate less to choose from
                refused[to] = root_cause(error)
            progress.advance(to)
        measured = {to: self._cached(networks[to]) for to in networks}
        if missing := {to: networks[to] for to, found in measured.items() if found is None}:
            measured |= self._timed(missing, refused, progress)
        base = measured[DENSE]
        assert base is not None
        unit = base["whole"][0]
        rows: dict[str, dict[str, Figure]] = {name: {} for name in self._names}
        for to, found in measured.items():
            if found is None:
                continue
            for name in self._names if to == DENSE else swaps[to]:
                share, spread = found["layers"].get(name, (0.0, 0.0))
                rows[name][to] = Figure(share * unit, spread * unit)
        uniform = {to: found["whole"][1] * unit for to, found in measured.items() if found and to != DENSE}
        made = Latencies(unit, rows, uniform, refused, HOW)
        made.notes += [note for note in (made.noise(),) if note]
        made.agree_with_wholes()
        return made

    def _key(self, network: Built) -> str:
        machine = sorted(cpuinfo()[1]), cpuinfo()[0], *filter(None, [mask()])
        threads = torch.get_num_threads()
        return "latency-" + digest(
            _FORMAT, network.signature, self.dense.signature, self._names, threads, machine, torch.__version__,
            __version__,
        )  # fmt: skip

    def _cached(self, network: Built) -> dict[str, Any] | None:
        """What was measured of these shapes before, if it is sound: shares of the dense network's time."""
        found = read_cached(self._key(network))
        try:
            whole = [float(value) for value in found["whole"]]
            layers = {str(name): tuple(map(float, pair)) for name, pair in found["layers"].items()}
        except (TypeError, KeyError, ValueError, AttributeError):
            return None
        sound = len(whole) == 2 and all(len(pair) == 2 for pair in layers.values()) and min(whole) > 0
        return {"whole": whole, "layers": layers} if sound else None

    def _timed(self, missing: Mapping[str, Built], refused: dict[str, str], progress: Progress) -> dict[str, Any]:
        """Time networks in turns with the dense one; keep the result."""
        networks = {DENSE: self.dense, **missing}
        progress.begin("compiling kernels", len(networks))
        for to, network in list(networks.items()):
            try:
                network.prepare()
            except Exception as error:
                if to == DENSE:
                    raise
                refused[to] = root_cause(error)
                del networks[to]
            progress.advance(to)
        wholes, layers = _rounds(networks, progress)
        base = Figure.of(wholes[DENSE]).ms
        found: dict[str, Any] = {}
        for to, network in networks.items():
            # Shares of the dense network in the same rounds: these outlast the machine's mood of the day.
            figures = {name: Figure.of(times) for name, times in layers[to].items() if name}
            value = {
                "whole": [base, Figure.of([a / b for a, b in zip(wholes[to], wholes[DENSE], strict=True)]).ms],
                "layers": {name: (known.ms / base, known.error_ms / base) for name, known in figures.items()},
            }
            write_cached(self._key(network), value)
            if to in missing:
                found[to] = value
        return found

    def wholes(self, models: Mapping[str, nn.Module], progress: Progress) -> dict[str, Whole | str]:
        progress.begin("building the shortlist", len(models))
        found: dict[str, Whole | str] = {}
        built: dict[str, Built] = {DENSE: self.dense}
        for name, model in models.items():
            try:
                built[name] = self._built(model)
                built[name].prepare()
            except Exception as error:
                built.pop(name, None)
                found[name] = root_cause(error)
            progress.advance(name)
        self.dense.prepare()
        turns = Turns({name: each.run for name, each in built.items()}, clock=self.dense.bench.clock, primed=True)
        return found | in_turns(turns, DENSE, progress)


def in_turns(turns: Turns, dense: str, progress: Progress) -> dict[str, Whole]:
    """Rounds until every ratio to the dense network is known to 1 %, at most `MOST_ROUNDS`."""
    progress.begin("timing the shortlist", MOST_ROUNDS)
    names = [name for name in turns.calls if name != dense]
    with torch.no_grad():
        for done in range(1, MOST_ROUNDS + 1):
            turns.round()
            progress.advance()
            if done >= LEAST_ROUNDS and all(_known(turns.ratio(name, dense, sigmas=1.0)) for name in names):
                break
    base, found = turns.timing(dense).median_ms, dict[str, Whole]()
    for name in names:
        ratio = turns.ratio(name, dense, sigmas=2.0)
        found[name] = Whole(ratio.middle * base, ratio.middle, ratio.low, ratio.high)
    return found


def _known(ratio: Ratio) -> bool:
    return ratio.high / ratio.low < 1.01


def _rounds(
    networks: Mapping[str, Built], progress: Progress
) -> tuple[dict[str, list[float]], dict[str, dict[str, list[float]]]]:
    """Whole calls and steps of all networks in turns: more rounds where layers are not known well enough."""
    wholes: dict[str, list[float]] = {to: [] for to in networks}
    layers: dict[str, dict[str, list[float]]] = {to: {} for to in networks}
    orders, names = random.Random(0), list(networks)
    clock = networks[DENSE].bench.clock
    progress.begin("timing layers", MOST_ROUNDS)
    with torch.no_grad():
        for done in range(1, MOST_ROUNDS + 1):
            for to in orders.sample(names, len(names)):
                call = networks[to].run
                call()  # the caches hold this network's data, as in a row of calls
                wholes[to].append(once_ms(call, clock))
                for layer, ms in networks[to].by_layer().items():
                    layers[to].setdefault(layer, []).append(ms)
            progress.advance()
            if done >= LEAST_ROUNDS and _decided(wholes[DENSE], layers):
                break
    return wholes, layers


def _decided(dense: list[float], layers: Mapping[str, Mapping[str, list[float]]]) -> bool:
    """Whether each layer's time is known to `MOST_ERROR` / 4 of the network's."""
    limit = MOST_ERROR / 4 * Figure.of(dense).ms
    return all(Figure.of(times).error_ms <= limit for row in layers.values() for times in row.values())
