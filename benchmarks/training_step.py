"""The training step of each operator in its best mode against the dense network's in its own best mode.

    python -m benchmarks.training_step [--networks "U-Net base 8"] [--operators splconv "hetconv(part=4)"]
        [--threads 1 2] [--rounds 7] [--words channels_last kernels] [--resume] [--out FILE]

A step is forward, loss and backward. Modes are those of `leanconv.train.step`. A mode counts if its loss and gradients
are those of the plain step. Of each network the fastest modes at a first look stay; then the operator's and the dense
network's take turns, and medians count. One thread counts its own computing time, more threads wall time. malloc keeps
freed memory, for all alike.

Peak memory is what torch's allocator holds at most during a step, beside the model: maps kept for backward, transient
ones, gradients. A library's own scratch memory is not in it; it is no function of the network's depth.

`--words` are the words of the modes to try. Without it all are, also bfloat16 and torch.compile, which takes a minute
for each row. `--resume` keeps the rows that the file has. Every row is written at once.
"""

import argparse
import random
import statistics
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import command_of, results_of
from benchmarks.cpu_kernels import keep_freed_memory
from benchmarks.operators import commit
from leanconv.errors import UnsupportedConv, error_line
from leanconv.files import read_json, write_json
from leanconv.measure import profile
from leanconv.measure.device import describe
from leanconv.measure.timing.latency import once_ms
from leanconv.measure.timing.paired import Ratio
from leanconv.measure.timing.training import peak_bytes
from leanconv.models import build
from leanconv.nn import names
from leanconv.table import si, table
from leanconv.train.data.augment import to_float
from leanconv.train.step.modes import CHANGES, EAGER, KERNELS, RECOMPUTE, WORDS, Forward, Mode
from leanconv.train.step.trial import Trial
from leanconv.train.synthetic.wafer import wafer


class Network(NamedTuple):
    """A network, its options, and its batch: images `N 3 side side`; truth is a mask, or a class of each image."""

    name: str
    options: dict[str, Any]
    batch: int
    side: int
    masks: bool


NETWORKS = {
    "U-Net base 8": Network("unet", {"base": 8}, 16, 128, True),
    "VGG-16 width 0.25": Network("vgg16_cifar", {"width": 0.25}, 128, 32, False),
    "MobileNetV1": Network("mobilenet_v1", {}, 8, 128, False),
    "U-Net base 32": Network("unet", {"base": 32}, 4, 128, True),
    "ResNet-20": Network("resnet20_cifar", {}, 128, 32, False),
}
DENSE, SIGMAS = "conv", 2.0
MORE = ("hetconv(part=8)", "splconv(alpha=0.75)", "depthwise_separable(multiplier=2)")
# Modes that take this many times the fastest at the first look do not take turns; at most so many do.
CLOSE, MOST = 1.15, 2
LOOKS = 2


