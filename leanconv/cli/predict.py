"""`leanconv predict RUN IMAGE...`: write masks, overlays and defects of images of any size, or print their class."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from leanconv.cli.common import Device, Json, Threads, report, set_threads
from leanconv.text import one_line


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of images.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results. It is created.")] = Path("predictions"),
    threshold: Annotated[
        str | None,
        typer.Option("--threshold", help="0.4, or scratch=0.4,pit=0.6 (default: chosen on validation images)."),
    ] = None,
    min_area: Annotated[
        int | None,
        typer.Option("--min-area", min=0, help="Pixels of the smallest defect (default: chosen on validation images)."),
    ] = None,
    merge: Annotated[
        int | None,
        typer.Option("--merge", min=0, help="Pixels between fragments of one defect (default: chosen likewise)."),
    ] = None,
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
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Tiles at a time.", show_default="1")] = None,
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
    threads: Threads = None,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Find the defects in images. Write STEM_mask.png, STEM_overlay.png and STEM.json (box, area, score of each).

    All defects are listed in defects.csv. The verdict on each image, pass or fail, is in verdicts.csv. The run's
    recipe.toml has its rule: max_defects, max_area, fail_classes. Without any, every defect fails an image.
    A classifier's run prints class and score of each image, and writes predictions.json. It takes no mask options.
    Only earlier predictions of the same image are replaced in --out. An unusable image is reported on one line. The
    other images are still written, and the exit status is 1.
    """
    from leanconv.cli.common import torch_device
    from leanconv.train.inference.predict import predict

    set_threads(threads)
    found = predict(
        run,
        images,
        out,
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
        progress=True,
        overwrite=overwrite,
    )
    report(found, json=json)
    for note in found.notes:
        print(one_line(f"note   {note}"), file=sys.stderr)
    for _, reason in found.failed:
        print(f"error: {reason}", file=sys.stderr)
    if found.failed:
        raise typer.Exit(1)
