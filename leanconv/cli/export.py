"""`leanconv export RUN|MODEL PATH`: write a file for other runtimes and verify its outputs and IoU or top-1.

A trained run's file takes pictures as the camera gives them. With `--raw`, and for other models, it takes tensors.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanconv.cli.common import (
    Input,
    Json,
    ModelWords,
    Threads,
    example,
    reference,
    refuse,
    report,
    set_threads,
    shape_of,
)
from leanconv.errors import BadInput
from leanconv.files import check_own

if TYPE_CHECKING:
    from torch import nn

    from leanconv.deploy.export import Check, Exported
    from leanconv.train.tasks.decision import Threshold


def command(
    context: typer.Context,
    model: ModelWords,
    path: Annotated[Path, typer.Argument(help="The file to write: .onnx, .xml (OpenVINO) or .pt2 (torch.export).")],
    raw: Annotated[
        bool, typer.Option("--raw", help="A run's network alone: normalised float N,C,H,W in, logits out.")
    ] = False,
    input: Input = None,
    dynamic: Annotated[
        str, typer.Option("--dynamic", help="Dynamic axes: batch,height,width (a raw run's default), or none.")
    ] = "",
    data: Annotated[
        str, typer.Option("--data", help="Data on which IoU and Dice must match (default: the run's training data).")
    ] = "",
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "val",
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantise the file (.xml by NNCF, .onnx by ONNX Runtime), judged on --data.")
    ] = False,
    max_loss: Annotated[
        float, typer.Option("--max-loss", help="With --int8: the largest loss of Dice or top-1; .01 is one point.")
    ] = 0.005,
    outputs_only: Annotated[
        bool, typer.Option("--outputs-only", help="Compare outputs only, for example if the run's data is missing.")
    ] = False,
    trust_code: Annotated[bool, typer.Option("--trust-code", help="Run the Python file that the run names.")] = False,
    threads: Threads = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file at PATH even if leanconv did not write it.")
    ] = False,
    json: Json = False,
) -> None:
    """Write a trained RUN or any MODEL as a file for other runtimes.

    A run's file takes uint8 images N,H,W,3 of any size and gives probabilities. Padding and normalisation are inside,
    threshold and class names in its metadata. infer.py beside it writes the masks of `leanconv predict`, without
    leanconv.

    The file is compared with the model on random inputs at several sizes. A run's file must also match in IoU and Dice
    (a classifier's: top-1) on validation images, and in the classes of pixels. If it does not, nothing is written.

    --int8 takes ranges from the images of the train split, and measures the loss of Dice or top-1 on --split. Where the
    images have no labels, it is the loss of agreement with the network. For a MODEL, or with --raw, it is the relative
    squared error of the outputs. Above --max-loss nothing is written, and the layers that cost most are named.
    """
    check_own(path, overwrite, *(path.parent / name for name in _weights_of(path)))
    if not int8:
        refuse(context, "is for --int8", "max_loss")
    if outputs_only:
        refuse(context, "has no effect with --outputs-only", *(["split"] if int8 else ["data", "split"]))
    set_threads(threads)
    name = reference(model)
    run = _Run(name) if Path(name).is_dir() else None
    if run and run.trained and not raw:
        refuse(context, "needs --raw, since the file takes images of any size", "input", "dynamic")
        check_own(path.parent / "infer.py", overwrite)
        source = _source(run, data, outputs_only, int8)
        limit = max_loss if int8 else None
        report(_for_cameras(run, path, source, split, outputs_only, trust_code, limit), json=json)
        return
    if not run:
        refuse(context, f"is for run folders, and {name} is none", "raw")
    from leanconv.deploy import export
    from leanconv.runs import load

    network = run.load(trust_code) if run else load(name, trust_code=trust_code)
    axes = _axes(dynamic, run)
    inputs, check = example(shape_of(input, [name])), None
    source = _source(run, data, outputs_only, int8) if run else data
    if not source:
        refuse(context, "needs --data, which is missing", "split")
    if int8:
        refuse(context, "is for labels, and a network alone is judged by its outputs", "split")
        if not source:
            raise BadInput("--int8 takes its ranges from images: give --data, a few dozen are enough")
        report(_int8(name, run, network, inputs, path, axes, source, max_loss), json=json)
        return
    if source and not outputs_only:
        same = _same_top1 if run and run.task == "classify" else _same_scores
        check = same(name, source, split, run.threshold if run else None, axes, inputs.shape)
    report(export(network, inputs, path, dynamic=axes, check=check), json=json)


def _for_cameras(
    run: "_Run", path: Path, source: str, split: str, outputs_only: bool, trust_code: bool, max_loss: float | None
) -> "Exported":
    """Write a run's file for cameras, compared with `leanconv predict` on real images. `max_loss`: in int8."""
    from leanconv.deploy.camera import export_camera
    from leanconv.train.inference.contract import contract_of, same_masks, same_top1
    from leanconv.train.tasks.task import open_run_data

    network = run.load(trust_code)
    contract, check = contract_of(run.folder, network, run.threshold), None
    if max_loss is not None:
        from leanconv.deploy.int8.export import Int8
        from leanconv.planner.int8 import judge_of
        from leanconv.planner.pictures import camera_frames

        check = None if outputs_only else judge_of(network, contract, run.folder, source, split)
        return export_camera(
            network, contract, path, check=check, int8=Int8(camera_frames(source, run.folder, "train"), max_loss)
        )
    if not outputs_only:
        samples = open_run_data(run.folder, source, split)
        masks = run.task == "segment"
        check = same_masks(network, contract, samples, split) if masks else same_top1(contract, samples, split)
    return export_camera(network, contract, path, check=check)


def _int8(
    name: str, run: "_Run | None", network: "nn.Module", inputs: Any, path: Path, axes: tuple[str, ...], source: str,
    max_loss: float,
) -> "Exported":  # fmt: skip
    """Write a network alone in int8, judged by the error of its outputs."""
    import torch

    from leanconv.deploy import export
    from leanconv.planner.pictures import of_size, picture_batches

    data = picture_batches(source, network, run=run.folder if run else None, size=inputs.shape[-1])
    data = of_size(data, *inputs.shape[-2:])
    return export(network, inputs, path, dynamic=axes, dtype=torch.int8, data=data, max_loss=max_loss)


def _source(run: "_Run", data: str, outputs_only: bool, int8: bool) -> str:
    """The data of calibration and comparison. Raises BadInput if there is none and it is needed."""
    source = data or run.data
    if not source and (int8 or not outputs_only):
        instead = "" if int8 else ", or --outputs-only"
        raise BadInput(f"{run.folder.path} does not name its training data: give --data{instead}")
    return source


def _weights_of(path: Path) -> tuple[str, ...]:
    """Return the name of the weight file that an export with this suffix has or may have."""
    return {".xml": (f"{path.stem}.bin",), ".onnx": (f"{path.name}.data",)}.get(path.suffix, ())


class _Run:
    """The facts that an export needs from a run folder: data, threshold, task. Missing ones are empty."""

    def __init__(self, path: str) -> None:
        from leanconv.runs import RunFolder
        from leanconv.train.inference.score import stored_threshold
        from leanconv.train.recipe import Recipe
        from leanconv.train.tasks.task import run_task

        self.folder = folder = RunFolder.open(path)
        recipe = Recipe.read(folder.recipe) if folder.recipe.is_file() else None
        self.data = recipe.data if recipe else ""
        self.threshold, self.task = stored_threshold(folder), run_task(folder)
        self.trained = recipe is not None or bool(folder.read_model().task)  # not a model that `convert` wrote

    def load(self, trust_code: bool) -> "nn.Module":
        """Return the network, and store the threshold that belongs to these weights."""
        from leanconv.train.inference.score import load_scored

        model, self.threshold = load_scored(self.folder, trust_code=trust_code)
        return model


def _axes(dynamic: str, run: _Run | None) -> tuple[str, ...]:
    if not dynamic:
        return ("batch", "height", "width") if run and run.data and run.task == "segment" else ("batch",)
    return () if dynamic == "none" else tuple(word.strip() for word in dynamic.split(",") if word.strip())


def _same_top1(
    run: str, source: str, split: str, threshold: "Threshold", axes: tuple[str, ...], shape: tuple[int, ...]
) -> "Check":
    """Return a check of top-1 on a split. A model with a fixed batch gets that many images at a time."""
    from leanconv.deploy.pieces import Filled
    from leanconv.runs import RunFolder
    from leanconv.train.tasks.classify import evaluate
    from leanconv.train.tasks.task import open_run_data

    samples = open_run_data(RunFolder.open(run), source, split)
    if shape[2:] != (samples.size, samples.size):
        raise BadInput(f"--input {','.join(map(str, shape))}: top-1 is checked on {samples.size}x{samples.size} images")

    def check(model: "nn.Module") -> dict[str, float]:
        if "batch" in axes:
            return {f"{split} top-1": evaluate(model, samples).top1}
        return {f"{split} top-1": evaluate(Filled(model, shape[0]), samples, batch=shape[0]).top1}

    return check


def _same_scores(
    run: str, source: str, split: str, threshold: "Threshold", axes: tuple[str, ...], shape: tuple[int, ...]
) -> "Check":
    """Return a check of IoU and Dice on a split. A model of fixed size gets the images in tiles of that size."""
    from leanconv.deploy.pieces import Pieces
    from leanconv.runs import RunFolder
    from leanconv.train.data.samples import open_data
    from leanconv.train.tasks.evaluate import evaluate
    from leanconv.train.tasks.task import open_run_data

    own = Path(run).is_dir()
    samples = open_run_data(RunFolder.open(run), source, split) if own else open_data(source, split)

    def check(model: "nn.Module") -> dict[str, float]:
        form: Any = model
        if not {"batch", "height", "width"} <= set(axes):
            form = Pieces(model, shape[2], shape[3], None if "batch" in axes else shape[0])
        scores = evaluate(form, samples, threshold=threshold)
        return {f"{split} IoU": scores.iou, f"{split} Dice": scores.dice, f"{split} mean IoU": scores.mean_iou}

    return check
