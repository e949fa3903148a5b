"""Nothing large in an answer may hide what is wrong beside it, and rounding is not taken for an error."""

import math

import pytest
import torch

from leanconv.agreement import compare

F32, BF16 = 1e-4, 5e-2
COARSER = torch.finfo(torch.bfloat16).eps / torch.finfo(torch.float32).eps


def noise(like, size):
    return size * torch.randn(like.shape)


def agree(want, have, tolerance=F32, **rest):
    single = isinstance(want, torch.Tensor)
    return compare([want] if single else want, [have] if single else have, tolerance, **rest).passes


SENTINELS = [-1e9, -1e4, 1e6, torch.finfo(torch.float32).min, -math.inf, math.nan]


@pytest.mark.parametrize("sentinel", SENTINELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sentinel_hides_nothing_and_blocks_nothing(sentinel, dtype):
    scores = torch.randn(2, 8, 12, 12, dtype=dtype)
    where, wrong = scores[:, :1] > 0.5, scores + 0.3 * torch.rand_like(scores)
    rounded = scores * (1 + 1e-7 * torch.rand_like(scores))
    tolerance = F32 if dtype == torch.float32 else 1e-6
    assert agree(scores.masked_fill(where, sentinel), rounded.masked_fill(where, sentinel), tolerance)
    assert not agree(scores.masked_fill(where, sentinel), wrong.masked_fill(where, sentinel), tolerance)
    if math.isfinite(sentinel):  # added, as attention's masks are: what is masked differs too
        assert agree(scores + where * sentinel, rounded + where * sentinel, tolerance)
        assert not agree(scores + where * sentinel, wrong + where * sentinel, tolerance)


def test_other_infinities_and_nan_are_another_answer():
    scores = torch.randn(3, 4)
    for a, b in ((math.inf, -math.inf), (math.nan, math.inf), (math.inf, 1.0), (1.0, math.nan)):
        assert not agree(scores.index_fill(1, torch.tensor(2), a), scores.index_fill(1, torch.tensor(2), b), 1.0)


LAYOUTS = {
    "channels first": lambda boxes, scores: torch.cat([boxes, scores], 1),
    "channels last": lambda boxes, scores: torch.cat([boxes, scores], 1).transpose(1, 2),
    "on top": lambda boxes, scores: torch.cat([boxes, scores], 1).transpose(0, 1),
    "one after the other": lambda boxes, scores: torch.cat([boxes.flatten(1), scores.flatten(1)], 1),
    "of one image": lambda boxes, scores: torch.cat([boxes.flatten(), scores.flatten()])[None],
    "apart": lambda boxes, scores: [boxes, scores],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("size", [32, 640])
def test_scores_are_judged_alike_however_they_are_joined_to_boxes(layout, size):
    boxes, scores = size * torch.rand(2, 4, 60), torch.rand(2, 3, 60)
    near = boxes * (1 + noise(boxes, 0.004))
    exact = layout(boxes * (1 + noise(boxes, 1e-6)), scores * (1 + noise(scores, 1e-6)))
    told = {"exact": lambda _: [exact] if isinstance(exact, torch.Tensor) else exact, "coarser": COARSER}
    want = layout(boxes, scores)
    assert agree(want, layout(near, scores * (1 + noise(scores, 0.004))), BF16, **told)
    assert not agree(want, layout(near, (scores + noise(scores, 0.1)).clamp(0, 1)), BF16, **told)


def test_a_channel_that_is_small_by_itself_is_judged_by_itself():
    features = torch.randn(1, 16, 14, 14)
    features[:, 5] *= 1e-6
    wrong = features.clone()
    wrong[:, 5] *= 1.01
    assert not agree(features, wrong, exact=lambda _: [features.double()])
    assert agree(features, features * (1 + noise(features, 1e-6)), exact=lambda _: [features.double()])


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-3])
@pytest.mark.parametrize("known", [True, False])
def test_dust_in_dead_channels_is_no_error(size, known):
    before = torch.randn(1, 64, 14, 14)
    before[:, 3] = before[:, 3] * size - 2 * size  # below zero, but for a few
    want = before.relu()
    exact = (before.double() + noise(before, 3e-7)).relu()
    given = (before + noise(before, 1e-6)).relu()
    assert agree(want, given, exact=(lambda _: [exact]) if known or size == 1e-3 else None)
    coarse = (before + noise(before, 0.01)).relu()
    assert agree(want, coarse, BF16, exact=lambda _: [exact], coarser=COARSER)


def test_nothing_but_noise_is_no_answer_to_be_wrong_about():
    map_ = torch.randn(1, 8, 14, 14)
    want = torch.cat([map_, noise(map_, 1e-8)], 1)  # an average taken from itself
    exact = torch.cat([map_, noise(map_, 1e-17)], 1).double()
    assert agree(want, torch.cat([map_ + noise(map_, 1e-7), noise(map_, 1e-8)], 1), exact=lambda _: [exact])


