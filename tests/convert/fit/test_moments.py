"""The unfolding against PyTorch's convolution, the sums against one float64 product, the solution against lstsq."""

import pytest
import torch
from torch import nn

from leanconv.convert.fit.moments import Sums, patches, solve

CASES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": (3, 1), "padding": (2, 0), "stride": (1, 3)},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2},
    {"kernel_size": 3, "padding": 1, "groups": 4},
    {"kernel_size": 1},
    {"kernel_size": (2, 4), "padding": "same", "dilation": (2, 2)},
    *({"kernel_size": 3, "padding": (2, 1), "padding_mode": mode} for mode in ("reflect", "replicate", "circular")),
]


def every_pixel(y):
    n, _, p, q = y.shape
    return tuple(index.flatten() for index in torch.meshgrid(*map(torch.arange, (n, p, q)), indexing="ij"))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("options", CASES, ids=str)
def test_a_patch_times_the_kernel_is_the_convolution(options, last):
    conv = nn.Conv2d(4, 8, bias=False, dtype=torch.float64, **options)
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    y = conv(x)
    pixels = every_pixel(y)
    rows = patches(conv, x, pixels)
    assert rows.shape == (len(pixels[0]), conv.groups, conv.weight[0].numel())
    weight = conv.weight.view(conv.groups, -1, rows.shape[2])
    mine = torch.einsum("ngd,god->ngo", rows, weight).flatten(1)
    assert torch.allclose(mine, y.permute(0, 2, 3, 1).flatten(0, 2), atol=1e-12)


@pytest.mark.parametrize("centred", [False, True])
def test_sums_of_float32_rows_are_float64_sums_even_far_from_zero(centred):
    torch.manual_seed(0)
    x, y = torch.randn(500, 2, 9) + 300, torch.randn(500, 6) - 200
    sums = Sums.like(x[:100], y[:100], gram=True)
    for start, stop in ((0, 100), (100, 101), (101, 500)):
        sums.add_(x[start:stop], y[start:stop])
    gram, cross = sums.second(centred=centred)
    exact_x, exact_y = x.double(), y.double()
    if centred:
        exact_x, exact_y = exact_x - exact_x.mean(0), exact_y - exact_y.mean(0)
    want = torch.einsum("ngd,nge->gde", exact_x, exact_x) / 500
    want_cross = torch.einsum("ngo,ngd->god", exact_y.unflatten(1, (2, 3)), exact_x) / 500
    assert (gram - want).abs().max() < 2e-6 * want.abs().max()
    assert (cross - want_cross).abs().max() < 2e-6 * max(want_cross.abs().max(), 1.0)
    means = sums.means()
    assert torch.allclose(means[0], x.double().mean(0), rtol=1e-9)
    assert torch.allclose(means[1], y.double().mean(0), rtol=1e-9)


def sums_of(x, y):
    sums = Sums.like(x, y, gram=True)
    sums.add_(x, y)
    return sums


def test_the_solution_is_that_of_lstsq_in_every_group():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, groups=2, dtype=torch.float64)
    x, y = torch.randn(400, 2, 18, dtype=torch.float64) + 1, torch.randn(400, 6, dtype=torch.float64)
    found = solve(sums_of(x, y), conv, centred=True, ridge=1e-12)
    for g in range(2):
        ones = torch.cat([x[:, g], torch.ones(400, 1, dtype=torch.float64)], 1)
        want = torch.linalg.lstsq(ones, y[:, 3 * g : 3 * g + 3]).solution
        assert torch.allclose(found.weight[3 * g : 3 * g + 3].flatten(1), want[:-1].T, atol=1e-8)
        assert torch.allclose(found.bias[3 * g : 3 * g + 3], want[-1], atol=1e-8)


def test_what_the_data_leaves_open_stays_as_it_was():
    conv = nn.Conv2d(2, 3, 3, bias=False, dtype=torch.float64)
    x = torch.zeros(5, 1, 18, dtype=torch.float64)
    silent = solve(sums_of(x, torch.randn(5, 3, dtype=torch.float64)), conv, centred=False, ridge=1e-3)
    assert torch.allclose(silent.weight, conv.weight)
    x[:, :, 0] = torch.randn(5, 1)  # one number of the patch moves
    one = solve(sums_of(x, 3 * x[:, 0, :1].expand(5, 3).clone()), conv, centred=False, ridge=1e-6)
    assert torch.allclose(one.weight.flatten(1)[:, 1:], conv.weight.flatten(1)[:, 1:])
    assert torch.allclose(one.weight.flatten(1)[:, 0], torch.full((3,), 3.0, dtype=torch.float64), atol=1e-3)


def test_the_gram_ranks_kernels_as_the_loss_does():
    """The loss of any W is that of the solution plus tr((W - T)·gram·(W - T)ᵀ): what `project_` lessens."""
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 3, bias=False, dtype=torch.float64)
    x, y = torch.randn(50, 1, 18, dtype=torch.float64), torch.randn(50, 3, dtype=torch.float64)
    ridge = 0.3
    best = solve(sums_of(x, y), conv, centred=False, ridge=ridge)
    t, old = best.weight.flatten(1), conv.weight.detach().flatten(1)
    strength = ridge * float(x.square().mean())

    def loss(w):
        return (y - x[:, 0] @ w.T).square().sum() / 50 + strength * (w - old).square().sum()

    for _ in range(3):
        w = torch.randn_like(t)
        more = torch.einsum("od,de,oe->", w - t, best.gram[0], w - t)
        assert loss(w) - loss(t) == pytest.approx(float(more), rel=1e-9)
