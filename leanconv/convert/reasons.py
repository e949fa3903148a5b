"""Why a convolution stays as it is: the whole list, in one place.

A `Swap.reason` is one of these, or `UNSUPPORTED` or `NOT_MEANT`, a colon, and the operator's own words; likewise
`NO_GAIN`, `TOO_HARMFUL` and `DENSE_BETTER` with the figures of a search.
"""

NOT_SELECTED = "not selected"
FIRST = "first convolution"
POINTWISE = "kernel 1x1"
GROUPED = "grouped"
DEPTHWISE = "depthwise"
DENSE = "dense"
SUBCLASS = "subclass of nn.Conv2d"
TRANSPOSED = "transposed convolution"
NOT_2D = "not two-dimensional"
LAZY = "lazy"
PARAMETRIZED = "parametrized weight"
TIED = "tied weight"
HOOKS = "hooks of its own"
SCRIPTED = "scripted"
OUTSIDE = "outside the module tree"
ROOT = "the model itself"
NEVER_CALLED = "never called"
OPERATOR = "already an operator"
UNSUPPORTED = "unsupported"
NOT_MEANT = "outside the paper's rule"
NO_GAIN = "no gain"
TOO_HARMFUL = "not bearable"
DENSE_BETTER = "dense is better"

# What each means; printed by `leanconv plan` below the table for the reasons that occur.
MEANING = {
    NOT_SELECTED: "where= does not match it, or to= gave None for it",
    FIRST: "the first that runs, or it reads the same tensor as that one; name it in where= to swap it too",
    POINTWISE: "a 1x1 kernel, and the operator does not replace those",
    GROUPED: "a grouped convolution, and the operator does not replace those",
    DEPTHWISE: "a depthwise convolution, and the operator does not replace those",
    DENSE: "a dense convolution, and the operator does not replace those",
    SUBCLASS: "its class overrides nn.Conv2d, so what it computes is not known",
    TRANSPOSED: "no operator replaces a transposed convolution",
    NOT_2D: "a 1-D or 3-D convolution",
    LAZY: "its sizes are not set yet; run the model once, then plan",
    PARAMETRIZED: "weight norm, spectral norm, pruning or a parametrization computes its weight",
    TIED: "another module holds the same parameter",
    HOOKS: "state-dict hooks or a replaced forward: these belong to the old layer and cannot move",
    SCRIPTED: "TorchScript holds a compiled copy of it",
    OUTSIDE: "a plain list, dict or attribute holds it, which a swap would not reach",
    ROOT: "a module cannot be replaced inside itself; wrap it in nn.Sequential",
    NEVER_CALLED: "the model did not call it on these inputs (unused, or its weight is used by hand)",
    OPERATOR: "swapped before",
    UNSUPPORTED: "the operator cannot stand for these sizes",
    NOT_MEANT: "the operator could stand for it, and its paper replaces other sizes only; name it in where= to swap it",
    NO_GAIN: "no candidate saves anything there, as measured in this network",
    TOO_HARMFUL: "with every candidate that saves something, the network gives no numbers or cannot be built",
    DENSE_BETTER: "the budget is met without it, at less harm",
}

_OF_KIND = {"pointwise": POINTWISE, "grouped": GROUPED, "depthwise": DEPTHWISE, "dense": DENSE}


def of_kind(kind: str) -> str:
    """The reason for a layer of that `ConvSpec.kind`, where the operator replaces other kinds only."""
    return _OF_KIND[kind]


def category(reason: str) -> str:
    """The reason without the operator's own words: `"unsupported: part=4 ..."` is `"unsupported"`."""
    return reason.split(":", 1)[0]
