"""Untuned models against eager: spellings, sharing, broadcasting, aliases, layouts, batches, sizes.

PyTorch's implementations and the kernels of whole blocks both run. The engine may fail at other sizes than the captured
one, but it never gives a wrong answer of the right shape.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv.deploy.verify import difference
from leanconv.engine import workbench
from leanconv.engine.fused.candidate import FUSED
from leanconv.engine.fused.ir.kinds.block import Block
from leanconv.engine.fused.lowering.implementations import IMPLEMENTATIONS
from leanconv.engine.workbench import Workbench

C = 13


def conv(i=C, o=C, k=3, s=1, **rest):
    return nn.Conv2d(i, o, k, s, k // 2, **rest)


class Odd(nn.Module):
    """A model that computes `read(model, h, x)`, with the layers that `read` needs."""

    def __init__(self, read, **layers):
        super().__init__()
        self.read, self.stem = read, conv(3)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.read(self, self.stem(x), x)


def squeeze(gate):
    return Odd(
        lambda m, h, x: m.out(h * gate(m.up(F.relu(m.down(h.mean((2, 3), keepdim=True)))))),
        down=conv(o=3, k=1),
        up=conv(3, k=1),
        out=conv(o=7, k=1),
    )


def shuffle(h, groups):
    n, c, rows, columns = h.shape
    return h.view(n, groups, c // groups, rows, columns).transpose(1, 2).reshape(n, c, rows, columns)


def in_place(h):
    h[:, 2:5] = h[:, 2:5] * 2
    return h.relu_()


BN = nn.BatchNorm2d
MODELS = {
    "norm after cat": lambda: Odd(
        lambda m, h, x: m.out(m.norm(torch.cat([h, h, x], 1)).relu()), norm=BN(2 * C + 3), out=conv(2 * C + 3, 5)
    ),
    "norm before conv": lambda: Odd(
        lambda m, h, x: (m.a(m.norm(F.max_pool2d(h, 2))), m.b(m.norm(h))), norm=BN(C), a=conv(), b=nn.Conv2d(C, 6, 3)
    ),
    "norm after relu": lambda: Odd(lambda m, h, x: m.b(m.norm(m.a(h).relu())).relu(), a=conv(), norm=BN(C), b=BN(C)),
    "dropouts": lambda: Odd(
        lambda m, h, x: m.out(m.c(m.b(m.a(h)))), a=nn.AlphaDropout(0.5), b=nn.Dropout2d(0.5),
        c=nn.FeatureAlphaDropout(), out=conv(o=5),
    ),
    "gate sigmoid": lambda: squeeze(torch.sigmoid),
    "gate hardsigmoid": lambda: squeeze(F.hardsigmoid),
    "gate softmax": lambda: squeeze(lambda t: t.softmax(1)),
    "norms of layers and groups": lambda: Odd(
        lambda m, h, x: m.out(m.group(m.layer(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))),
        layer=nn.LayerNorm(C), group=nn.GroupNorm(1, C), out=conv(o=5),
    ),
    "interpolations": lambda: Odd(
        lambda m, h, x: m.out(torch.cat([F.interpolate(h, scale_factor=2), F.interpolate(
            m.a(h), scale_factor=2.0, mode="bilinear", align_corners=False)], 1)), a=conv(), out=conv(2 * C, 5),
    ),
    "called twice": lambda: Odd(lambda m, h, x: m.norm(m.a(m.norm(m.a(h)).relu())), a=conv(), norm=BN(C)),
    "nested answers": lambda: Odd(
        lambda m, h, x: {"a": h, "b": [h.relu(), (m.a(h), None, 3)], "x": x, "again": h, "view": h[:, 1:3]}, a=conv()
    ),
    "in place": lambda: Odd(lambda m, h, x: m.b(in_place(h)) + m.act(h), b=conv(), act=nn.ReLU(inplace=True)),
    "broadcasts": lambda: Odd(
        lambda m, h, x: m.a(h) + h.mean((2, 3), keepdim=True) + h[:, :1] + h.mean(3, keepdim=True) + m.held,
        a=conv(), held=nn.Parameter(torch.randn(C, 1, 1)),
    ),
    "sums": lambda: Odd(
        lambda m, h, x: (m.norm(m.a(h) + m.b(h)).relu(), m.c(h) + h + h, torch.add(h, m.c(h), alpha=2), h - m.c(h)),
        a=conv(), b=conv(), c=conv(k=1), norm=BN(C),
    ),
    "beside": lambda: Odd(lambda m, h, x: m.n(m.a(h)) + m.b(h) + m.c(h), a=conv(), n=BN(C), b=conv(k=1), c=BN(C)),
    "side by side": lambda: Odd(
        lambda m, h, x: m.out(torch.cat([m.a(h[:, :6]), h[:, 4:9], m.b(h[:, 7:])], 1)),
        a=conv(6, 6, groups=6), b=conv(6, 6, 5, groups=6), out=conv(17, 5, 1),
    ),
    "shuffled": lambda: Odd(
        lambda m, h, x: m.b(shuffle(m.a(shuffle(h[:, :12], 4)), 3)) + shuffle(m.a(shuffle(h[:, 1:], 3)), 4),
        a=conv(12, 12, groups=3), b=conv(12, 12, k=1),
    ),
    "chains": lambda: Odd(
        lambda m, h, x: m.d(F.silu(m.c(F.relu6(m.n(m.b(m.a(h))))))),
        a=conv(groups=C), b=conv(k=5, s=2, groups=C), n=BN(C), c=conv(o=9, k=1), d=conv(9, 9, groups=9),
    ),
    "pads": lambda: Odd(
        lambda m, h, x: (m.a(F.pad(h, (1, 0, 2, 1))), m.a(F.pad(h, (1, 2, 0, 3), value=1.0)), m.b(h), m.c(h)),
        a=nn.Conv2d(C, 4, 3), b=conv(padding_mode="reflect"), c=nn.Conv2d(C, C, (3, 1), padding="same", groups=C),
    ),
    "poolings": lambda: Odd(
        lambda m, h, x: (F.max_pool2d(h, 3, 2, 1), F.max_pool2d(h, 2, ceil_mode=True), F.avg_pool2d(h, 2).mean((2, 3)),
                         F.max_pool2d(h, 2).mean((-1, -2)), h.amax((2, 3)), h.sum((2, 3)) / 2.0),
    ),
    "ups": lambda: Odd(
        lambda m, h, x: m.norm(m.a(h)).relu() + m.b(h), a=nn.ConvTranspose2d(C, 6, 2, 2), norm=BN(6),
        b=nn.ConvTranspose2d(C, 6, 4, 2, 1),
    ),
    "own batch statistics": lambda: Odd(lambda m, h, x: m.norm(h).relu(), norm=BN(C, track_running_stats=False)),
    "the input": lambda: Odd(lambda m, h, x: x),
}  # fmt: skip


def randomised(model):
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, BN) and module.running_mean is not None:
            module.running_mean.uniform_(-0.3, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
        if isinstance(module, BN):  # of either sign, so that no activation commutes with it
            module.weight.data.uniform_(-1.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.3, 0.3, generator=generator)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_odd_models(name, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(workbench, "MEASURING_S", 0.0)
    for kind, forms in IMPLEMENTATIONS.items():  # compiling kernels for all of them takes longer than a test may
        monkeypatch.setitem(
            IMPLEMENTATIONS, kind, [each for each in forms if each.name in ("aten", "onednn", "matrix")]
        )
    model, x = randomised(MODELS[name]()), torch.randn(2, 3, 15, 17)
    form = FUSED.prepare(Workbench(model, (x,), {}, 1), None)
    same = {
        "as given": x, "again": torch.randn(x.shape), "channels_last": x.contiguous(memory_format=torch.channels_last),
        "strided": torch.randn(2, 3, 15, 34)[..., ::2], "transposed": torch.randn(2, 3, 17, 15).transpose(2, 3),
        "expanded": torch.randn(1, 1, 15, 17).expand(2, 3, 15, 17), "with gradients": x.clone().requires_grad_(),
    }  # fmt: skip
    for what, inputs in same.items():
        kept = inputs.clone()
        for _ in range(2):
            error = difference(model(inputs), form(inputs))
            assert error.ok(1e-4), f"{what}: {error}"
        assert torch.equal(inputs, kept), f"{what}: the input was written to"
    for size in ((3, 3, 15, 17), (1, 3, 15, 17), (0, 3, 15, 17), (2, 3, 20, 21), (2, 3, 8, 5)):
        inputs = torch.randn(size)
        try:
            want = model(inputs)
            seen = form(inputs)
        except RuntimeError:
            continue
        error = difference(want, seen)
        assert error.ok(1e-4) or "shape" in error.problem, f"{size}: {error}"


@torch.no_grad()
@pytest.mark.parametrize("name", ["chains", "sums"])
def test_odd_models_on_kernels(name, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(workbench, "MEASURING_S", 0.0)
    monkeypatch.setitem(
        IMPLEMENTATIONS, Block, [each for each in IMPLEMENTATIONS[Block] if each.name in ("aten", "kernel")]
    )
    model, x = randomised(MODELS[name]()), torch.randn(2, 3, 15, 17)
    form = FUSED.prepare(Workbench(model, (x,), {}, 1), None)
    for size in ((2, 3, 15, 17), (2, 3, 15, 17), (1, 3, 9, 8)):
        x = torch.randn(size)
        error = difference(model(x), form(x))
        assert error.ok(1e-4), str(error)
