"""Samples in Parquet files: columns `image` and `mask`, encoded files as `struct<bytes, path>` or plain binary."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from leanconv.errors import BadInput, missing_extra
from leanconv.train.decode import read_size
from leanconv.train.folders import same_size
from leanconv.train.images import read_image
from leanconv.train.masks import read_mask

# The encoded files are held in memory, since rows in random order cannot be read from Parquet one by one.
MAX_BYTES = 8 * 2**30


class ParquetSource:
    """The rows of one split's files, still encoded. Names: the column `name`, else the path's stem, else a number."""

    def __init__(self, files: Sequence[Path], classes: int, threshold: int | None) -> None:
        self.classes, self.threshold = classes, threshold
        check_bytes(files)
        self._files: list[str] = []
        self._rows: list[tuple[bytes, bytes]] = []
        names: list[str] = []
        for path in files:
            for image, mask, name in _rows(path):
                self._files.append(str(path))
                self._rows.append((image, mask))
                names.append(name or f"{len(names):06d}")
        if not names:
            raise BadInput(f"{files[0]}: no rows")
        self.names: Sequence[str] = names

    def sizes(self, index: int) -> tuple[int, int]:
        """Height and width by the headers."""
        image, mask = self._rows[index]
        where = self._where(index)
        return same_size(read_size(image, f"{where} image"), read_size(mask, f"{where} mask"), f"{where} mask")

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """The decoded image and mask."""
        where = self._where(index)
        image = read_image(self._rows[index][0], f"{where} image")
        mask = read_mask(self._rows[index][1], f"{where} mask", self.classes, self.threshold)
        same_size(tuple(image.shape[1:]), tuple(mask.shape), f"{where} mask")
        return image, mask

    def _where(self, index: int) -> str:
        return f"{self._files[index]}, row {self.names[index]!r},"


def check_bytes(files: Sequence[Path]) -> None:
    """Raises BadInput for files that memory would not hold."""
    if (total := sum(path.stat().st_size for path in files)) > MAX_BYTES:
        raise BadInput(
            f"{files[0].parent}: a split of {total / 2**30:.0f} GiB does not fit in memory; unpack it to folders"
        )


def column_names(path: Path) -> list[str]:
    """The columns that a file has. Raises BadInput."""
    pyarrow = _pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return list(file.schema_arrow.names)
    except (pyarrow.ArrowException, OSError) as error:
        raise BadInput(f"{path}: cannot be read as Parquet: {str(error).splitlines()[0]}") from error


def read_columns(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> dict[str, list[Any]]:
    """Columns of a file, and those of `optional` that it has, as lists. Raises BadInput."""
    known = column_names(path)
    if missing := [column for column in columns if column not in known]:
        raise BadInput(f"{path}: no column {' and no column '.join(missing)}; it has {', '.join(known)}")
    pyarrow = _pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            table: dict[str, list[Any]] = file.read(
                columns=[*columns, *(c for c in optional if c in known)]
            ).to_pydict()
    except (pyarrow.ArrowException, OSError) as error:
        raise BadInput(f"{path}: cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    return table


def encoded(cell: Any, path: Path, row: int, column: str) -> bytes:
    """The encoded file in a cell. Raises BadInput where there is none."""
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(content, bytes):
        found = "nothing" if content is None else type(content).__name__
        raise BadInput(f"{path}, row {row}: column {column} holds {found}; it needs the bytes of an encoded image")
    return content


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise missing_extra("pyarrow", "train") from error
    return pyarrow


def _rows(path: Path) -> list[tuple[bytes, bytes, str]]:
    """Image, mask and name of each row of a file."""
    table = read_columns(path, ("image", "mask"), ("name",))
    names = table.get("name") or [None] * len(table["image"])
    rows = []
    for number, (image, mask, name) in enumerate(zip(table["image"], table["mask"], names, strict=True)):
        label = str(name) if name is not None else Path(_path(image)).stem
        rows.append((encoded(image, path, number, "image"), encoded(mask, path, number, "mask"), label))
    return rows


def _path(cell: Any) -> str:
    return str(cell.get("path") or "") if isinstance(cell, dict) else ""
