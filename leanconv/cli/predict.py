"""`leanconv predict RUN IMAGE...`: write masks, overlays and defects of images of any size, or print their class."""

import errno
import json as _json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from leanconv.cli.common import (
    Device,
    Engine,
    EngineOption,
    Json,
    Merge,
    MinArea,
    Threads,
    Threshold,
    refuse,
    report,
    set_threads,
)
from leanconv.errors import BadInput
from leanconv.files import check_run
from leanconv.text import one_line


def command(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")],
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="IMAGE...", help="Image files, or folders of images.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results. It is created.")] = Path("predictions"),
    threshold: Threshold = None,
    min_area: MinArea = None,
    merge: Merge = None,
    side: Annotated[
        int | None,
        typer.Option("--side", min=0, help="First shrink images to this longer side (default: as in training)."),
    ] = None,
    tile: Annotated[
        int | None, typer.Option("--tile", min=1, help="Side of a tile in pixels.", show_default="512")
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option("--overlap", min=0, help="Pixels that neighbouring tiles share.", show_default="64"),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", min=1, help="Tiles at a time, also of several images of one size.", show_default="1"),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            "--bits", min=8, max=16, help="Bits that 16-bit images use (default: as in training, else their own)."
        ),
    ] = None,
    trust_code: Annotated[bool, typer.Option("--trust-code", help="Run the Python file that the run names.")] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace files even if they are no earlier prediction of the same images."),
    ] = False,
    watch: Annotated[
        Path | None,
        typer.Option("--watch", metavar="DIR", help="Predict the images in DIR and all that arrive, until Ctrl-C."),
    ] = None,
    engine: EngineOption = Engine.auto,
    threads: Threads = None,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Find the defects in images. Write STEM_mask.png, STEM_overlay.png and STEM.json (box, area, score of each).

    All defects are listed in defects.csv. The verdict on each image, pass or fail, is in verdicts.csv. The run's
    recipe.toml has its rule: max_defects, max_area, fail_classes. Without any, every defect fails an image.
    A classifier's run prints class and score of each image, and writes predictions.json. It takes no mask options.
    Only earlier predictions of the same image are replaced in --out. An unusable image is reported on one line. The
    other images are still written, and the exit status is 1. --watch prints a line for each image when it is written
    (with --json an object), and takes a file once its size has not changed for half a second.
    """
    if not images and watch is None:
        raise typer.BadParameter("Missing argument 'IMAGE...', or --watch DIR.")
    if images and watch is not None:
        refuse(context, "watches a folder, and the images on the command line are not in question", "watch")
    check_run(run)
    if watch is not None and not watch.is_dir():
        raise BadInput(f"--watch {watch}: the folder does not exist")
    if images and not json and all(map(_absent, images)):  # said before PyTorch is loaded
        for path in images:
            print(f"error: {one_line(path)}: cannot be opened: {os.strerror(errno.ENOENT)}", file=sys.stderr)
        raise typer.Exit(1)
    from leanconv.cli.common import torch_device
    from leanconv.cli.engines import serving
    from leanconv.train.inference.predict import predict
    from leanconv.train.inference.work import Asked

    set_threads(threads)
    asked = Asked(
        threshold=threshold,
        min_area=min_area,
        merge=merge,
        side=side,
        tile=tile,
        overlap=overlap,
        batch=batch,
        bits=bits,
        device=str(torch_device(device)),
        trust_code=trust_code,
        overwrite=overwrite,
    )
    if watch is not None:
        from leanconv.train.inference.watch import watch as watching

        _printed(watching(run, watch, out, asked, serve=serving(engine)), out, json=json)
        return
    found = predict(run, images or [], out, **vars(asked), progress=True, serve=serving(engine))
    report(found, json=json)
    for note in found.notes:
        print(one_line(f"note   {note}"), file=sys.stderr)
    for _, reason in found.failed:
        print(f"error: {reason}", file=sys.stderr)
    if found.failed:
        raise typer.Exit(1)


def _absent(path: Path) -> bool:
    """Whether nothing is there; what cannot be looked at may be there."""
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return False


def _printed(results: Iterable[Any], out: Path, *, json: bool) -> None:
    """Print each result when it comes. Ctrl-C ends it; the exit status is 1 if an image failed."""
    from leanconv.train.inference.predict_classes import Failed

    done, failed, start = 0, 0, time.perf_counter()
    try:
        for result in results:
            if isinstance(result, Failed):
                failed += 1
                print(f"error: {result}", file=sys.stderr, flush=True)
            else:
                done += 1
            if json:
                print(_json.dumps(result.to_dict()), flush=True)
            elif not isinstance(result, Failed):
                print(one_line(str(result)), flush=True)
    except KeyboardInterrupt:
        pass
    seconds = time.perf_counter() - start
    print(f"stopped after {seconds:.0f} s: {done} of {done + failed} images written to {out}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)
