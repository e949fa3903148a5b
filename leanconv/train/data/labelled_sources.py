"""Sources of labelled images: files, rows of Parquet files, an array."""

import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from leanconv.train.data.image_reader import ImageReader
from leanconv.train.data.parquet import encoded


class LabelSource(Protocol):
    """The images and labels of one split, by number."""

    names: Sequence[str]
    labels: Sequence[int]

    def where(self, index: int) -> str:
        """The file or row, for error messages."""

    def size(self, index: int) -> tuple[int, int]:
        """Height and width by the header."""

    def read(self, index: int) -> Tensor:
        """The decoded image, uint8 `3 H W`. Raises BadInput."""


class Part:
    """A subset of a source."""

    def __init__(self, source: LabelSource, places: Sequence[int]) -> None:
        self.source, self.places = source, places
        self.names: Sequence[str] = [source.names[place] for place in places]
        self.labels: Sequence[int] = [source.labels[place] for place in places]

    def where(self, index: int) -> str:
        return self.source.where(self.places[index])

    def size(self, index: int) -> tuple[int, int]:
        return self.source.size(self.places[index])

    def read(self, index: int) -> Tensor:
        return self.source.read(self.places[index])


class Files:
    """Image files, each with a class."""

    def __init__(self, paths: Sequence[Path], labels: Sequence[int], names: Sequence[str], reader: ImageReader) -> None:
        self.paths, self.labels, self.names, self.reader = paths, labels, names, reader

    def where(self, index: int) -> str:
        return str(self.paths[index])

    def size(self, index: int) -> tuple[int, int]:
        return self.reader.header(self.paths[index], self.where(index)).size

    def read(self, index: int) -> Tensor:
        return self.reader.read(self.paths[index], self.where(index))


class Rows:
    """Encoded images of Parquet files; a row's name is its number within the split."""

    def __init__(
        self,
        files: Sequence[Path],
        rows: Sequence[Any],
        labels: Sequence[int],
        starts: Sequence[int],
        reader: ImageReader,
    ) -> None:
        self.files, self.rows, self.labels, self.starts, self.reader = files, rows, labels, starts, reader
        self.names: Sequence[str] = [f"{row:06d}" for row in range(len(rows))]

    def where(self, index: int) -> str:
        path, row = self._place(index)
        return f"{path}, row {row}"

    def size(self, index: int) -> tuple[int, int]:
        return self.reader.header(self._encoded(index), self.where(index)).size

    def read(self, index: int) -> Tensor:
        return self.reader.read(self._encoded(index), self.where(index))

    def _encoded(self, index: int) -> bytes:
        return encoded(self.rows[index], *self._place(index), "image")

    def _place(self, index: int) -> tuple[Path, int]:
        file = bisect.bisect_right(self.starts, index) - 1
        return self.files[file], index - self.starts[file]


class Array:
    """Decoded images: uint8 `N 3 H W`."""

    def __init__(self, images: Tensor, labels: Sequence[int]) -> None:
        self.images, self.labels = images, labels
        self.names: Sequence[str] = [f"{row:06d}" for row in range(len(images))]

    def where(self, index: int) -> str:
        return f"image {index}"

    def size(self, index: int) -> tuple[int, int]:
        return int(self.images.shape[2]), int(self.images.shape[3])

    def read(self, index: int) -> Tensor:
        return self.images[index]
