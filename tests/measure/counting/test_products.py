"""What each aten operation multiplies, by our own rules: every spelling against hand counts, whatever torch brings."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import flop_counter

from leanconv.measure.counting import products
from leanconv.measure.counting.count import Uncounted, count
from leanconv.measure.counting.ops import classify
from leanconv.measure.counting.products import MacCounter, base_name, work_of

aten = torch.ops.aten
N, HEADS, L, E = 2, 4, 49, 16
MACS = 614_656  # of attention of N HEADS L E to itself


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


class Body(nn.Module):
    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args):
        return self.function(self, *args)


def overload(name):
    """The plain overload of an operation; a skip where this torch has none of that name."""
    packet = getattr(aten, name, None)
    if packet is None:
        pytest.skip(f"torch {torch.__version__} has no aten::{name}")
    return getattr(packet, "default", None) or getattr(packet, packet.overloads()[0])


def macs(name, *args, out=None, **kwargs):
    """Of a call that is never made; its result is told."""
    work = work_of(overload(name), args, kwargs, out)
    assert work is not None, name
    assert work.macs == sum(one.macs for one in work.sizes)
    return work.macs


HEADS_FIRST = sorted(products._HEADS_FIRST - {"flex_attention", "scaled_dot_product_attention"})


@pytest.mark.parametrize("name", HEADS_FIRST)
def test_attention_in_every_spelling(name):
    """Of maps alike, of other keys and values, and of several heads that share their keys."""
    q = meta(N, HEADS, L, E)
    assert macs(name, q, q, q, out=(q,)) == MACS
    assert macs(name, q, meta(N, HEADS, 7, E), meta(N, HEADS, 7, 5), out=(q,)) == N * HEADS * L * 7 * (E + 5)
    assert macs(name, q, meta(N, 2, L, E), meta(N, 2, L, E), out=(q,)) == MACS


@pytest.mark.parametrize("name", ["_flash_attention_forward", "_efficient_attention_forward"])
def test_attention_with_heads_inside(name):
    q, other = meta(N, L, HEADS, E), meta(N, 7, HEADS, E)
    assert macs(name, q, q, q, out=(q,)) == MACS
    assert macs(name, q, other, other, out=(q,)) == N * HEADS * L * 7 * 2 * E


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("_flash_attention_forward", ("cum_seq_q", "cum_seq_k")),
        ("_efficient_attention_forward", ("cu_seqlens_q", "cu_seqlens_k")),
        ("_cudnn_attention_forward", ("cum_seq_q", "cum_seq_k")),
    ],
)
def test_samples_of_other_lengths_in_a_row(name, ends):
    """By the lengths where they have numbers; else nobody knows, and it is no zero."""
    q, k = meta(9, HEADS, E), meta(12, HEADS, E)
    asked, known = torch.tensor([0, 4, 9]), torch.tensor([0, 10, 12])
    given = dict(zip(ends, (asked, known), strict=True))
    assert macs(name, q, k, k, out=(q,), **given) == HEADS * (4 * 10 + 5 * 2) * 2 * E
    unknown = {key: value.to("meta") for key, value in given.items()}
    assert work_of(overload(name), (q, k, k), unknown, (q,)) is None


def test_whole_attention_layers():
    d, hidden = HEADS * E, 32
    x, other, wide, square = meta(N, L, d), meta(N, 7, d), meta(3 * d, d), meta(d, d)
    whole = N * L * d * 4 * d + MACS
    rest = (meta(3 * d), square, meta(d))
    assert macs("_native_multi_head_attention", x, x, x, d, HEADS, wide, *rest, out=(x,)) == whole
    crossed = N * d * (L * 2 * d + 7 * 2 * d) + N * L * 7 * 2 * d
    assert macs("_native_multi_head_attention", x, other, other, d, HEADS, wide, *rest, out=(x,)) == crossed
    norms = [meta(d)] * 4
    feed = (meta(hidden, d), meta(hidden), meta(d, hidden), meta(d))
    found = macs("_transformer_encoder_layer_fwd", x, d, HEADS, wide, *rest, True, False, 1e-5, *norms, *feed, out=x)
    assert found == whole + 2 * N * L * d * hidden


@pytest.mark.parametrize("name", sorted(products._CONVOLUTIONS))
def test_convolutions_in_every_spelling(name):
    """Of 6 to 4 channels (2 groups, where there are such), 3×3, stride 2; a transposed one multiplies its input."""
    each, transposed = name in products._EACH_CHANNEL, "transpose" in name
    axes = 3 if "3d" in name else 2
    func = overload(name)
    names = [argument.name for argument in func._schema.arguments]
    groups = 2 if "groups" in names else 6 if each else 1
    o = 6 if each else 4
    x = meta(N, 6, *[9] * axes)
    weight = meta(6, o // groups, *[3] * axes) if transposed else meta(o, 6 // groups, *[3] * axes)
    out = meta(N, o, *[18 if transposed else 5] * axes)
    given = {"stride": [2] * axes, "padding": [1] * axes, "dilation": [1] * axes, "groups": groups, "transposed": False}
    kwargs = {key: value for key, value in given.items() if key in names}
    for biased in (False, True):
        if biased and "bias" not in names:
            continue
        kwargs |= {"bias": meta(o)} if biased else {}
        work = work_of(func, (x, weight), kwargs, out)
        places = (9 if transposed else 5) ** axes
        assert work.kind == "conv"
        assert work.macs == work.sizes[0].macs == N * places * 6 // groups * o * 3**axes
        assert work.bias == (out.numel() if biased else 0)


def test_a_transposed_convolution_says_so_in_its_arguments():
    x, weight, out = meta(N, 6, 9, 9), meta(6, 2, 3, 3), meta(N, 4, 18, 18)
    args = (x, weight, None, [2, 2], [1, 1], [1, 1], True, [1, 1], 2)
    assert macs("convolution", *args, out=out) == N * 81 * 6 * 2 * 9
    steps, kernel = meta(10, N, 3), meta(5, 3, 7)
    assert macs("conv_tbc", steps, kernel, meta(7), 1, out=meta(8, N, 7)) == N * 8 * 5 * 3 * 7


def test_products_in_every_spelling():
    a, b, x, y = meta(5, 7), meta(7, 3), meta(N, 5, 7), meta(N, 7, 3)
    for name in ("mm", "_int_mm", "_scaled_mm", "_grouped_mm"):
        assert macs(name, a, b, out=meta(5, 3)) == 5 * 7 * 3
    for name in ("addmm", "_addmm_activation"):
        work = work_of(overload(name), (meta(3), a, b), {}, meta(5, 3))
        assert (work.macs, work.bias) == (105, 15)
    for name in ("bmm", "_grouped_mm"):
        assert macs(name, x, y, out=meta(N, 5, 3)) == N * 105
    for name in ("baddbmm", "addbmm"):
        assert macs(name, meta(5, 3), x, y, out=meta(5, 3)) == N * 105
    # groups of rows, each with a matrix of its own, groups of columns, and groups of what is added up
    for one, two in ((a, y), (x, b), (a, b)):
        assert macs("_grouped_mm", one, two, out=meta(5, 3)) == 105
    assert macs("mv", a, meta(7), out=meta(5)) == macs("addmv", meta(5), a, meta(7), out=meta(5)) == 35
    assert macs("dot", meta(7), meta(7), out=meta()) == macs("vdot", meta(7), meta(7), out=meta()) == 7
    for name, weight in (("linear", meta(3, 7)), ("mkldnn_linear", meta(3, 7)), ("_weight_int8pack_mm", meta(3, 7))):
        assert macs(name, x, weight, out=meta(N, 5, 3)) == N * 105


def test_several_products_in_one():
    pairs = [meta(5, 7), meta(2, 4)], [meta(7, 3), meta(4, 6)]
    assert macs("_foreach_mm", *pairs, out=None) == 5 * 7 * 3 + 2 * 4 * 6


@pytest.mark.parametrize("proj", [0, 3])
def test_recurrent_networks_as_one_operation(proj):
    """Two layers, both directions, of four samples of seven steps, or of ten steps of samples that end early."""
    weights, width, state = [], 5, 6
    for layer in range(2):
        for _ in range(2):
            weights += [meta(4 * state, width if layer == 0 else 2 * (proj or state)), meta(4 * state, proj or state)]
            weights += [meta(4 * state), meta(4 * state)] + ([meta(proj, state)] if proj else [])
    each = sum(w.numel() for w in weights if w.dim() > 1)
    rest = {"mode": 2, "hidden_size": state, "proj_size": proj, "num_layers": 2, "batch_first": True}
    assert macs("_cudnn_rnn", meta(4, 7, width), weights, out=None, **rest) == 28 * each
    assert macs("_cudnn_rnn", meta(10, width), weights, out=None, **rest, batch_sizes=[4, 3, 3]) == 10 * each


def test_every_rule_of_torchs_counter_is_ours_too():
    """What this version of it counts of a forward."""
    known = {base_name(packet) for packet in flop_counter.flop_registry if hasattr(aten, base_name(packet))}
    forward = {name for name in known if "backward" not in name}
    assert "convolution" in forward
    assert forward <= set(products._RULES)


MULTIPLIES = (
    "mm",
    "bmm",
    "matmul",
    "conv",
    "convolution",
    "conv2d",
    "conv3d",
    "attention",
    "linear",
    "rnn",
    "dot",
    "mv",
)


def test_nothing_that_multiplies_is_free():
    """An operation of torch, of this version, with such a word in its name has a rule or is listed as not counted."""
    for name in dir(aten):
        words = name.removesuffix("_").split("_")
        if (
            "backward" in words
            or not set(MULTIPLIES).intersection(words)
            or base_name(getattr(aten, name)) in products._RULES
        ):
            continue
        packet = getattr(aten, name)
        for func in (getattr(packet, each) for each in packet.overloads()):
            assert classify(func, (meta(2, 2),), "", None, False) in ("unknown", "view"), func


@pytest.mark.parametrize("name", ["scaled_dot_product_attention", "vit_tiny_patch16_224"])
def test_no_version_of_torchs_counter_decides(name, monkeypatch):
    """As if torch knew no formula at all."""
    monkeypatch.setattr(products, "flop_registry", {})
    for packet in list(flop_counter.flop_registry):
        monkeypatch.delitem(flop_counter.flop_registry, packet)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if name.startswith("vit"):
            model = pytest.importorskip("timm").create_model(name)
            assert count(model, torch.randn(1, 3, 224, 224)).flops == 1_253_683_200
        else:
            attention = Body(lambda m, q: F.scaled_dot_product_attention(q, q, q))
            assert count(attention, torch.randn(N, HEADS, L, E)).flops == MACS


ASKED = {
    "masked": lambda q: F.scaled_dot_product_attention(q, q, q, attn_mask=q.new_zeros(L, L)),
    "causal": lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True),
    "dropped": lambda q: F.scaled_dot_product_attention(q, q, q, dropout_p=0.5),
    "shared keys": lambda q: F.scaled_dot_product_attention(q, q[:, :2], q[:, :2], enable_gqa=True),
    "without a batch": lambda q: F.scaled_dot_product_attention(*[q.flatten(0, 1)] * 3),
    "by hand": lambda q: (q @ q.transpose(-1, -2)).softmax(-1) @ q,
}


@pytest.mark.parametrize("how", ASKED)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_however_it_is_called(how, device, dtype):
    q = torch.empty(N, HEADS, L, E, device=device, dtype=dtype)
    assert count(Body(lambda m, q: ASKED[how](q)), q).flops == MACS


def test_what_has_no_rule_is_listed():
    sparse = Body(lambda m, x: torch.sparse.mm(x[0].to_sparse(), x[0].T))
    with pytest.warns(Uncounted, match="_sparse_addmm ×1"):
        assert count(sparse, torch.randn(2, 3, 4)).flops == 0
    either = Body(lambda m, x: torch.cond(torch.tensor(True), lambda x: x @ x.mT, lambda x: x @ x.mT, (x,)))
    listed = {
        "_trilinear": Body(lambda m, x: F.bilinear(x, x, torch.randn(5, 4, 4))),
        "_fft_r2c": Body(lambda m, x: torch.fft.rfft(x).abs()),
        "_cdist_forward": Body(lambda m, x: torch.cdist(x, x)),
        "cond": either,
    }
    for name, model in listed.items():
        with pytest.warns(Uncounted, match=name):
            assert count(model, torch.randn(2, 3, 4)).uncounted == {name: 1}


def test_a_learnt_bias_makes_no_layer_of_a_product_of_maps():
    """Its factors do: a table of relative places that is added to the scores is no factor."""
    table = nn.Parameter(torch.randn(N, 5, 5))
    scores = Body(lambda m, x: torch.baddbmm(m.table, x, x.mT), table=table)
    with pytest.warns(Uncounted, match="baddbmm ×1"):
        assert count(scores, torch.randn(N, 5, 7), "macs_weights").flops == 0
    weight = nn.Parameter(torch.randn(7, 5))
    layer = Body(lambda m, x: torch.addmm(x[:, :5], x, m.w), w=weight)
    assert count(layer, torch.randn(5, 7), "macs_weights").flops == 175


def test_a_counter_for_a_few_calls():
    x, weight = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
    with MacCounter() as counter:
        q = F.conv2d(x, weight).flatten(2)[:, None]
        F.scaled_dot_product_attention(q, q, q)
    assert counter.macs == 36 * 4 * 27 + 2 * 4 * 4 * 36
