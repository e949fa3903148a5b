"""What int8 costs a trained segmentation network on its test images: Dice of each engine's form against float32's.

    python -m benchmarks.int8_accuracy RUN... [--data DATA] [--engines fused openvino onnxruntime]

Each engine is asked alone, as a user asks `optimize`: ranges from images of the train split, Dice on the validation
split as the metric, `--max-loss` as its limit. A form above the limit is refused there; its figures are printed too.
The Dice of the table is that of the test split, over all pixels, which decided nothing. All images are cut to their
middle `--size` x `--size`. Figures of a run that is in the file are replaced.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import leanconv as lc
from benchmarks import results_of
from benchmarks.choices import keeping
from benchmarks.fused_engine import progress
from benchmarks.operators import commit
from leanconv.deploy.int8 import MAX_LOSS, Calibration
from leanconv.files import write_json
from leanconv.measure.device import describe
from leanconv.planner.pictures import of_size, picture_batches
from leanconv.runs import RunFolder
from leanconv.table import table
from leanconv.train.inference.score import load_scored
from leanconv.train.recipe import Recipe
from leanconv.train.tasks.decision import Threshold
from leanconv.train.tasks.evaluate import evaluate
from leanconv.train.tasks.task import open_run_data

ENGINES = ("fused", "openvino", "onnxruntime")


class Middle:
    """A data set whose images are cut to the middle square of a side. Smaller ones are left out.

    `most`: so many of them, spread evenly; 0 for all.
    """

    def __init__(self, samples: Any, side: int, most: int = 0) -> None:
        self.classes, self._side = samples.classes, side
        every = (samples[i] for i in range(len(samples)))
        kept = [sample for sample in every if min(sample.image.shape[-2:]) >= side]
        count = min(most or len(kept), len(kept))
        self._kept = [kept[i * len(kept) // count] for i in range(count)]

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Any:
        sample = self._kept[index]
        return sample._replace(image=self._middle(sample.image), mask=self._middle(sample.mask))

    def _middle(self, picture: Tensor) -> Tensor:
        top, left = ((size - self._side) // 2 for size in picture.shape[-2:])
        return picture[..., top : top + self._side, left : left + self._side]


def dice(samples: Any, threshold: Threshold) -> Callable[[nn.Module], float]:
    """The metric: a form's Dice over all pixels of a data set."""
    return lambda form: evaluate(form, samples, threshold=threshold).dice


def measured(
    folder: RunFolder, data: str, size: int, most: int, engines: list[str], max_loss: float
) -> list[dict[str, Any]]:
    """A row for each engine. Raises BadInput for a run or data that cannot be read."""
    network, threshold = load_scored(folder)
    source = data or Recipe.read(folder.recipe).data
    val, test = (Middle(open_run_data(folder, source, split), size, most) for split in ("val", "test"))
    batches = of_size(picture_batches(source, network, run=folder, size=size), size, size)
    x = batches[0][:1]
    limits: dict[str, Any] = {"data": batches, "metric": dice(val, threshold), "max_loss": max_loss}
    judge = Calibration(network, x, batches, metric=dice(test, threshold))
    with torch.no_grad():
        own = dice(test, threshold)(network)
    rows = []
    for engine in engines:
        progress(engine)
        with keeping() as forms:
            fast = lc.optimize(network, x, dtype=torch.int8, engines=[engine], budget_s=600, progress=False, **limits)
        row = {"engine": engine, "dice": own, "images": len(test), "pictures": sum(map(len, batches))}
        found = fast.choices[f"{engine} int8"]
        row |= {"val_loss": found.error, "note": found.note}
        if (form := forms.get(f"{engine} int8")) is not None:
            row["lost"] = judge.loss(form)
            if blocks := getattr(form, "blocks", None):
                row |= {"int8": blocks.int8, "in_float32": blocks.in_float32}
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> str:
    head = ["network", "engine", "Dice in float32", "lost in int8, test", "validation", "allowed", "images"]
    cells = [
        [
            row["reference"],
            row["engine"],
            f"{row['dice']:.4f}",
            f"{row['lost']:+.4f}" if "lost" in row else "-",
            "-" if row["val_loss"] is None else f"{row['val_loss']:+.4f}",
            f"{row['max_loss']:g}",
            row["images"],
        ]
        for row in rows
    ]
    return table(head, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of trained networks")
    parser.add_argument("--data", default="", help="default: the data that each run was trained on")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--most", type=int, default=0, help="images of each split, spread evenly; 0: all")
    parser.add_argument("--max-loss", type=float, default=MAX_LOSS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=results_of("int8_accuracy"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": []}
    places = {*map(str, arguments.runs), "--out", str(arguments.out)}  # folders of this machine
    words = [each for each in sys.argv[1:] if each not in places]
    report |= {"command": shlex.join(["python", "-m", "benchmarks.int8_accuracy", "RUN", *words])}
    report |= {"machine": describe("cpu")}
    for path in arguments.runs:
        folder = RunFolder.open(path)
        recipe = Recipe.read(folder.recipe)
        data = Path(arguments.data or recipe.data).name
        about = {"reference": recipe.model, "data": data, "epochs": recipe.epochs, "max_loss": arguments.max_loss}
        rows = measured(folder, arguments.data, arguments.size, arguments.most, arguments.engines, arguments.max_loss)
        report["rows"] = [row for row in report["rows"] if row["reference"] != about["reference"]]
        report["rows"] += [about | {"commit": commit()} | row for row in rows]
        write_json(arguments.out, report)
    print(show(report["rows"]))


if __name__ == "__main__":
    main()
