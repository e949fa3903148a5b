"""Time a training step with its batch at hand and with the loader's: how far the data hold the step back.

    python -m benchmarks.data_loading --data wafer=DIR cifar10=DIR [--threads 2] [--seconds 60] [--block 6] [--fastest]

Rows of other data or threads stay in the file.

Blocks of steps take turns: one repeats a batch that is there, one takes every batch from the loader as `train` does.
The ratio of the loader's block to the other is the median over the rounds, in wall time and in the process's computing
time. On a machine that other programs load, the second one tells: all that the loader computes is in it, also what it
computes while a core is idle. Steadier still is the computing time of a batch over that of a step. Each network is run
in eager and channels_last, the mode of a run without a race; with `--fastest` in the mode that a race with bfloat16
chooses, whose steps are the shortest.
"""

import argparse
import statistics
import sys
import time
from contextlib import closing
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.operators import commit
from leanconv.files import read_json, write_json
from leanconv.measure.device import describe
from leanconv.measure.timing.paired import Ratio
from leanconv.table import table
from leanconv.train import setup
from leanconv.train.data.ahead import DEPTH
from leanconv.train.data.batches import Order, batches
from leanconv.train.data.labelled import Labelled
from leanconv.train.optimizer import make_optimizer
from leanconv.train.recipe import Recipe
from leanconv.train.step.optimize_training import optimize_training
from leanconv.train.tasks.task import make_task, open_split

OUT = Path(__file__).parent / "results" / "data_loading.json"
# As recipes/wafer.toml at base 8; the training of a quarter-width VGG-16 on CIFAR-10.
RECIPES: dict[str, dict[str, Any]] = {
    "wafer": {"model": "leanconv:unet?base=8", "task": "segment", "size": 128, "batch": 16, "light": 0.2},
    "cifar10": {
        "model": "leanconv:vgg16?width=0.25&num_classes=10", "task": "classify", "size": 32, "batch": 128,
        "optimizer": "sgd", "light": 0.0,
    },
}  # fmt: skip
BLOCK, SIGMAS = 6, 2.0
# Images that are decoded and used: a batch costs the same, however many there are.
IMAGES = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=DIR", help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing for each row")
    parser.add_argument("--block", type=int, default=BLOCK, help="steps of a block")
    parser.add_argument("--fastest", action="store_true", help="race for the step's mode first")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    found = read_json(arguments.out) if arguments.out.exists() else {"rows": []}
    for name, _, folder in (text.partition("=") for text in arguments.data):
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            new = row(name, folder, threads, arguments.seconds, arguments.block, fastest=arguments.fastest)
            command = f"python -m benchmarks.data_loading --data {name}=DIR --threads {threads} "
            command += f"--seconds {arguments.seconds:g} --block {arguments.block}" + " --fastest" * arguments.fastest
            new |= {"command": command, "commit": commit(), "device": describe("cpu")}
            rows = [each for each in found["rows"] if place(each) != place(new)]
            found = {"rows": [*rows, new]}
            write_json(arguments.out, found)
    rows = found["rows"]
    print(shown_as_table(rows))


