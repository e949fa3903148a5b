"""Folders of images alone: no masks, no classes, nothing to learn but how another network answers."""

import os
from pathlib import Path

from leanconv.train.data.class_folders import has_class_folders
from leanconv.train.data.folders import is_of_masks
from leanconv.train.data.image_files import images_in
from leanconv.train.data.splits import holds_parquet


def is_unlabelled(data: str) -> bool:
    """Whether a data reference is a folder of images without masks, classes or Parquet splits."""
    root = Path(os.path.expanduser(data))
    if not data or not os.path.isdir(root) or holds_parquet(root):
        return False
    return bool(images_in(root).images) and not (is_of_masks(root) or has_class_folders(root))