def main() -> None:
    arguments = _arguments()
    keep_freed_memory()
    rows = read_json(arguments.out)["rows"] if arguments.out.exists() else []
    command = command_of("training_step")
    for name in arguments.networks:
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            about = {"network": name, "threads": threads, "device": describe("cpu"), "commit": commit()}
            dense: Racer | None = None
            for operator in arguments.operators:
                key = key_of(about | {"operator": operator})
                if arguments.resume and any(key_of(row) == key for row in rows):
                    continue
                dense = dense or Racer(name, DENSE, threads, arguments.words)
                found = (
                    measured(dense, name, operator, arguments) if operator != DENSE else dense.alone(arguments.rounds)
                )
                if found is None:
                    continue
                rows = [row for row in rows if key_of(row) != key] + [about | {"command": command} | found]
                write_json(arguments.out, {"rows": rows})
                print(line(rows[-1]), flush=True)
    print(shown([row for row in rows if row["network"] in arguments.networks]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    every = [DENSE, *(each for each in (*names(), *MORE) if each != DENSE)]
    parser.add_argument("--operators", nargs="+", default=every, help="operator strings; default: all")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--words", nargs="*", default=list(WORDS), choices=list(WORDS))
    parser.add_argument("--resume", action="store_true", help="keep the rows that --out has")
    parser.add_argument("--out", type=Path, default=results_of("training_step"))
    return parser.parse_args()


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """A row's place in the results. Many a CPU calls itself "AMD EPYC": its instructions and a mask tell them apart."""
    device = row["device"]
    machine = device["name"], device.get("isa"), device.get("max_isa")
    return row["network"], row["operator"], row["threads"], *machine


class Racer:
    """A network with one operator: its modes, each checked and looked at, and those that may be the fastest.

    Attributes:
        modes: mode -> milliseconds at the first look, or why it does not count.
        steps: the fastest modes' steps.
    """

    def __init__(self, network: str, operator: str, threads: int, words: list[str]) -> None:
        self.operator, self.clock = operator, "cpu" if threads == 1 else "wall"
        model, images, loss = subject(NETWORKS[network], operator)
        self.trial = Trial(model, images, loss)
        self.macs = profile(model, images[:1]).macs
        self.modes: dict[str, float | str] = {}
        looks: dict[str, tuple[float, Forward]] = {}
        for mode in modes(model, words):
            found = self._looked(mode)
            self.modes[mode.name] = found if isinstance(found, str) else found[0]
            if not isinstance(found, str):
                looks[mode.name] = found
        best = min(ms for ms, _ in looks.values())
        close = sorted((ms, name) for name, (ms, _) in looks.items() if ms <= CLOSE * best)[:MOST]
        self.steps = {name: self._step(looks[name][1]) for _, name in close}
        self._looks = looks

    def _looked(self, mode: Mode) -> tuple[float, Forward] | str:
        """The least time of a mode's steps, with its forward pass; or why the mode does not count."""
        forward = Forward(self.trial.model, mode, (self.trial.args, self.trial.kwargs))
        try:
            with forward.changes():
                seen = self.trial.difference(forward)
                if not seen.agrees:
                    return f"differs: {seen.name} by {seen.worst:.2g} times what is allowed"
                return min(once_ms(lambda: self.trial(forward), self.clock) for _ in range(LOOKS)), forward
        except RuntimeError as error:
            return f"does not run: {error_line(error)}"

    def _step(self, forward: Forward) -> "Step":
        return Step(self.trial, forward)

    def recomputing(self) -> dict[str, "Step"]:
        """The step that keeps less for the gradient, by its mode; none where kernels are not among those that agree."""
        if all(KERNELS not in name.split() for name in self._looks):
            return {}
        mode = Mode.parse(f"channels_last {RECOMPUTE}")
        return {mode.name: self._step(Forward(self.trial.model, mode, (self.trial.args, self.trial.kwargs)))}

    def alone(self, rounds: int) -> dict[str, Any]:
        """The dense network's own row: a look, without turns; and what our kernels do for it, in turns."""
        name = min(self.steps, key=lambda each: self.modes[each])
        return {
            "operator": self.operator, "clock": self.clock, "modes": self.modes, "best": name, "ms": self.modes[name],
            "peak_bytes": self.steps[name].peak_bytes(), "rounds": LOOKS, "kernels": self._with_kernels(rounds),
        }  # fmt: skip

    def _with_kernels(self, rounds: int) -> dict[str, Any] | None:
        """The fastest mode with our kernels against the fastest without; None where one of both is missing."""
        ours = [name for name in self._looks if KERNELS in name.split()]
        if not ours or len(ours) == len(self._looks):
            return None
        mode, without = (
            min(names, key=lambda each: self._looks[each][0]) for names in (ours, self._looks.keys() - set(ours))
        )
        steps = {name: self._step(self._looks[name][1]) for name in (mode, without)}
        times = in_turns({"own": steps}, rounds, self.clock)["own"]
        return {
            "mode": mode, "ms": statistics.median(times[mode]), "without": without,
            "without_ms": statistics.median(times[without]), "rounds": rounds,
            "of_without": vars(Ratio.of(times[mode], times[without], sigmas=SIGMAS)),
            "peak_bytes": steps[mode].peak_bytes(), "without_peak_bytes": steps[without].peak_bytes(),
        }  # fmt: skip


class Step:
    """A step in a mode. `begin` and `end` make the mode's changes of the model outside of what is timed."""

    def __init__(self, trial: Trial, forward: Forward) -> None:
        self.trial, self.forward = trial, forward

    def timed(self, clock: str) -> float:
        with self.forward.changes():
            return once_ms(lambda: self.trial(self.forward), clock)

    def peak_bytes(self) -> int:
        with self.forward.changes():
            return peak_bytes(lambda: self.trial(self.forward))


def modes(model: nn.Module, words: list[str]) -> list[Mode]:
    """Every combination of those words that are of use for the model, the simplest first."""
    useful = [word for word in words if word not in CHANGES or not CHANGES[word].why_not(model)]
    sets = [combination for count in range(len(useful) + 1) for combination in combinations(useful, count)]
    return [Mode.parse(" ".join(each) or EAGER) for each in sets]


def subject(network: Network, operator: str) -> tuple[nn.Module, Tensor, Callable[[Any], Tensor]]:
    """A model in training mode, a batch (synthetic wafers, or noise for classes), and the loss of its results.

    Raises: UnsupportedConv.
    """
    torch.manual_seed(0)
    model = build(network.name, conv=operator, **network.options).train()
    if network.masks:
        drawn = [wafer((0, place), network.side)[:2] for place in range(network.batch)]
        images, mask = (torch.from_numpy(np.stack(each)) for each in zip(*drawn, strict=True))
        mask = mask[:, None].float()
        return model, to_float(images.movedim(3, 1)), lambda y: F.binary_cross_entropy_with_logits(y, mask)
    images = torch.randn(network.batch, 3, network.side, network.side)
    classes = torch.randint(10, (network.batch,))
    return model, images, lambda y: F.cross_entropy(y, classes)


def measured(dense: Racer, network: str, operator: str, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """One row; None, and a line on standard error, where the operator does not fit the network."""
    try:
        own = Racer(network, operator, torch.get_num_threads(), arguments.words)
    except UnsupportedConv as error:
        print(f"{network}, {operator}: {error}", file=sys.stderr, flush=True)
        return None
    less = own.recomputing()
    times = in_turns({"own": own.steps, "dense": dense.steps, "less": less}, arguments.rounds, own.clock)
    least = times.pop("less")
    best = {who: min(found, key=lambda mode: statistics.median(found[mode])) for who, found in times.items()}
    own_ms, dense_ms = times["own"][best["own"]], times["dense"][best["dense"]]
    peaks = own.steps[best["own"]].peak_bytes(), dense.steps[best["dense"]].peak_bytes()
    return {
        "operator": operator, "clock": own.clock, "modes": own.modes, "best": best["own"], "dense_best": best["dense"],
        "ms": statistics.median(own_ms), "dense_ms": statistics.median(dense_ms),
        "of_dense": vars(Ratio.of(own_ms, dense_ms, sigmas=SIGMAS)), "rounds": len(own_ms),
        "peak_bytes": peaks[0], "dense_peak_bytes": peaks[1], "macs": own.macs, "dense_macs": dense.macs,
        "recompute": {
            mode: {
                "ms": statistics.median(ms), "of_dense": vars(Ratio.of(ms, dense_ms, sigmas=SIGMAS)),
                "peak_bytes": less[mode].peak_bytes(),
            } for mode, ms in least.items()
        },
    }  # fmt: skip


def in_turns(steps: dict[str, dict[str, Step]], rounds: int, clock: str) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of each step in each round. A step's first call in the other's caches is not counted."""
    every = {(who, mode): step for who, found in steps.items() for mode, step in found.items()}
    times: dict[str, dict[str, list[float]]] = {who: {mode: [] for mode in found} for who, found in steps.items()}
    orders = random.Random(0)
    for done in range(rounds + 1):
        for who, mode in orders.sample(list(every), len(every)):
            ms = every[who, mode].timed(clock)
            if done:
                times[who][mode].append(ms)
    return times


def line(row: dict[str, Any]) -> str:
    """One row as it is done."""
    words = f"{row['network']}, {row['threads']} thread(s), {row['operator']}: {row['ms']:.4g} ms in {row['best']}"
    if "of_dense" not in row:
        if found := row.get("kernels"):
            words += f"; kernels {found['ms']:.4g} ms, without {found['without_ms']:.4g} ms: "
            words += (
                f"{found['of_without']['middle']:.2f}x, memory {found['peak_bytes'] / found['without_peak_bytes']:.2f}x"
            )
        return words
    low, middle, high = (row["of_dense"][key] for key in ("low", "middle", "high"))
    words += f", dense {row['dense_ms']:.4g} ms in {row['dense_best']}: {middle:.2f}x ({low:.2f} to {high:.2f})"
    words += f", memory {row['peak_bytes'] / row['dense_peak_bytes']:.2f}x"
    for mode, found in row.get("recompute", {}).items():
        words += (
            f"; {mode} {found['of_dense']['middle']:.2f}x, memory {found['peak_bytes'] / row['dense_peak_bytes']:.2f}x"
        )
    return words


def shown(rows: list[dict[str, Any]]) -> str:
    head = [
        "network",
        "threads",
        "operator",
        "best mode",
        "step ms",
        "dense ms",
        "of dense",
        "MACs",
        "peak memory",
        "of dense",
    ]
    cells = []
    for row in sorted(
        rows, key=lambda each: (each["network"], each["threads"], each.get("of_dense", {}).get("middle", 1))
    ):
        compared = "of_dense" in row
        cells.append([
            row["network"], row["threads"], row["operator"], row["best"], f"{row['ms']:.4g}",
            f"{row['dense_ms']:.4g}" if compared else "-", f"{row['of_dense']['middle']:.2f}" if compared else "-",
            f"{row['macs'] / row['dense_macs']:.2f}" if "macs" in row else "-", si(row["peak_bytes"]) + "B",
            f"{row['peak_bytes'] / row['dense_peak_bytes']:.2f}" if compared else "-",
        ])  # fmt: skip
    note = (
        "forward, loss and backward; both in their fastest mode, in turns, medians; below 1 is less than dense; "
        "MACs: over the dense network's"
    )
    return table(head, cells, title="training step", note=note)


if __name__ == "__main__":
    main()
