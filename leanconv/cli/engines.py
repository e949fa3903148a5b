"""`--engine` of `predict` and `eval`: the function that gives them a faster form of their model."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from leanconv.cli.common import Engine
from leanconv.text import one_line

if TYPE_CHECKING:
    from torch import nn

    from leanconv.train.inference.serving import Left, Serve


def serving(engine: Engine) -> "Serve":
    """Run the model on an engine of `optimize`. A line on standard error says which one, and why."""

    @contextmanager
    def serve(model: "nn.Module", folder: Path | None, left: "Left") -> "Iterator[nn.Module]":
        elsewhere = any(p.device.type != "cpu" for p in model.parameters())
        if engine is Engine.eager or (engine is Engine.auto and elsewhere):
            yield model
            return
        from leanconv.serving import Served

        served = Served(model, engine.value, folder=folder, say=_say, left=left)
        try:
            yield served
        except BaseException:
            served.close(quiet=True)  # the error is what the user reads
            raise
        served.close()

    return serve


def _say(line: str) -> None:
    print(one_line(line), file=sys.stderr)
