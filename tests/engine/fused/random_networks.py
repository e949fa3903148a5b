"""Whole random networks from a seed: operators, norms, activations, sums, concatenations, gates, poolings.

    python -m tests.engine.fused.random_networks 17                    one seed: the network, and its errors
    python -m tests.engine.fused.random_networks 0:500 [--kernels]     many; the errors of those that fail

`test_random_networks.py` tries 200 seeds; `pytest --seeds 200:400` tries others.
"""

import argparse
import copy
import random
import sys
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv.engine import workbench
from leanconv.engine.fused import candidate
from leanconv.engine.fused.candidate import FUSED
from leanconv.engine.fused.capture import dynamic_shapes
from leanconv.engine.fused.lowering.implementations import IMPLEMENTATIONS
from leanconv.engine.workbench import Workbench
from leanconv.nn import get, make, parse
from leanconv.spec import ConvSpec

OPERATORS = [
    "conv", "depthwise_separable", "depthwise_separable(block=True)", "group_pointwise", "spconv", "splconv",
    "splconv(alpha=0.75, rate=3)", "hetconv", "hetconv(part=2, arrangement='blocked')", "doconv", "gmconv", "lhconv",
    "odconv", "fuseconv", "fuseconv(variant='full')", "drconv", "psconv", "sic", "inception_dw", "spatial_bottleneck",
    "xsepconv", "topological",
]  # fmt: skip
ACTIVATIONS = [
    nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.GELU, nn.Identity, nn.Tanh, nn.LeakyReLU,
]  # fmt: skip
CHANNELS = [3, 4, 8, 12, 13, 16]
# The largest error of a form, in times the model's own (in the form's number type), or of the largest number: a model
# is now and then exact by luck, and a long chain of layers doubles what is added.
FACTOR, FLOOR = 6.0, {torch.float32: 2e-6, torch.bfloat16: 1e-2}
# Of so many seeds one is in bfloat16, one is captured with dynamic shapes, and the blocks of one run on this project's
# kernels, whose compilation takes most of the time.
BFLOAT16, DYNAMIC, KERNELS = 4, 16, 40


class Step(nn.Module):
    """A function of maps as a module, with the layers that it needs."""

    def __init__(self, words, run, **layers):
        super().__init__()
        self.words, self.run = words, run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *maps):
        return self.run(self, *maps)

    def extra_repr(self):
        return self.words


