"""Tables of images, parquet or CSV: a column of bytes, or of paths and URLs. pyarrow reads them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import IO, Any

from ..errors import DatasetError, VAEError, in_one_line
from ..optional import optional_import
from .transfer import Raw, beside, fetch, name_of, open_source

TABLES = (".parquet", ".csv")
_BATCH = 16  # rows of parquet at once, which may have whole images in them
_BLOCK = 2**24  # bytes of a CSV at once; a row may have so many
# Columns that usually have the images, in the order of preference.
_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "bytes", "path", "file", "filename", "file_name", "filepath", "url")


def row_ranges(url: str, images: int, column: str = "") -> list[tuple[int, int]]:
    """The rows of a table in ranges that are read each by itself: all of a CSV, which can only be read from its
    beginning; of parquet as many whole row groups as have so many images.

    Args:
        column: see `Settings.column`.

    Raises:
        DatasetError: the table cannot be read, or has rows and no column of images.
    """
    with open_source(url) as file:
        if _is_csv(url):
            count = sum(len(batch) for batch in _csv_batches(file, url, column))
            return [(0, count)] if count else []
        table = _parquet(file, url)
        metadata = table.metadata
        if metadata.num_rows:
            _column(table.schema_arrow, column, url)
    ranges = []
    start = 0
    stop = 0
    for i in range(metadata.num_row_groups):
        stop += metadata.row_group(i).num_rows
        if stop - start >= images or (i == metadata.num_row_groups - 1 and stop > start):
            ranges.append((start, stop))
            start = stop
    return ranges


def read_rows(url: str, start: int, stop: int, column: str, wanted: Sequence[int]) -> Iterator[Raw]:
    """The images of some rows, from first to last without holding more than a few. Paths are taken as relative to the
    table's folder.

    Args:
        wanted: the rows, counted from `start`, ascending.

    Raises:
        DatasetError: the table cannot be read, or has no column of images.
    """
    first = start + wanted[0]
    stop = min(stop, start + wanted[-1] + 1)
    chosen = wanted if isinstance(wanted, range) else frozenset(wanted)
    with open_source(url) as file:
        read = _rows_of_csv if _is_csv(url) else _rows_of_parquet
        for before, batch in read(file, url, column, first, stop):
            for i in range(max(first, before), min(stop, before + len(batch))):
                if i - start in chosen:
                    yield _raw(batch[i - before].as_py(), url, i)


_Batches = Iterator[tuple[int, Any]]  # the number of the first row, and the values of the column


def _rows_of_csv(file: IO[bytes], url: str, column: str, first: int, stop: int) -> _Batches:
    """A column of a CSV as texts, batch by batch."""
    before = 0
    for batch in _csv_batches(file, url, column):
        if before >= stop:
            return
        yield before, batch
        before += len(batch)


def _rows_of_parquet(file: IO[bytes], url: str, column: str, first: int, stop: int) -> _Batches:
    """A column of parquet, in small batches of the row groups that have the rows."""
    source = _parquet(file, url)
    name = _column(source.schema_arrow, column, url)
    groups = []
    skipped = 0
    before = 0
    for i in range(source.metadata.num_row_groups):
        rows = source.metadata.row_group(i).num_rows
        if before < stop and before + rows > first:
            skipped = before if not groups else skipped
            groups.append(i)
        before += rows
    for batch in source.iter_batches(_BATCH, row_groups=groups, columns=[name]):
        yield skipped, batch.column(0)
        skipped += len(batch)


def _raw(value: Any, url: str, row: int) -> Raw:
    key = f"{os.path.basename(url)}/{row:09d}"
    if isinstance(value, dict):  # the Hub's images: bytes, path
        data = value.get("bytes")
        path = value.get("path")
        key = f"{key}/{os.path.basename(path)}" if path else key
        value = path if data is None else data
    if isinstance(value, bytes):
        return Raw(key, value)
    if isinstance(value, str) and value.strip():
        place = value.strip()
        if "://" not in place and not os.path.isabs(place):
            place = beside(url, place)
        return fetch(place, value.strip())
    kind = "" if value is None or value == "" or isinstance(value, str) else f", but {type(value).__name__}"
    return Raw(key, None, f"the row has no image{kind}")


def _column(schema: Any, wanted: str, url: str) -> str:
    names = list(schema.names)
    if wanted:
        if wanted in names:
            return wanted
        raise DatasetError(f"{url} has no column {wanted!r}. Its columns are {', '.join(names)}.")
    lower = {name.lower(): name for name in reversed(names)}
    for name in _COLUMNS:
        if name in lower:
            return lower[name]
    remedy = "Name the one with --column"
    if any(mark in name for name in names for mark in ";\t"):
        remedy = "Separate the columns by commas"
    raise DatasetError(f"none of the columns of {url} has the name of an image column ({', '.join(names)}). {remedy}.")


def _is_csv(url: str) -> bool:
    return name_of(url).lower().endswith(".csv")


def _csv_batches(file: IO[bytes], url: str, column: str) -> Iterator[Any]:
    """One column of a CSV as texts, batch by batch."""
    csv, pyarrow = (optional_import(name, "Reading CSV tables", "datasets") for name in ("pyarrow.csv", "pyarrow"))
    parse = csv.ParseOptions(newlines_in_values=True)  # captions have them
    read = csv.ReadOptions(block_size=_BLOCK)
    try:
        schema = csv.open_csv(file, read_options=read, parse_options=parse).schema
        name = _column(schema, column, url)
        file.seek(0)
        # As texts: what the first rows look like does not say what the others are.
        convert = csv.ConvertOptions(include_columns=[name], column_types={name: pyarrow.string()})
        for batch in csv.open_csv(file, read_options=read, parse_options=parse, convert_options=convert):
            yield batch.column(0)
    except VAEError:
        raise
    except ValueError as error:  # pyarrow's errors are ValueErrors
        raise _not_a_table(url, "CSV", error, "Export it again, in UTF-8 and with commas") from None


def _parquet(file: IO[bytes], url: str) -> Any:
    parquet = optional_import("pyarrow.parquet", "Reading parquet tables", "datasets")
    try:
        return parquet.ParquetFile(file)
    except (ValueError, OSError) as error:
        raise _not_a_table(url, "parquet", error, "Export it again") from None


def _not_a_table(url: str, kind: str, error: Exception, remedy: str) -> DatasetError:
    reason = in_one_line(error)
    return DatasetError(f"{url} is not a {kind} table that pyarrow reads: {reason}. {remedy}.")
