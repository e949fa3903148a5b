"""What every test shares: one thread, a fixed seed, the real images where they are at hand."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def data_dir() -> Path:
    """The folder of real images, or a skip that says how to set it."""
    value = os.environ.get("LEANCONV_DATA")
    if not value or not Path(value).is_dir():
        pytest.skip("LEANCONV_DATA is not set to a folder of real images")
    return Path(value)
