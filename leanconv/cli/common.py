"""Arguments that several commands share (MODEL, `--input`, `--threads`, `--dtype`, ...), and their parsers."""

import json as _json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanconv.errors import BadInput
from leanconv.files import check_report, read_toml, write_atomic
from leanconv.text import one_line

if TYPE_CHECKING:  # import torch only when a command runs: help must be fast
    import torch
    from torch import Tensor, nn


class Dtype(StrEnum):
    """The number types in which a command can run a model."""

    float32 = "float32"
    bfloat16 = "bfloat16"


ModelWords = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL [key=value]...",
        help="A model reference (leanconv:unet, timm:resnet18, path/file.py:factory, a run folder), then its options.",
    ),
]
Input = Annotated[
    str | None,
    typer.Option("--input", metavar="N,C,H,W", help="Shape of the input (default: one image; a run's size, else 224)."),
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, max=2**12, help="CPU threads (default: torch's choice).")
]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Number type of model and input.")]
Device = Annotated[str, typer.Option("--device", help="Device: cpu, cuda, cuda:1, ...")]
ChannelsLast = Annotated[bool, typer.Option("--channels-last", help="Run model and input in channels_last.")]
Out = Annotated[Path | None, typer.Option("--out", help="Also write the report to this file (.json: numbers).")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the file at --out even if leanconv did not write it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Engine(StrEnum):
    """The engines of `optimize`, and "auto". Help must not import PyTorch; a test compares them with the real ones."""

    auto = "auto"
    eager = "eager"
    folded = "folded"
    channels_last = "channels_last"
    fused = "fused"
    openvino = "openvino"
    onnxruntime = "onnxruntime"
    compile = "compile"


ENGINES = tuple(engine.value for engine in Engine if engine is not Engine.auto)
EngineOption = Annotated[
    Engine,
    typer.Option(
        "--engine",
        help="What runs the network. auto: plain PyTorch at first, the fastest engine once that saves time. The choice "
        "is kept in RUN/engine for each processor, number of threads and size. eager: plain PyTorch, the model's exact "
        "arithmetic; other engines differ by rounding.",
    ),
]
# How a run decides what a defect is.
Threshold = Annotated[
    str | None,
    typer.Option("--threshold", help="0.4, or scratch=0.4,pit=0.6 (default: chosen on validation images)."),
]
MinArea = Annotated[
    int | None,
    typer.Option("--min-area", min=0, help="Pixels of the smallest defect (default: chosen on validation images)."),
]
Merge = Annotated[
    int | None,
    typer.Option("--merge", min=0, help="Pixels between fragments of one defect (default: chosen likewise)."),
]

_WORD = re.compile(r"[A-Za-z_][\w.]*=")
_LARGEST_SIDE = 2**14  # pixels, of a recipe's images


def references(words: Sequence[str]) -> list[str]:
    """Turn `["leanconv:unet", "base=32", "timm:resnet18"]` into `["leanconv:unet?base=32", "timm:resnet18"]`.

    A word `key=value` joins the query of the preceding model. Raises BadInput if no model precedes it.
    """
    found: list[str] = []
    for word in words:
        if not _WORD.match(word):
            found.append(word)
        elif not found:
            raise BadInput(f"{word!r} needs a model before it; write MODEL {word}")
        elif "&" in word:
            raise BadInput(f"{word!r}: an option's value cannot contain '&'; give each option as its own word")
        else:
            found[-1] += ("&" if "?" in found[-1] else "?") + word
    return found


def reference(words: Sequence[str]) -> str:
    """Return the single model that the words name. Raises BadInput for none or several."""
    found = references(words)
    if len(found) != 1:
        raise BadInput(f"one model is needed, got {len(found)}: {', '.join(found) or 'none'}; options are key=value")
    return found[0]


def shape(text: str) -> tuple[int, ...]:
    """Parse `"1,3,512,512"` (or `1x3x512x512`). Raises BadInput for any other text."""
    try:
        sizes = tuple(int(part) for part in re.split(r"[,x]", text.strip()))
    except ValueError as error:
        raise BadInput(f"--input {one_line(text, most=80)!r}: write the sizes as 1,3,512,512") from error
    if len(sizes) < 2 or min(sizes) < 1:
        raise BadInput(f"--input {text!r}: at least two sizes, each at least 1, like 1,3,512,512")
    return sizes


def shape_of(text: str | None, models: Sequence[str]) -> str:
    """What `--input` says, else one colour image of the size that the run folders among `models` were trained on.

    224 where there is none. Raises BadInput for runs of different sizes.
    """
    if text is not None:
        return text
    sides = {name: side for name in models if (side := _side_of(Path(name)))}
    if len(set(sides.values())) > 1:
        each = ", ".join(f"{name} {side}" for name, side in sides.items())
        raise BadInput(one_line(f"the runs were trained on images of different sizes ({each}): say --input 1,3,H,W"))
    side = next(iter(sides.values()), 224)
    return f"1,3,{side},{side}"


def _side_of(run: Path) -> int:
    """The side of the images in pixels that a run was trained on; 0 where its recipe.toml does not tell."""
    try:
        side = read_toml(run / "recipe.toml").get("size")
    except BadInput:
        return 0
    return side if type(side) is int and 1 < side <= _LARGEST_SIDE else 0


def torch_dtype(dtype: Dtype) -> "torch.dtype":
    """Return the torch type of that name."""
    import torch

    return {Dtype.float32: torch.float32, Dtype.bfloat16: torch.bfloat16}[dtype]


def torch_device(device: str) -> "torch.device":
    """Return the device of that name. Raises BadInput if this machine does not have it."""
    import torch

    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"--device {device!r} is not usable here: {str(error).splitlines()[0]}") from error
    return found


