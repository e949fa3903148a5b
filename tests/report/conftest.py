"""Two small run folders and the images they are scored on, made once; and a browser where one is installed."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from leanconv.files import write_json
from leanconv.runs import RunFolder, load

pytest.importorskip("jinja2", reason="the report needs jinja2")
pytest.importorskip("matplotlib", reason="the report needs matplotlib")
Image = pytest.importorskip("PIL.Image", reason="the report needs pillow")

DENSE = "leanconv:unet?base=4&levels=2"
LEAN = "leanconv:unet?base=4&levels=2&conv=splconv(alpha=0.5)"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """A test that starts a browser is slow."""
    for item in items:
        if "browser" in item.fixturenames:
            item.add_marker("slow")


def make_data(root: Path, images: int = 6) -> str:
    """Grey noise with one bright square each, 40x56; the second image has no defect."""
    random = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / "test" / kind).mkdir(parents=True)
    for i in range(images):
        picture = random.integers(60, 120, (40, 56, 3), dtype=np.uint8)
        mask = np.zeros((40, 56), np.uint8)
        if i != 1:
            mask[5 + i : 20 + i, 10 : 25 + i] = 255
        picture[mask > 0] += 90
        Image.fromarray(picture).save(root / "test" / "images" / f"part_{i}.png")
        Image.fromarray(mask).save(root / "test" / "masks" / f"part_{i}.png")
    return str(root)


def make_run(path: Path, model: str, data: str, *, seed: int = 0, **recipe: object) -> RunFolder:
    """A run folder as a training leaves it, with fresh weights."""
    run = RunFolder(path)
    path.mkdir(parents=True)
    settings = {"model": model, "data": data, "size": 32, "lr": 0.001, "epochs": 3, "seed": seed} | recipe
    lines = [f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}" for key, value in settings.items()]
    run.recipe.write_text("\n".join(lines) + "\n")
    run.write_model(model)
    torch.manual_seed(seed)
    run.save_model(load(model))
    run.history.write_text("epoch,step,loss,dice\n1,10,0.9,0.20\n2,20,0.6,0.45\n3,30,0.5,0.50\n")
    write_json(run.metrics, {"threshold": 0.45, "test": {"dice": 0.5, "image_dice": 0.4, "iou": 0.33}})
    return run


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory) -> tuple[RunFolder, RunFolder]:
    """A dense U-Net and its SPLConv twin; read them, do not write."""
    root = tmp_path_factory.mktemp("report")
    data = make_data(root / "data")
    return make_run(root / "dense", DENSE, data), make_run(root / "lean", LEAN, data, seed=1)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """`browser(html, *options)` -> (page as it stands after its script, console lines), in a real headless Chromium."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if not found:
        pytest.skip("no Chromium or Chrome is installed")

    def open_page(html: str, *options: str, query: str = "") -> tuple[str, list[str]]:
        folder = tmp_path_factory.mktemp("browser")
        page = folder / "report.html"
        page.write_text(html, encoding="utf-8")
        done = subprocess.run(
            [
                found,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                f"--user-data-dir={folder / 'profile'}",
                "--enable-logging=stderr",
                "--v=0",
                "--hide-scrollbars",
                "--virtual-time-budget=2000",
                *(options or ("--dump-dom",)),
                page.as_uri() + query,
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return open_page
