"""Samples in Parquet files: columns `image` and `mask`, encoded files as `struct<bytes, path>` or plain binary.

A file of a few kB may unfold to more than memory holds: it says so in its footer, which is read first. Equal values of
a column stand in the file once, and once in memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from leanconv.errors import BadInput
from leanconv.extras import needs
from leanconv.files import check_file
from leanconv.train.data.pairs import PairReader
from leanconv.train.data.splits import SPLITS, parquet_files

# Encoded files stay in memory: Parquet cannot read single rows in random order.
MAX_BYTES = 8 * 2**30
# Encoded images hardly compress. Columns that unpack to this multiple, beyond the first figure, hold no images.
_SMALL, _TIMES = 64 * 2**20, 100
# The smallest PNG has 67 bytes. Rows that share an image may still reach the first figure.
_FEW_ROWS, _ROW_BYTES = 100_000, 16


class ParquetSource:
    """The rows of one split's files, still encoded. Names: the column `name`, else the path's stem, else a number.

    `label`: a column of class names out of `classes`, one a row: that of the defects in its mask.
    """

    def __init__(self, files: Sequence[Path], reader: PairReader, label: str = "", classes: Sequence[str] = ()) -> None:
        self.reader = reader
        self._rows: list[tuple[Path, int, Any, Any]] = []  # file, row in it, cells of image and mask
        self._classes: list[int] = []
        names: list[str] = []
        labels = (label,) if label else ()
        check_bytes(files, ("image", "mask", "name", *labels))
        for path in files:
            table = read_columns(path, ("image", "mask", *labels), ("name",))
            for row, (image, mask) in enumerate(zip(table["image"], table["mask"], strict=True)):
                own = table["name"][row] if "name" in table else None
                self._classes.append(classes.index(_label(table[label][row], path, row, label)) if label else 1)
                names.append((str(own) if own is not None else Path(_path(image)).stem) or f"{len(names):06d}")
                self._rows.append((path, row, image, mask))
        if not names:
            raise BadInput(f"{files[0]}: no rows")
        self.names: Sequence[str] = names

    def sizes(self, index: int) -> tuple[int, int]:
        """Height and width by the headers."""
        return self.reader.sizes(*self._pair(index))

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Decode image and mask."""
        return self.reader.read(*self._pair(index), as_class=self._classes[index])

    def _pair(self, index: int) -> tuple[bytes, bytes, str, str]:
        """The encoded image and mask, and their names for error messages."""
        path, row, image, mask = self._rows[index]
        where = f"{path}, row {self.names[index]!r},"
        return (encoded(image, path, row, "image"), encoded(mask, path, row, "mask"), f"{where} image", f"{where} mask")


def check_bytes(files: Sequence[Path], columns: Sequence[str]) -> None:
    """Raises BadInput for files whose columns do not fit in memory, by their footers."""
    total = 0
    for path in files:
        with _opened(path) as file:
            total += _unfolded(file, path, columns)
    if total > MAX_BYTES:
        raise BadInput(
            f"{files[0].parent}: a split of {total / 2**30:.0f} GiB does not fit in memory; unpack it to folders"
        )


def column_names(path: Path) -> list[str]:
    """The columns that a file has. Raises BadInput."""
    with _opened(path) as file:
        return list(file.schema_arrow.names)


def read_columns(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> dict[str, list[Any]]:
    """Columns of a file, and those of `optional` that it has, as lists. Raises BadInput."""
    with _opened(path) as file:
        known = list(file.schema_arrow.names)
        if missing := [column for column in columns if column not in known]:
            raise BadInput(f"{path}: no column {' and no column '.join(missing)}; it has {', '.join(known)}")
        wanted = [*columns, *(column for column in optional if column in known)]
        if twice := [column for column in wanted if known.count(column) > 1]:
            raise BadInput(f"{path}: has several columns {twice[0]}; keep one")
        _judge_types(file, path, wanted)
        _unfolded(file, path, wanted)
    found: dict[str, list[Any]] = {column: [] for column in wanted}
    with _opened(path, shared=wanted) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=wanted, use_threads=False)
            for column in wanted:
                for chunk in table.column(column).chunks:
                    found[column] += _cells(chunk)
    return found


def label_names(root: Path, column: str) -> list[str]:
    """The values of a column of labels in all splits, sorted. Raises BadInput for one that is no name."""
    found: set[str] = set()
    for split in SPLITS:
        for path in parquet_files(root, split):
            found.update(
                _label(cell, path, row, column) for row, cell in enumerate(read_columns(path, (column,))[column])
            )
    return sorted(found)


