"""The pictures: each pixel's colour says what happened there, and worst, typical and best images are shown alike."""

import base64
import io
import itertools

import numpy as np
import pytest
from PIL import Image

from leanconv.report.overlays import (
    CLASS_COLOURS,
    COLOURS,
    FALSE,
    FOUND,
    MISSED,
    OTHER,
    case,
    choose,
    css_colours,
    error_map,
)
from leanconv.train.tasks.decision import Rule


def decode(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_error_map_by_a_table_of_all_cases():
    guess, truth = np.array([[0, 1, 0, 1, 1, 2]], np.uint8), np.array([[0, 1, 1, 0, 2, 2]], np.uint8)
    assert error_map(guess, truth).tolist() == [[0, FOUND, MISSED, FALSE, OTHER, FOUND]]


def test_the_mask_holds_the_pixels_in_their_colours():
    truth = np.zeros((20, 30), np.uint8)
    truth[2:8, 3:9] = 1
    guess = np.roll(truth, 3, axis=1)
    made = case(
        "p", "the worst", np.full((3, 20, 30), 99, np.uint8), truth, [(0, "unet", guess, 0.5, Rule())], ("bg", "defect")
    )
    shown = np.asarray(decode(made.tiles[2].mask).convert("RGBA"))
    errors = error_map(guess, truth)
    for code, colour in COLOURS.items():
        assert (shown[errors == code] == (*colour, 255)).all()
    assert (shown[errors == 0][:, 3] == 0).all()
    assert decode(made.photo).size == (30, 20)
    assert (
        made.tiles[2].alt
        == "unet on p: Dice 0.50; 1 found, 0 missed; 50% of the defect pixels found, 3.0% of the image falsely marked"
    )


@pytest.mark.parametrize("size", [(1, 1), (1000, 3), (700, 500)])
def test_any_size_fits_and_stays_small(size):
    truth = np.ones(size, np.uint8)
    made = case("p", "", np.random.default_rng(0).integers(0, 255, (3, *size), dtype=np.uint8), truth, [], ("b", "d"))
    assert max(made.width, made.height) <= 288
    assert decode(made.tiles[1].mask).size == (made.width, made.height)
    assert len(made.photo) < 90_000


def test_as_many_worst_typical_and_best_ones():
    a = {f"i{k:02d}": k / 20 for k in range(20)}
    b = {name: dice / 2 for name, dice in a.items()}
    chosen = choose([a, b, {}], 6)
    assert [name for name, _ in chosen] == ["i00", "i01", "i09", "i10", "i19", "i18"]
    assert [group for _, group in chosen] == ["worst"] * 2 + ["typical"] * 2 + ["best"] * 2
    groups = [[group for _, group in choose([a], limit)] for limit in range(1, 6)]
    assert groups[0] == ["worst"]
    assert groups[1] == ["worst", "best"]
    assert groups[2] == ["worst", "typical", "best"]
    assert groups[4] == ["worst", "worst", "typical", "best", "best"]


def test_the_best_ones_have_a_defect():
    scores = {"empty": 1.0, "clear": 0.9, "faint": 0.5, "lost": 0.0}
    assert dict(choose([scores], 3, {"clear", "faint", "lost"}))["clear"] == "best"
    assert dict(choose([scores], 3, set()))["empty"] == "best"


def test_the_truth_has_its_own_colour_and_a_dark_edge():
    truth = np.zeros((20, 30), np.uint8)
    truth[2:8, 3:9] = 1
    made = case("p", "best", np.full((3, 20, 30), 99, np.uint8), truth, [], ("bg", "defect"))
    shown = np.asarray(decode(made.tiles[1].mask).convert("RGBA"))
    assert (shown[truth == 1] == (*CLASS_COLOURS[0], 255)).all()
    assert CLASS_COLOURS[0] not in COLOURS.values()
    dark = (shown == (0, 0, 0, 255)).all(-1)
    assert dark.sum() == 4 * 6  # a line along each of the four sides
    assert dark[1, 3:9].all()
    assert made.tiles[1].note == "1 defect"
    assert css_colours(("bg", "defect"))[0] == ("truth", "rgb(255 255 255)")
    assert [words for words, _ in css_colours(("bg", "a", "b"))[:2]] == ["truth: a", "truth: b"]


# Machado, Oliveira and Fernandes 2009, doi:10.1109/TVCG.2009.113, table for full severity, on linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(colour: tuple[int, int, int], matrix: list[list[float]]) -> np.ndarray:
    """CIELAB (D65) of an sRGB colour as a person with that colour vision sees it."""
    c = np.array(colour) / 255
    linear = np.clip(matrix @ np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4), 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = to_xyz @ linear / [0.95047, 1, 1.08883]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("kind", BLINDNESS)
def test_colours_differ_for_every_colour_vision(kind):
    seen = {colour: lab(colour, BLINDNESS[kind]) for colour in (*COLOURS.values(), *CLASS_COLOURS)}
    for one, two in itertools.combinations((*COLOURS.values(), CLASS_COLOURS[0]), 2):
        assert np.linalg.norm(seen[one] - seen[two]) >= 40, (one, two)
    for one, two in itertools.combinations(CLASS_COLOURS, 2):
        assert np.linalg.norm(seen[one] - seen[two]) >= 20, (one, two)


def test_only_images_that_every_model_was_scored_on():
    assert [name for name, _ in choose([{"x": 0.1, "y": 0.2}, {"y": 0.4, "z": 0.0}], 5)] == ["y"]
    assert choose([{}, {}], 5) == []
    assert choose([{"x": 0.1}], 0) == []
    assert len(choose([{"x": 0.1, "y": 0.3}], 9)) == 2
