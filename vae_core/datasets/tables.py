"""Tables of images, parquet or CSV: a column of bytes, or of paths and URLs. pyarrow reads them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from ..errors import DatasetError
from .extras import require
from .transfer import Raw, fetch, open_source

TABLES = (".parquet", ".csv")
# Columns that usually have the images, in the order of preference.
_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "bytes", "path", "file", "filename", "file_name", "filepath", "url")


def row_ranges(url: str, images: int) -> list[tuple[int, int]]:
    """The rows of a table in ranges of so many."""
    with open_source(url) as file:
        count = _read_csv(file, url).num_rows if _is_csv(url) else _parquet(file, url).metadata.num_rows
    return [(start, min(start + images, count)) for start in range(0, count, images)]


def read_rows(url: str, start: int, stop: int, column: str = "") -> Iterator[Raw]:
    """The images of some rows. Paths are taken as relative to the table's folder.

    Raises:
        DatasetError: the table cannot be read, or has no column of images.
    """
    with open_source(url) as file:
        if _is_csv(url):
            table = _read_csv(file, url)
            name = _column(table.schema, column, url)
            values = table.column(name).slice(start, stop - start)
        else:
            source = _parquet(file, url)
            name = _column(source.schema_arrow, column, url)
            values = _rows_of_parquet(source, name, start, stop)
    for i, value in enumerate(values):
        yield _raw(value.as_py(), url, start + i)


def _rows_of_parquet(source: Any, name: str, start: int, stop: int) -> Any:
    """A column's rows, read from no more row groups than have them."""
    groups, first, before = [], 0, 0
    for i in range(source.metadata.num_row_groups):
        rows = source.metadata.row_group(i).num_rows
        if before < stop and before + rows > start:
            first = before if not groups else first
            groups.append(i)
        before += rows
    return source.read_row_groups(groups, columns=[name]).column(name).slice(start - first, stop - start)


def _raw(value: Any, url: str, row: int) -> Raw:
    key = f"{os.path.basename(url)}/{row:09d}"
    if isinstance(value, dict):  # the Hub's images: bytes, path
        data, path = value.get("bytes"), value.get("path")
        key = f"{key}/{os.path.basename(path)}" if path else key
        value = path if data is None else data
    if isinstance(value, bytes):
        return Raw(key, value)
    if isinstance(value, str) and value.strip():
        place = value.strip()
        folder = url.rpartition("/")[0]
        if "://" not in place and not os.path.isabs(place) and folder:
            place = f"{folder}/{place}"
        return fetch(place, value.strip())
    return Raw(key, None, f"the row has no image, but {type(value).__name__}")


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
    raise DatasetError(
        f"none of the columns of {url} has a name of images ({', '.join(names)}). Name the one with --column."
    )


def _is_csv(url: str) -> bool:
    return url.partition("?")[0].lower().endswith(".csv")


def _read_csv(file: Any, url: str) -> Any:
    csv = require("pyarrow.csv", "datasets", "reading CSV tables")
    try:
        return csv.read_csv(file)
    except ValueError as error:  # pyarrow's errors are ValueErrors
        raise DatasetError(f"{url} is not a CSV table that pyarrow reads: {error}. Export it again.") from None


def _parquet(file: Any, url: str) -> Any:
    parquet = require("pyarrow.parquet", "datasets", "reading parquet tables")
    try:
        return parquet.ParquetFile(file)
    except (ValueError, OSError) as error:
        raise DatasetError(f"{url} is not a parquet table that pyarrow reads: {error}. Export it again.") from None
