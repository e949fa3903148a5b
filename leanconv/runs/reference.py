"""`load`: build a model from its reference: our networks, timm, smp, a Python file, or a run folder."""

import os
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from leanconv.errors import BadInput
from leanconv.registry import nearest
from leanconv.runs.folder import RunFolder
from leanconv.runs.kinds import KINDS, build, read


def load(ref: str | Path, *, words: Iterable[str] = (), trust_code: bool = False) -> nn.Module:
    """Return the model that a reference names.

    * `leanconv:unet?base=32&conv=splconv(alpha=0.5)`: a network of `leanconv.models`;
    * `timm:resnet18`, `smp:Unet?encoder_name=resnet18`: a network of those libraries;
    * `path/to/file.py:factory?width=8`: the result of a function or class in that file. **The file is run**;
    * a run folder: its network with its weights, in eval mode.

    All but run folders have fresh weights and are in train mode. Only `pretrained=true` downloads weights.

    Args:
        words: more options, `["base=32", "conv=splconv(alpha=0.5)"]`. They override the reference's own.
        trust_code: let a run folder's model.json name a Python file to run. A reference in `ref` needs no trust.
    Raises: UnknownName, BadInput, UnsupportedConv for a reference that cannot be built. BadCheckpoint and UntrustedCode
        for a run folder. MissingExtra if timm or smp is not installed.
    """
    reference = read(str(ref), words)
    if reference.kind != "path":
        return build(reference, trust_code=trust_code)
    path = Path(reference.name)
    if not os.path.isdir(path):
        hint = nearest(reference.name, ["leanconv:unet", "timm:resnet18", "smp:Unet"])
        if os.path.isfile(path) and (path.parent / "model.json").is_file():
            hint = f" (give the run folder, {str(path.parent)!r})"
        raise BadInput(f"{str(ref)!r} is no model and no run folder{hint}; write {KINDS}")
    if reference.options:
        given = ", ".join(reference.options)
        raise BadInput(f"{path}: a run folder takes no options, got {given}; its model.json defines the model")
    return RunFolder.open(path).load_model(trust_code=trust_code)