class Network(nn.Module):
    """Steps that read maps of earlier ones. `forward` returns the maps that nobody reads, and some that others read."""

    def __init__(self, seed, x):
        super().__init__()
        self.draw = random.Random(seed)
        self.steps, self.reads = nn.ModuleList(), []
        maps = [x]
        self.eval()
        count = self.draw.randint(2, 6)
        while len(self.steps) < count:
            step, reads = self._step(maps)
            step.eval()
            try:
                with torch.no_grad():
                    made = step(*[maps[i] for i in reads])
            except RuntimeError:  # a circular padding is wider than the map
                continue
            self.steps.append(step)
            self.reads.append(reads)
            maps.append(made)
        read = {i for reads in self.reads for i in reads}
        self.outputs = [i for i in range(1, len(maps)) if i not in read or self.draw.random() < 0.1]
        del self.draw

    def forward(self, x):
        maps = [x]
        for step, reads in zip(self.steps, self.reads, strict=True):
            maps.append(step(*[maps[i] for i in reads]))
        return [maps[i] for i in self.outputs]

    def _step(self, maps):
        """A random step, and the places of the maps that it reads; the last ones are read most often."""
        draw = self.draw
        at = len(maps) - 1 - min(int(draw.expovariate(1.0)), len(maps) - 1)
        while maps[at].dim() != 4:
            at -= 1
        x = maps[at]
        kind = draw.choice(
            ["block"] * 8 + ["sum", "cat", "cat", "gate", "pool", "up", "slice", "shuffle", "pad", "head"]
        )
        alike = [i for i, y in enumerate(maps) if y.shape == x.shape]
        beside = [i for i, y in enumerate(maps) if y.dim() == 4 and y.shape[2:] == x.shape[2:]]
        c, h, w = x.shape[1:]
        if kind == "sum" and len(alike) > 1:
            return self._sum(at, draw.choice([i for i in alike if i != at]))
        if kind == "cat":
            places = [at, *draw.choices(beside, k=draw.randint(1, 2))]
            if sum(maps[i].shape[1] for i in places) <= 40:
                return Step("cat", lambda m, *xs: torch.cat(xs, 1)), places
        if kind == "gate":
            squeeze = draw.choice([torch.sigmoid, F.hardsigmoid])
            down, up = nn.Conv2d(c, 3, 1), nn.Conv2d(3, c, 1)
            run = lambda m, x: x * squeeze(m.up(F.relu(m.down(x.mean((2, 3), keepdim=True)))))  # noqa: E731
            return Step("gate", run, down=down, up=up), [at]
        if kind == "pool" and min(h, w) >= 4:
            return self._pool(), [at]
        if kind == "up" and max(h, w) <= 16:
            return self._up(c), [at]
        if kind == "slice" and c > 3:
            start = draw.randint(0, c - 2)
            stop = draw.randint(start + 1, c)
            return Step(f"channels {start} to {stop}", lambda m, x: x[:, start:stop]), [at]
        if kind == "shuffle" and c % 2 == 0:
            return Step("shuffle", lambda m, x: F.channel_shuffle(x, 2)), [at]
        if kind == "pad" and max(h, w) <= 20:
            sides, value = [draw.randint(0, 2) for _ in range(4)], draw.choice([0.0, 0.0, 1.0])
            return Step(f"pad {sides} {value}", lambda m, x: F.pad(x, sides, value=value)), [at]
        if kind == "head":
            return Step("head", lambda m, x: m.fc(x.mean((2, 3))), fc=nn.Linear(c, draw.randint(2, 5))), [at]
        return self._block(c, h, w), [at]

    def _sum(self, at, other):
        kind = self.draw.choice(["add", "relu", "norm", "minus", "mul"])
        run = {
            "add": lambda m, x, y: x + y, "relu": lambda m, x, y: F.relu(x + y), "minus": lambda m, x, y: x - 0.5 * y,
            "norm": lambda m, x, y: F.silu(x + y), "mul": lambda m, x, y: x * torch.sigmoid(y),
        }[kind]  # fmt: skip
        return Step(kind, run), [at, other]

    def _pool(self):
        return Step(*self.draw.choice([
            ("max 2x2", lambda m, x: F.max_pool2d(x, 2)), ("max 3x3", lambda m, x: F.max_pool2d(x, 3, 2, 1)),
            ("max, ceil", lambda m, x: F.max_pool2d(x, 2, ceil_mode=True)), ("mean", lambda m, x: F.avg_pool2d(x, 2)),
            ("max 3x3 of stride 1", lambda m, x: F.max_pool2d(x, 3, 1, 1)),
        ]))  # fmt: skip

    def _up(self, c):
        draw = self.draw
        if draw.random() < 0.5:
            o = draw.choice(CHANNELS)
            norm, act = self._norm(o), draw.choice(ACTIVATIONS)()
            return Step(
                "up", lambda m, x: m.act(m.norm(m.up(x))), up=nn.ConvTranspose2d(c, o, 2, 2), norm=norm, act=act
            )
        more = {"mode": "bilinear", "align_corners": False} if draw.random() < 0.5 else {"mode": "nearest"}
        return Step(more["mode"], lambda m, x: F.interpolate(x, scale_factor=2, **more))

    def _norm(self, channels):
        """A BatchNorm as after training, of either sign; or none."""
        if self.draw.random() < 0.4:
            return nn.Identity()
        norm = nn.BatchNorm2d(channels)
        for tensor, low, high in (
            (norm.running_mean, -0.3, 0.3), (norm.running_var, 0.3, 2.0), (norm.weight.data, -1.5, 1.5),
            (norm.bias.data, -0.3, 0.3),
        ):  # fmt: skip
            tensor.uniform_(low, high)
        return norm

    def _block(self, c, h, w):
        """A convolution of any operator that takes these sizes, then perhaps a norm and an activation."""
        draw = self.draw
        while True:
            text = draw.choice(["conv"] * 6 + OPERATORS)
            k = draw.choice([1, 1, 3, 3, 3, 5, (1, 5), (3, 1), 2])
            stride = draw.choice([1, 1, 1, 2, (1, 2)]) if min(h, w) > 5 else 1
            dilation = draw.choice([1, 1, 1, 2])
            o = draw.choice([c, *CHANNELS])
            groups = draw.choice([1, 1, c, 2]) if text == "conv" else 1
            mode = draw.choice(["zeros"] * 6 + ["reflect", "circular"])
            rows, columns = (k, k) if isinstance(k, int) else k
            padding = draw.choice([(rows // 2 * dilation, columns // 2 * dilation), (0, 0), (1, 1)])
            if o % groups or c % groups or min(h, w) < 4:
                groups = 1
            spec = ConvSpec.of(c, o, k, stride, padding, dilation, groups, draw.random() < 0.6, mode, n=2, h=h, w=w)
            name, options = parse(text)
            fits = min(spec.p, spec.q) >= 1 and (mode == "zeros" or max(padding) < min(h, w))
            if fits and not get(name).why_not(spec, **options):
                break
        layer, before = make(text, **spec.arguments()), draw.random() < 0.15
        norm, act = self._norm(c if before else o), draw.choice(ACTIVATIONS)()
        if before:
            return Step("norm first", lambda m, x: m.conv(m.act(m.norm(x))), conv=layer, norm=norm, act=act)
        return Step("block", lambda m, x: m.act(m.norm(m.conv(x))), conv=layer, norm=norm, act=act)


def network(seed):
    """The network of a seed, in eval mode, and an input."""
    torch.manual_seed(seed)
    draw = random.Random(-seed - 1)
    x = torch.randn(draw.choice([1, 2]), 3, draw.randint(5, 20), draw.randint(5, 20))
    return Network(seed, x).eval(), x


@dataclass(frozen=True)
class Found:
    """How far a form is from float64, and how far it may be, for the output where it is nearest to that."""

    what: str
    error: float
    allowed: float

    @property
    def holds(self):
        return self.error <= self.allowed

    def __str__(self):
        return f"{self.what}: error {self.error:.2e}, allowed {self.allowed:.2e}"


@torch.no_grad()
def errors(seed, kernels=None):
    """The form of a seed's network against float64, at the size given, again, and at another batch if that is dynamic.

    `kernels`: whether blocks run on this project's kernels (default: as the seed says), else in PyTorch.
    """
    model, x = network(seed)
    dtype, dynamic = torch.bfloat16 if seed % BFLOAT16 == 3 else torch.float32, seed % DYNAMIC == 5
    kernels = seed % KERNELS == 0 if kernels is None else kernels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workbench, "MEASURING_S", 0.0)  # nothing is measured
        patch.setattr(dynamic_shapes, "OPENING_S", 0.0)  # the batch alone is dynamic
        if not dynamic:
            patch.setattr(candidate, "holds_sizes", lambda *_: False)
        names = ("aten", "kernel") if kernels else ("aten", "onednn", "matrix")
        for kind, forms in IMPLEMENTATIONS.items():
            patch.setitem(IMPLEMENTATIONS, kind, [each for each in forms if each.name in names])
        form = FUSED.prepare(Workbench(model, (x,), {}, torch.get_num_threads()), dtype)
    exact_model = copy.deepcopy(model).double()
    own_model = copy.deepcopy(model).to(dtype)
    found, inputs = [], {"as given": x, "again": x.clone()}
    if dynamic:
        inputs["a batch of 3"] = torch.randn(3, *x.shape[1:])
    for what, given in inputs.items():
        exact, own = exact_model(given.double()), own_model(given.to(dtype))
        worst = None
        for index, (a, b, c) in enumerate(zip(form(given), own, exact, strict=True)):
            assert a.shape == c.shape, f"output {index}: {tuple(a.shape)}, not {tuple(c.shape)}"
            error, near = float((a.double() - c).abs().max()), float((b.double() - c).abs().max())
            allowed = max(FACTOR * near, FLOOR[dtype] * float(c.abs().max()), 1e-30)
            each = Found(f"{what}, output {index}", error if error == error else float("inf"), allowed)
            if worst is None or each.error / each.allowed > worst.error / worst.allowed:
                worst = each
        found.append(worst)
    return found


def command(seed):
    """What repeats a seed."""
    return f"python -m tests.engine.fused.random_networks {seed}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", help="one seed, or FIRST:END")
    parser.add_argument("--kernels", action="store_true", help=f"run all on kernels; default: every {KERNELS}th seed")
    arguments = parser.parse_args()
    first, colon, end = arguments.seeds.partition(":")
    seeds = range(int(first), int(end)) if colon else [int(first)]
    torch.set_num_threads(1)
    failed = 0
    for seed in seeds:
        if not colon:
            print(network(seed)[0])
        try:
            found = errors(seed, arguments.kernels or None)
            failed += not all(each.holds for each in found)
            lines = [str(each) for each in found if not (colon and each.holds)]
        except Exception as error:
            failed, lines = failed + 1, [f"{type(error).__name__}: {str(error)[:300]}"]
        for line in lines:
            print(f"seed {seed}, {line}", flush=True)
    print(f"{len(seeds)} seeds, {failed} failures")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