def _label(cell: Any, path: Path, row: int, column: str) -> str:
    if type(cell) not in (str, int) or not str(cell).strip():
        raise BadInput(f"{path}, row {row}: column {column} holds {str(cell)[:40]!r}; label= takes a name in every row")
    return str(cell)


def encoded(cell: Any, path: Path, row: int, column: str) -> bytes:
    """The encoded file in a cell. Raises BadInput if there is none."""
    content = _content(cell)
    if not isinstance(content, bytes):
        found = "nothing" if content is None else type(content).__name__
        raise BadInput(f"{path}, row {row}: column {column} holds {found}; it needs the bytes of an encoded image")
    return content


def _content(cell: Any) -> Any:
    return cell.get("bytes") if isinstance(cell, dict) else cell


def image_rows(root: Path) -> Iterator[tuple[bytes, str]]:
    """The images of all splits and their names."""
    for split in SPLITS:
        for path in parquet_files(root, split):
            for row, cell in enumerate(read_columns(path, ("image",))["image"]):
                if isinstance(content := _content(cell), bytes):
                    yield content, f"{path}, row {row}"


@contextmanager
def _opened(path: Path, shared: Sequence[str] = ()) -> Iterator[Any]:
    """Read a file; equal values of the columns `shared` stay one object. Raises BadInput for any damage."""
    pyarrow = _pyarrow()
    check_file(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            leaves = [file.schema.column(place) for place in range(len(file.schema.names))]
            texts = [
                leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY" and leaf.path.split(".")[0] in shared
            ]
            if not texts:
                yield file
                return
        with pyarrow.parquet.ParquetFile(path, read_dictionary=texts) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise BadInput(f"{path}: cannot be read as Parquet: {str(error).splitlines()[0]}") from error


def _judge_types(file: Any, path: Path, columns: Sequence[str]) -> None:
    """Raise BadInput for an image column of lists or numbers: each of them would become an object."""
    types = _pyarrow().types
    for column in ("image", "mask"):
        if column in columns:
            kind = file.schema_arrow.field(column).type
            if types.is_list(kind) or types.is_large_list(kind) or types.is_primitive(kind):
                raise BadInput(f"{path}: column {column} holds {kind}; it needs the bytes of an encoded image")


def _unfolded(file: Any, path: Path, columns: Sequence[str]) -> int:
    """The columns' bytes in memory. Raises BadInput if the file is far too small for them."""
    size, total, rows = path.stat().st_size, 0, 0
    for group in range(file.metadata.num_row_groups):
        chunks, most = file.metadata.row_group(group), 0
        for place in range(chunks.num_columns):
            chunk = chunks.column(place)
            if chunk.path_in_schema.split(".")[0] in columns:
                # Delta-encoded values: each may be as long as the whole chunk.
                repeated = chunk.num_values if "DELTA_BYTE_ARRAY" in chunk.encodings else 1
                total += max(0, chunk.total_uncompressed_size) * repeated
                most = max(most, chunk.num_values)
        rows += most
    if total > max(_SMALL, _TIMES * size):
        raise BadInput(
            f"{path}: {size:,} bytes that unfold to {total / 2**20:,.0f} MiB, which no encoded images do; write it "
            "anew, without delta encoding"
        )
    if rows > max(_FEW_ROWS, size // _ROW_BYTES):
        raise BadInput(f"{path}: {rows:,} values in {size:,} bytes; there is no image in so few bytes")
    return total


def _cells(chunk: Any) -> list[Any]:
    """The values of an Arrow array; equal ones of a dictionary are one object."""
    types = _pyarrow().types
    if types.is_dictionary(chunk.type):
        values = chunk.dictionary.to_pylist()
        return [None if place is None else values[place] for place in chunk.indices.to_pylist()]
    if types.is_struct(chunk.type):
        names = [field.name for field in chunk.type]
        parts = zip(*(_cells(part) for part in chunk.flatten()), strict=True)
        there = chunk.is_valid().to_pylist()
        return [
            dict(zip(names, part, strict=True)) if valid else None for part, valid in zip(parts, there, strict=True)
        ]
    cells: list[Any] = chunk.to_pylist()
    return cells


def _pyarrow() -> Any:
    with needs("pyarrow", "train"):
        import pyarrow
        import pyarrow.parquet
    return pyarrow


def _path(cell: Any) -> str:
    return str(cell.get("path") or "") if isinstance(cell, dict) else ""