def set_threads(threads: int | None) -> None:
    """Set the number of CPU threads of this process, if one was given."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def example(
    text: str, dtype: Dtype = Dtype.float32, device: str = "cpu", *, channels_last: bool = False, seed: int = 0
) -> "Tensor":
    """Return a seeded random input of the shape in `--input`."""
    import torch

    sizes, place = shape(text), torch_device(device)
    try:
        tensor = torch.randn(sizes, generator=torch.Generator().manual_seed(seed)).to(place, torch_dtype(dtype))
    except (RuntimeError, MemoryError, OverflowError, TypeError) as error:  # a size past 2^63 is a TypeError
        raise BadInput(f"--input {text!r}: no memory holds that: {str(error).splitlines()[0]}") from error
    if channels_last and tensor.dim() != 4:
        raise BadInput(f"--channels-last needs four sizes N,C,H,W in --input, got {len(sizes)}")
    return tensor.contiguous(memory_format=torch.channels_last) if channels_last else tensor


def refuse(context: typer.Context, why: str, *names: str) -> None:
    """Raise BadInput for a typed option that has no effect here. No option is ignored silently."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise BadInput(f"--{name.replace('_', '-')} {why}: leave it out")


def report(result: Any, *, json: bool, out: Path | None = None, overwrite: bool = False) -> None:
    """Print a result (its table, or its numbers as JSON), and write it to `out` if given."""
    print(_json.dumps(result.to_dict(), indent=2) if json else result)  # first: `out` may be unwritable
    if out is not None:
        write_out(out, result, result.to_dict(), overwrite=overwrite)


def check_out(out: Path | None, overwrite: bool, numbers: dict[str, Any] | None = None) -> None:
    """Raise BadInput if the report would replace a file that is no report of ours.

    `numbers`: the numbers to be written, or None before the work begins.
    """
    if out is not None and not overwrite:
        check_report(out, numbers)


def write_out(out: Path, text: object, numbers: dict[str, Any], *, overwrite: bool) -> None:
    """Write a report to a file: the numbers to .json, otherwise the text. Raises BadInput as `check_out` does."""
    content = _json.dumps(numbers, indent=2) if out.suffix == ".json" else str(text)
    write_atomic(out, f"{content}\n", check=lambda: check_out(out, overwrite, numbers))


@contextmanager
def bar() -> Iterator[Callable[[str, float], object]]:
    """Show a temporary progress bar on standard error, but only on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task("", total=1.0)
        yield lambda what, done: shown.update(task, description=one_line(what), completed=done)


def named(found: list[str], trust_code: bool) -> dict[str, "nn.Module"]:
    """Reference -> model; the same reference twice gets a number. Raises BadInput for no reference."""
    from leanconv.runs import load

    if not found:
        raise BadInput("no model was given; write leanconv bench MODEL [key=value ...] MODEL ...")
    made: dict[str, nn.Module] = {}
    for one in found:
        again = sum(name == one or name.startswith(f"{one} #") for name in made)
        made[one if not again else f"{one} #{again + 1}"] = load(one, trust_code=trust_code)
    return made
