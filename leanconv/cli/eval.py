"""`leanconv eval RUN`: score a run's weights on any split of any data (IoU and Dice, or top-1 and top-5)."""

import json as _json
import sys
from typing import Annotated

import typer

from leanconv.cli.common import (
    Device,
    Engine,
    EngineOption,
    Json,
    Merge,
    MinArea,
    Out,
    Overwrite,
    Threads,
    Threshold,
    refuse,
    set_threads,
    write_out,
)
from leanconv.files import check_run
from leanconv.text import one_line


def command(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")],
    data: Annotated[str, typer.Option("--data", help="Data reference (default: the run's training data).")] = "",
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "test",
    threshold: Threshold = None,
    min_area: MinArea = None,
    merge: Merge = None,
    per_image: Annotated[
        bool, typer.Option("--per-image", help="With --json or --out FILE.json: include each image's scores.")
    ] = False,
    trust_code: Annotated[bool, typer.Option("--trust-code", help="Run the Python file that the run names.")] = False,
    engine: EngineOption = Engine.auto,
    threads: Threads = None,
    device: Device = "cpu",
    out: Out = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Print IoU and Dice of a run on whole images: per class, over all pixels, and the mean over images.

    Below stand the defects as objects: how many are there, reported and matched, and the verdicts on the images.

    For a classifier, print top-1, top-5, the accuracy of each class and the most frequent mistakes. Option --json adds
    the confusion matrix. --engine eager scores the model's exact arithmetic; the scores of other engines agree with it
    to the rounding of a few pixels.
    """
    check_run(run)
    from leanconv.cli.common import torch_device
    from leanconv.cli.engines import serving
    from leanconv.train.inference.score import score_run

    if not json and (out is None or out.suffix != ".json"):
        refuse(context, "needs --json or --out FILE.json", "per_image")
    set_threads(threads)
    scores = score_run(
        run,
        data=data,
        split=split,
        threshold=threshold,
        min_area=min_area,
        merge=merge,
        device=str(torch_device(device)),
        trust_code=trust_code,
        say=lambda remark: print(one_line(f"note   {remark}"), file=sys.stderr),
        progress=True,
        serve=serving(engine),
    )
    numbers = {"run": run, "split": split, **scores.to_dict(per_image=per_image)}
    print(_json.dumps(numbers, indent=2) if json else scores)  # first: `out` may be unwritable
    if out is not None:
        write_out(out, scores, numbers, overwrite=overwrite)
