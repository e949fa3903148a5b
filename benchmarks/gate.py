"""Why the softmax gate of SPConv and SPLConv stops the learning, and how far a start without it gets.

    python -m benchmarks.gate vgg "CIFAR?val=0" --measure
    python -m benchmarks.gate vgg "CIFAR?val=0" --starts full half quiet --seeds 0 1
    python -m benchmarks.gate unet WAFER --steps 87

A start is `full` (the operator with its usual weights), `quiet` (the operator after `leanconv.nn.quiet_gates_`), `half`
(a gate of one half throughout, which is not the operator), or a share of the steps in which the gate comes on: then its
logits are multiplied by a factor that grows linearly from 0 to 1.

Every run is trained on one thread, with a checkpoint every 20 steps. A killed benchmark can be continued, and every
finished run updates benchmarks/results/gate.json. The loss of a run is the mean over its last 20 training steps. Its
score is top-1 on 2,000 test images, or Dice over all pixels of the validation split, at the last weights. Its gate is
the mean of |g - 1/2| over the gated layers, before the first step and after the last, on the first training batch.
`--measure` trains nothing: it looks at untrained networks, layer by layer (`benchmarks/gate_layers.py`).
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gate_layers import blended, gates, measure, tempered
from leanconv.files import read_json, write_json
from leanconv.measure.device import describe
from leanconv.nn import quiet_gates_
from leanconv.runs import load
from leanconv.table import table
from leanconv.train import setup
from leanconv.train.data.batches import Batch, Order, mix
from leanconv.train.data.labelled import Labelled, Part
from leanconv.train.optimizer import make_optimizer, rate_at
from leanconv.train.recipe import Recipe
from leanconv.train.tasks.task import make_task, open_split

RESULTS = Path(__file__).parent / "results" / "gate.json"
EVERY, TEST_IMAGES = 20, 2000
CIFAR = {
    "task": "classify", "size": 32, "batch": 128, "optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True,
    "weight_decay": 5e-4, "warmup": 0.1, "light": 0.0,
}  # fmt: skip
WAFER = {"task": "segment", "size": 128, "batch": 16, "lr": 2e-3}
# The network without its conv=, the settings of recipes/cifar10_short.toml and recipes/wafer.toml, the scored split.
NETWORKS: dict[str, tuple[str, dict[str, Any], str]] = {
    "vgg": ("leanconv:vgg16_cifar?width=0.25", CIFAR, "test"),
    "resnet": ("leanconv:resnet20_cifar", CIFAR, "test"),
    "unet": ("leanconv:unet?base=8", WAFER, "val"),
}
OPERATORS = ("spconv", "splconv")


@dataclass(frozen=True)
class Job:
    """One training run."""

    network: str
    operator: str
    start: str
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """Of its checkpoint."""
        word = "".join(letter if letter.isalnum() else "-" for letter in self.operator)
        return f"{self.network}-{word}-{self.start}-seed{self.seed}-{self.steps}"


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    report = read_json(RESULTS) if RESULTS.exists() else {"machine": describe(), "layers": [], "runs": []}
    _, settings, scored = NETWORKS[arguments.network]
    recipe = Recipe.of({**settings, "data": arguments.data, "steps": arguments.steps, "keep": "last"})
    samples = open_split(recipe.data, "train", task=recipe.task, size=recipe.size)
    samples.check()
    if arguments.measure:
        batches = list(_batches(recipe, samples, 0, arguments.batches))
        for operator in arguments.operators:
            network = reference(arguments.network, operator)
            report["layers"] = [row for row in report["layers"] if row["network"] != network] + measure(
                network, make_task(recipe, recipe.task, samples.classes), batches
            )
            write_json(RESULTS, report)
    else:
        judged = None
        for seed in arguments.seeds:
            for operator in arguments.operators:
                for start in arguments.starts:
                    job = Job(arguments.network, operator, start, seed, arguments.steps)
                    if any(_is(row, job) for row in report["runs"]):
                        continue
                    judged = judged or _judged(recipe, scored)
                    report["runs"].append(train(job, recipe, samples, judged, Path(arguments.out)))
                    write_json(RESULTS, report)
    print(show(report))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=list(NETWORKS))
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--starts", nargs="+", default=["full", "half", "quiet"], help="full, half, quiet, a share")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--operators", nargs="+", default=list(OPERATORS))
    parser.add_argument("--measure", action="store_true", help="look at untrained networks instead")
    parser.add_argument("--batches", type=int, default=8, help="that --measure takes; of one there are no gradients")
    parser.add_argument("--out", default="runs/benchmarks/gate", help="folder of the checkpoints")
    return parser.parse_intermixed_args()


def reference(network: str, operator: str) -> str:
    """Return the reference of a network built from an operator."""
    name = NETWORKS[network][0]
    return f"{name}{'&' if '?' in name else '?'}conv={operator}"


def _is(row: dict[str, Any], job: Job) -> bool:
    return all(row[key] == value for key, value in vars(job).items())


def _batches(recipe: Recipe, samples: Any, start: int, stop: int) -> Iterator[Batch]:
    order = Order(len(samples), recipe.batch, recipe.seed)
    return map(setup.batch_at(recipe, samples, order), range(start, stop))


def _judged(recipe: Recipe, split: str) -> Any:
    """The split that is scored; of a classification the first images alone."""
    samples = open_split(recipe.data, split, task=recipe.task, size=recipe.size)
    if isinstance(samples, Labelled):
        samples = Labelled(Part(samples.source, range(min(TEST_IMAGES, len(samples)))), samples.classes, recipe.size)
    samples.check()
    return samples


@contextmanager
def gate_at(start: str, step: int, steps: int) -> Iterator[None]:
    """Within it, layers blend as the start has it at a step."""
    if start in ("full", "quiet"):
        yield
        return
    strength = 0.0 if start == "half" else min(1.0, step / (float(start) * steps))
    with blended(tempered(strength)):
        yield


def train(job: Job, recipe: Recipe, samples: Any, judged: Any, out: Path) -> dict[str, Any]:
    """Train a run to its end, from its checkpoint if there is one, and score it."""
    recipe = Recipe.of({**vars(recipe), "seed": job.seed, "model": reference(job.network, job.operator)})
    setup.seed_everything(job.seed)
    model = load(recipe.model).train().to(memory_format=torch.channels_last)
    if job.start == "quiet":
        quiet_gates_(model)
    first = next(iter(_batches(recipe, samples, 0, 1)))[0].contiguous(memory_format=torch.channels_last)
    gate = {"start": gates(model, first)}
    optimizer = make_optimizer(model, recipe)
    task = make_task(recipe, recipe.task, samples.classes)
    losses: list[float] = []
    seconds, path = 0.0, out / f"{job.name}.pt"
    if path.exists():
        kept = torch.load(path, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        losses, seconds = kept["losses"], kept["seconds"]
    before = time.process_time()
    for images, truth in _batches(recipe, samples, len(losses), job.steps):
        setup.seed_everything(mix(job.seed, len(losses), 0))
        for group in optimizer.param_groups:
            group["lr"] = rate_at(len(losses), job.steps, recipe)
        with gate_at(job.start, len(losses), job.steps):
            loss = task.loss(model(images.contiguous(memory_format=torch.channels_last)), truth)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        if len(losses) % EVERY == 0:
            seconds, before = seconds + time.process_time() - before, time.process_time()
            _keep(path, model, optimizer, losses, seconds)
            print(f"{job.name}: step {len(losses)}, loss {statistics.fmean(losses[-EVERY:]):.3f}", flush=True)
    with gate_at(job.start, job.steps, job.steps):
        scores = task.evaluate(model, judged)
    gate["end"] = gates(model, first)
    return {
        **vars(job), "reference": recipe.model, "loss": statistics.fmean(losses[-EVERY:]),
        "curve": [round(statistics.fmean(losses[i : i + EVERY]), 4) for i in range(0, job.steps, EVERY)],
        "score": {task.goal: getattr(scores, task.goal)}, "gate": gate, "cpu_seconds": round(seconds),
    }  # fmt: skip


def _keep(path: Path, model: Any, optimizer: Any, losses: list[float], seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    torch.save(
        {
            "model": model.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses, "seconds": seconds,
        },
        draft,
    )  # fmt: skip
    draft.replace(path)


def show(report: dict[str, Any]) -> str:
    """Format the two tables of a report."""
    layers = [
        [
            row["network"].partition(":")[2],
            row["layer"],
            row["variant"],
            *("-" if row[key] is None else f"{row[key]:.3f}" for key in SHOWN),
        ]
        for row in report["layers"]
        if row["last"]
    ]
    runs = [
        [row["network"], row["operator"], row["start"], row["steps"], row["seed"], f"{row['loss']:.3f}",
         *(f"{key} {value:.3f}" for key, value in row["score"].items()), _gate(row)]
        for row in sorted(report["runs"], key=lambda row: [row[k] for k in ("network", "operator", "steps", "start")])
    ]  # fmt: skip
    return "\n\n".join(
        [
            table(["network", "last layer", "gate", *SHOWN], layers),
            table(["network", "operator", "start", "steps", "seed", "loss", "score", "gate"], runs),
        ]
    )


def _gate(row: dict[str, Any]) -> str:
    """From the start to the end of a run, over its layers."""
    if "gate" not in row:
        return "-"
    start, end = (statistics.fmean(row["gate"][when].values()) for when in ("start", "end"))
    return f"{start:.3f} -> {end:.3f}"


SHOWN = ("between", "common", "rank", "cosine", "signal_to_noise")

if __name__ == "__main__":
    main()
