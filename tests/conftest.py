"""What every test shares: one thread, a fixed seed, the real images where they are at hand."""

import contextlib
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)
# What a user or a service has set for leanconv and for colours decides nothing here.
for _name in ("LEANCONV_ARITHMETIC", "LEANCONV_MAX_CPU_ISA", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"):
    os.environ.pop(_name, None)
# Which kernels a test gets never depends on how fast this machine is; tests of the calibration itself switch it on.
os.environ["LEANCONV_CALIBRATION"] = "off"
# Tables are as wide as the terminal; the tests read them at the width of piped output, whatever runs them.
os.environ["COLUMNS"] = "160"

# Rooms and files whose tests compile kernels for many shapes, or capture and compile whole networks: all are `slow`.
SLOW = [
    "benchmarks/test_fused_sizes.py",
    "cli/test_classifier.py",
    "cli/test_overwrite.py",
    "cli/test_reproduce.py",
    "cli/test_streams.py",
    "convert/test_zoo.py",
    "engine/fused/capture",
    "engine/fused/test_bfloat16.py",
    "engine/fused/test_candidate.py",
    "engine/fused/test_odd_models.py",
    "engine/fused/test_random_networks.py",
    "engine/fused/test_repeatable.py",
    "engine/fused/test_roofline.py",
    "kernels/bound",
    "kernels/compilation",
    "kernels/pipelines",
    "kernels/promises",
    "kernels/runtime/test_out_of_bounds.py",
    "papers",
    "test_copies.py",
]


def pytest_addoption(parser):
    parser.addoption("--seeds", default="0:200", help="of engine/fused/test_random_networks.py: FIRST:END")


@pytest.hookimpl(tryfirst=True)  # before `-m` is applied
def pytest_collection_modifyitems(items):
    slow = [(Path(__file__).parent / name).resolve(strict=True) for name in SLOW]
    for item in items:
        if any(item.path.is_relative_to(place) for place in slow):
            item.add_marker("slow")


# Tests that `-m` leaves out, by file.
LEFT_OUT = pytest.StashKey[Counter]()


def pytest_deselected(items):
    config = items[0].config if items else None
    if config and config.option.markexpr and not config.option.keyword:  # `-k` leaves out tests, too
        config.stash.setdefault(LEFT_OUT, Counter()).update(item.nodeid.partition("::")[0] for item in items)


def pytest_sessionfinish(session):
    """A worker of pytest-xdist sends its list to the process that prints the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(session.config.stash.get(LEFT_OUT, {}))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Every worker collects all tests, so the list of one is the list of all."""
    node.config.stash[LEFT_OUT] = Counter(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_terminal_summary(terminalreporter, config):
    left_out = config.stash.get(LEFT_OUT, Counter())
    if left_out:
        terminalreporter.section(f"{left_out.total()} tests left out by -m {config.option.markexpr!r}")
        for name, count in sorted(left_out.items()):
            terminalreporter.line(f"{count:5}  {name}")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _quick_onnx():
    """torch.onnx reads the sources of onnxscript's 500 functions at each export, for .6 s: here once a process."""
    export, kept = torch.onnx.export, []

    def quick(*args, **kwargs):
        if not kept:
            with contextlib.suppress(ImportError, AttributeError):  # another version of PyTorch
                from torch.onnx._internal.exporter import _registration as room

                kept.append(room.onnxscript_apis.get_torchlib_ops())
                patch.setattr(room.onnxscript_apis, "get_torchlib_ops", lambda: kept[0])
        return export(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", quick)
        yield


@pytest.fixture
def data_dir() -> Path:
    """The folder of real images, or a skip that says how to set it."""
    value = os.environ.get("LEANCONV_DATA")
    if not value or not Path(value).is_dir():
        pytest.skip("LEANCONV_DATA is not set to a folder of real images")
    return Path(value)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """A folder of small images with bright rectangles on noise, and their masks: learnt in a few steps."""
    from PIL import Image

    root, random = tmp_path_factory.mktemp("tiny"), np.random.default_rng(0)
    for split, count in {"train": 20, "val": 6, "test": 5}.items():
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for index in range(count):
            h, w = (40, 44) if index % 3 else (33, 50)
            image, mask = random.integers(0, 90, (h, w, 3), dtype=np.uint8), np.zeros((h, w), np.uint8)
            y, x = random.integers(0, 20, 2)
            mask[y : y + 12, x : x + 14] = 255
            image[mask > 0] += 120
            Image.fromarray(image).save(root / split / "images" / f"{index}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{index}.png")
    return root


# The classes of `coloured`, in the order of their labels.
COLOURS = {"blue": (40, 60, 190), "green": (50, 180, 60), "red": (200, 50, 40)}


@pytest.fixture(scope="session")
def coloured(tmp_path_factory) -> Path:
    """Class folders (12 train, 5 val, 4 test images each) of noise around a colour, 16 px: learnt in a few steps."""
    from PIL import Image

    root, random = tmp_path_factory.mktemp("coloured"), np.random.default_rng(0)
    for split, count in {"train": 12, "val": 5, "test": 4}.items():
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                noise = random.integers(-40, 41, (16, 16, 3))
                picture = np.clip(noise + np.array(colour), 0, 255).astype(np.uint8)
                Image.fromarray(picture).save(root / split / name / f"{index}.png")
    return root
