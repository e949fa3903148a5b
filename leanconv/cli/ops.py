"""`leanconv ops [NAME]`: list the operators with their costs and what they replace."""

import inspect
import json as _json
from typing import Annotated, Any

import typer

from leanconv.errors import UnsupportedConv
from leanconv.nn import get, names
from leanconv.registry import options_of, unparse
from leanconv.spec import ConvSpec
from leanconv.table import si, table

# The reference layer, and its depthwise and 1x1 variants for operators that replace those.
_LAYERS = {
    "dense": ConvSpec.of(64, 128, 3, 1, 1, bias=False, h=56, w=56),
    "depthwise": ConvSpec.of(64, 64, 7, 1, 3, groups=64, bias=False, h=56, w=56),
    "pointwise": ConvSpec.of(64, 128, 1, bias=False, h=56, w=56),
}


def command(
    name: Annotated[str | None, typer.Argument(help="An operator: shows its formulas and options.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the operators, or show one: paper, formulas, options, what it replaces, cost on 64->128 3x3 at 56x56."""
    rows = [_row(each) for each in ([name] if name else names())]
    if json:
        print(_json.dumps({"operators": rows}, indent=2))
        return
    if name:
        row = rows[0]
        print(f"{row['signature']}\n\n{row['formula']}\n")
        print(f"replaces {', '.join(row['replaces'])} convolutions")
    else:
        cells = [
            [r["name"], ", ".join(r["replaces"]), si(r["macs"]), si(r["params"]), r["signature"], r["paper"]]
            for r in rows
        ]
        note = "MACs and params: layer 64->128 3x3, 56x56 output, no bias (depthwise: 64 channels 7x7; 1x1: 64->128)."
        print(table(["operator", "replaces", "MACs", "params", "options", "source"], cells, note=note))


def _row(name: str) -> dict[str, Any]:
    cls = get(name)
    layer = next(spec for kind, spec in _LAYERS.items() if kind in cls.replaces)
    if reason := cls.why_not(layer):
        raise UnsupportedConv(f"{name}: {reason}")
    cost = cls.cost(layer)
    return {
        "name": name,
        "signature": unparse(name, options_of(cls)),
        "options": options_of(cls),
        "paper": cls.paper,
        "replaces": sorted(cls.replaces),
        "layer": str(layer),
        "macs": cost.macs,
        "executed_macs": cost.executed_macs,
        "params": cost.params,
        "norm_params": cost.norm_params,
        "bytes": cost.bytes,
        "formula": inspect.getdoc(inspect.getmodule(cls)),
    }
