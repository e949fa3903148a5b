"""The pictures: each pixel's colour says what happened there, and the worst images come first."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from leanconv.report.overlays import COLOURS, FALSE, FOUND, MISSED, OTHER, case, choose, error_map


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
        "p", "the worst", np.full((3, 20, 30), 99, np.uint8), truth, [(0, "unet", guess, 0.5)], ("bg", "defect")
    )
    shown = np.asarray(decode(made.tiles[2].mask).convert("RGBA"))
    errors = error_map(guess, truth)
    for code, colour in COLOURS.items():
        assert (shown[errors == code] == (*colour, 255)).all()
    assert (shown[errors == 0][:, 3] == 0).all()
    assert decode(made.photo).size == (30, 20)
    assert made.tiles[2].alt == "unet on p: Dice 0.50; 50% of the defect found, 3.0% of the image falsely marked"


@pytest.mark.parametrize("size", [(1, 1), (1000, 3), (700, 500)])
def test_any_size_fits_and_stays_small(size):
    truth = np.ones(size, np.uint8)
    made = case("p", "", np.random.default_rng(0).integers(0, 255, (3, *size), dtype=np.uint8), truth, [], ("b", "d"))
    assert max(made.width, made.height) <= 288
    assert decode(made.tiles[1].mask).size == (made.width, made.height)
    assert len(made.photo) < 90_000


def test_worst_first_then_a_typical_and_the_best():
    a = {f"i{k:02d}": k / 20 for k in range(20)}
    b = {name: dice / 2 for name, dice in a.items()}
    chosen = choose([a, b, {}], 6)
    assert [name for name, _ in chosen] == ["i00", "i01", "i02", "i03", "i11", "i19"]
    assert [why for _, why in chosen][-2:] == ["a typical one", "the best"]


def test_only_images_that_every_model_was_scored_on():
    assert [name for name, _ in choose([{"x": 0.1, "y": 0.2}, {"y": 0.4, "z": 0.0}], 5)] == ["y"]
    assert choose([{}, {}], 5) == []
    assert choose([{"x": 0.1}], 0) == []
    assert len(choose([{"x": 0.1, "y": 0.3}], 9)) == 2