def place(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row is of: a new measurement of the same replaces it."""
    device = row["device"]
    return row["data"], row["threads"], "--fastest" in row["command"], device["name"], device["isa"]


def row(
    name: str, folder: str, threads: int, seconds: float, steps: int = BLOCK, *, fastest: bool = False
) -> dict[str, Any]:
    """Time both kinds of blocks in turns for some seconds, at least three rounds."""
    recipe = Recipe(data=folder, epochs=1, device="cpu", **RECIPES[name])
    samples = open_split(recipe.data, "train", task=recipe.task, size=recipe.size)
    count = keep(samples)
    order = Order(count, recipe.batch, recipe.seed)
    batch_at = setup.batch_at(recipe, samples, order)
    ready = [batch_at(number) for number in range(steps)]
    step, mode = training_step(recipe, samples, ready[0] if fastest else None)
    once = [cpu_ms(lambda n=number: batch_at(n)) for number in range(4 * steps)]  # type: ignore[misc]
    times: dict[str, list[tuple[float, float]]] = {"ready": [], "loader": []}
    with closing(batches(batch_at, 0, sys.maxsize)) as coming:
        for batch in ready[:2]:
            step(*batch)
        start = time.perf_counter()
        while len(times["ready"]) < 3 or time.perf_counter() - start < seconds:
            for _ in range(DEPTH):  # those that were made during the other block
                step(*next(coming))
            times["loader"].append(block(step, coming, steps))
            time.sleep(2 * DEPTH * statistics.median(once) / 1e3)  # the loader makes what it may, and waits
            times["ready"].append(block(step, cycle(ready), steps))
    ratios = [
        Ratio.of([pair[clock] for pair in times["loader"]], [pair[clock] for pair in times["ready"]], sigmas=SIGMAS)
        for clock in (0, 1)
    ]
    return {
        "data": name, "model": recipe.model, "size": recipe.size, "batch": recipe.batch, "threads": threads,
        "mode": mode, "images": count, "rounds": len(times["ready"]), "block": steps,
        "step_ms": statistics.median(pair[0] for pair in times["ready"]) / steps,
        "step_cpu_ms": statistics.median(pair[1] for pair in times["ready"]) / steps,
        "batch_cpu_ms": statistics.median(once),
        **{clock: vars(ratio) for clock, ratio in zip(("wall", "cpu"), ratios, strict=True)},
    }  # fmt: skip


def keep(samples: Any) -> int:
    """Decode the first images as `train` decodes all of them before its first step; their number."""
    count = min(IMAGES, len(samples))
    if isinstance(samples, Labelled):
        samples.images = torch.stack([samples.square(index) for index in range(count)])
    else:
        for index in range(count):
            samples[index]
    return count


def training_step(recipe: Recipe, samples: Any, raced: tuple[Tensor, Tensor] | None) -> tuple[Any, str]:
    """`step(images, truth)`: forward, loss, backward and update, as in `train`; its mode. `raced`: the race's batch."""
    task = make_task(recipe, recipe.task, tuple(samples.classes))
    setup.seed_everything(recipe.seed)
    net: Any = setup.build_model(recipe, False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward, mode = net, "channels_last"
    if raced is not None:
        images, truth = raced
        forward = optimize_training(net, images, lambda made: task.loss(made, truth), dtype=torch.bfloat16)
        mode = forward.mode
    optimizer = make_optimizer(net, recipe)

    def step(images: Tensor, truth: Tensor) -> None:
        loss = task.loss(forward(images.contiguous(memory_format=torch.channels_last)), truth)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, mode


def block(step: Any, source: Any, steps: int) -> tuple[float, float]:
    """Milliseconds of wall and of computing time of some steps."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step(*next(source))
    return (time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3


def cpu_ms(call: Any) -> float:
    """This thread's computing time of a call."""
    start = time.thread_time()
    call()
    return (time.thread_time() - start) * 1e3


def shown_as_table(rows: list[dict[str, Any]]) -> str:
    head = [
        "data",
        "model",
        "threads",
        "mode",
        "step ms",
        "batch ms (one core)",
        "batch / step, computing time",
        "wall, loader / ready",
        "computing time",
    ]
    cells = [
        [
            r["data"], r["model"], r["threads"], r.get("mode", "channels_last"),
            f"{r['step_ms']:.4g}", f"{r['batch_cpu_ms']:.3g}",
            f"{r['batch_cpu_ms'] / r['step_cpu_ms']:.1%}",
            *(f"{r[clock]['middle']:.3f} ({r[clock]['low']:.3f}-{r[clock]['high']:.3f})" for clock in ("wall", "cpu")),
        ]
        for r in rows
    ]  # fmt: skip
    return table(
        head, cells, note=f"medians over rounds, blocks of some steps in turns; bounds of {SIGMAS:g} standard errors"
    )


if __name__ == "__main__":
    main()
