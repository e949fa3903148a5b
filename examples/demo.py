"""From a U-Net to a leaner, compared, checked and exported U-Net in a few minutes: `make demo`.

Reads as an example of the library: train, report, export and predict are one call each. Everything is written
to runs/demo; what an earlier demo left there is kept beside it, under the next free number.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

import leanconv as lc
from leanconv.errors import LeanconvError
from leanconv.report import compare_runs, write_report
from leanconv.runs import RunFolder
from leanconv.train.data.samples import open_data
from leanconv.train.inference.predict import predict
from leanconv.train.inference.score import stored_threshold
from leanconv.train.loop import fit
from leanconv.train.recipe import Recipe
from leanconv.train.synthetic.wafer import wafer
from leanconv.train.tasks.evaluate import evaluate

RECIPE = "demo"  # built in: `leanconv recipes demo` prints it
OUT = Path("runs/demo")
LEAN = "&conv=splconv(alpha=0.5)"  # every 3x3 convolution but the first and the last becomes the paper's


def demo(out: Path = OUT, recipe: Recipe | None = None, budget_s: float = 20.0) -> Path:
    """Train two models, compare, optimise, export, predict. Returns the path of the HTML report."""
    recipe = recipe or Recipe.read(RECIPE)
    kept = set_aside(out)
    if kept:
        print(f"{out} was there already: it is now {kept}")

    say("Train a U-Net, and its twin with SPLConv in place of the 3x3 convolutions")
    dense = fit(replace(recipe, out=str(out / "unet")))
    lean = fit(replace(recipe, out=str(out / "splconv"), model=recipe.model + LEAN))

    say(
        "Compare: size, arithmetic, IoU and Dice on unseen pictures, frame rate in PyTorch and in the fastest form here"
    )
    report = compare_runs([dense, lean], budget_s=budget_s / 4, optimize_s=2.5 * budget_s)
    report.title = "A U-Net and its SPLConv twin"
    page = write_report(report, out / "report.html")
    print(report)

    say("Optimised, in one call of leanconv.optimize: what was tried for the SPLConv U-Net, and what it runs in")
    print(replace(report.optimised["splconv"].choices, blocks=None))  # with them it tells every layer's form too

    say("Export: a file is kept only if its outputs, IoU and Dice are the model's")
    model, x = lean.load_model(), torch.randn(1, 3, recipe.size, recipe.size)
    for suffix in ("onnx", "xml"):
        print(
            lc.export(
                model,
                x,
                lean.export / f"model.{suffix}",
                dynamic=("batch", "height", "width"),
                check=scores(lean, recipe.data),
            )
        )

    say("Predict: the defects of a picture larger than any seen in training")
    picture, (image, _, kinds) = out / "picture.png", wafer(1, size=256)
    Image.fromarray(image).save(picture)
    print(f"in the picture: {' and '.join(kinds)}")
    print(predict(lean, [picture], out / "predictions"))
    return page


def scores(run: RunFolder, data: str) -> Callable[[torch.nn.Module], dict[str, float]]:
    """What an exported file must reach as the model does: IoU and Dice on the validation pictures."""
    samples, threshold = open_data(data, "val"), stored_threshold(run)

    def check(model: torch.nn.Module) -> dict[str, float]:
        found = evaluate(model, samples, threshold=threshold)
        return {"IoU": found.iou, "Dice": found.dice}

    return check


def set_aside(out: Path) -> Path | None:
    """Rename a folder that is in the way to out-1, out-2, ...; nothing is deleted."""
    if not out.exists():
        return None
    number = 1
    while (kept := out.with_name(f"{out.name}-{number}")).exists():
        number += 1
    return out.rename(kept)


def say(step: str) -> None:
    """A headline above each part."""
    print(f"\n== {step}", flush=True)


def what_next(page: Path) -> str:
    """The same with one's own images, word for word."""
    command = Path(sys.executable).with_name("leanconv")
    leanconv = str(command.relative_to(Path.cwd())) if command.is_relative_to(Path.cwd()) else "leanconv"
    out = page.parent
    return f"""
The report: open {page} in a browser. The overlay of the picture: {out / "predictions"}.
So few steps only show the way; the recipe wafer trains for longer.

Next, with your own images: a folder DIR with DIR/images/*.png and DIR/masks/*.png (same names; white = defect).
  {leanconv} train wafer data=DIR out=runs/lean --also-dense
  {leanconv} report runs/lean-dense runs/lean --out report.html
  {leanconv} predict runs/lean NEW_IMAGES --out predictions
  {leanconv} export runs/lean lean.onnx
A model of your own, or timm's: what could be swapped in it?
  {leanconv} plan timm:resnet18 --to "hetconv(part=4)\""""


def main() -> int:
    """Run the demo; the exit status of the process."""
    start = time.perf_counter()
    try:
        page = demo()
    except KeyboardInterrupt:
        print(f"\nstopped; what was finished lies in {OUT}. Start again with: make demo", file=sys.stderr)
        return 130
    except LeanconvError as error:  # training saves and says how to go on; any other says what to do
        print(f"\n{error}", file=sys.stderr)
        return 1
    print(what_next(page))
    print(f"\n{time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