@pytest.mark.parametrize("shape", [(1, 1000), (2, 10), (4, 3)])
def test_small_logits_among_large_ones(shape):
    logits = 4 * torch.randn(shape)
    exact, given = logits.double() + noise(logits, 3e-7), logits + noise(logits, 0.01)
    assert agree(logits, given, BF16, exact=lambda _: [exact], coarser=COARSER)


@pytest.mark.parametrize("squash", [lambda x: x.softmax(1), torch.sigmoid], ids=["softmax", "sigmoid"])
def test_rare_classes_among_shares(squash):
    logits = 2 * torch.randn(1, 12, 20, 20)
    logits[:, 4] -= 14
    exact, given = squash(logits.double() + noise(logits, 4e-7)), squash(logits + noise(logits, 0.02))
    assert agree(squash(logits), given, BF16, exact=lambda _: [exact], coarser=COARSER)
    assert not agree(squash(logits), squash(logits + noise(logits, 0.02)), exact=lambda _: [exact])


def test_no_worse_than_the_model_itself():
    want = torch.randn(2, 4, 9, 9)
    exact = want.double() + noise(want, 0.3)  # PyTorch is off by much
    assert agree(want, exact.float(), exact=lambda _: [exact])
    assert not agree(want, want + noise(want, 3.0), exact=lambda _: [exact])


def test_whole_numbers_may_tie_here_and_there():
    labels = torch.randint(0, 9, (1, 64, 64))
    one = labels.clone()
    one[0, 0, 0] += 1
    assert agree(labels, one)
    assert not agree(labels, one, 1e-9)  # in exact algebra nothing ties
    assert not agree(labels, labels.roll(1, 2))
    assert agree(labels > 4, labels > 4)
    assert not agree(labels > 4, labels > 5)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_a_rare_class_among_whole_numbers_is_not_lost(dtype):
    labels = torch.zeros(1, 200, 200, dtype=dtype)
    labels[0, 50:54, 60:64] = 1  # a small defect: 16 of 40,000
    ties = labels.clone()
    ties[0, 50, 60:64] = 0
    ties[0, 54, 60:63] = 1
    nothing = torch.zeros_like(labels)
    assert agree(labels, ties)
    assert not agree(labels, nothing)
    assert not agree(nothing, labels)
    assert not agree(labels, labels.roll(8, 1))


def test_complex_numbers_scalars_and_nothing():
    spectrum = torch.fft.rfft2(torch.randn(2, 8, 8))
    assert agree(spectrum, spectrum * (1 + 1e-6))
    assert not agree(spectrum, spectrum.conj())
    assert agree(torch.tensor(3.0), torch.tensor(3.0001))
    assert not agree(torch.tensor(3.0), torch.tensor(3.01))
    assert agree(torch.zeros(0, 3), torch.zeros(0, 3))
    assert agree(torch.zeros(3), torch.zeros(3))
    assert not agree([torch.zeros(3)], [])
    assert not agree(torch.zeros(3), torch.zeros(4))
    assert not agree(torch.zeros(3), torch.zeros(3).double())
    assert not agree(torch.zeros(3), torch.full((3,), 1e-9), BF16)  # nothing says that this is small


def test_half_precision():
    map_ = torch.randn(1, 4, 9, 9).bfloat16()
    assert agree(map_, (map_ * 1.01).bfloat16(), BF16)
    assert not agree(map_, (map_ * 1.1).bfloat16(), BF16)


def test_numbers_so_far_apart_that_their_difference_overflows_are_apart():
    far = torch.full((4, 8), 3e38)
    assert not agree(far, -far)
    scores = torch.randn(4, 8)
    hidden, shown = (scores.masked_fill(scores > 0.5, end) for end in (-3e38, 3e38))
    assert not agree(hidden, shown)
    assert agree(hidden, hidden.clone())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bits_are_compared_too(dtype):
    scores = torch.randn(4, 32)
    assert agree(scores.to(dtype), scores.to(dtype), BF16)
    assert not agree(scores.to(dtype), (scores * -1).to(dtype), BF16)


def test_chaos_in_one_output_excuses_no_other():
    wild, calm = torch.randn(64), torch.randn(64)
    want, wrong = [wild, calm], [wild + 0.5 * torch.randn(64), calm + 0.3]

    def exact(moved):
        return [wild.double() + 0.4 * torch.randn(64), calm.double()]

    assert not compare(want, wrong, F32, exact, chaos=1e-2).passes
    assert compare(want, [wrong[0], calm + 1e-7], F32, exact, chaos=1e-2).passes
