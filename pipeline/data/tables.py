"""Parquet and JSON files of a data set, with no handle that outlives a call."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import DataError

UNREADABLE = (OSError, pa.ArrowException, ValueError, KeyError)
"""What pyarrow raises for a damaged file."""
AGAIN = "Make or download it again"
MAX_ROWS = 10_000_000  # of a file: a hundred hours at 25 a second. A few bytes can say that there are billions
BATCH = 64  # rows of a table that holds pictures, at a time


def read_table(file: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a table, or those of `columns` that it has.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with pq.ParquetFile(file) as table:
            if (rows := table.metadata.num_rows) > MAX_ROWS:
                raise ValueError(f"{rows:,} rows; {MAX_ROWS:,} are the most. Split it")
            return table.read(columns=None if columns is None else list(columns))
    except UNREADABLE as error:
        raise DataError(f"{file}: cannot be read as a table ({error}). {AGAIN}") from error


def read_column(file: Path, key: str, start: int, stop: int) -> pa.ChunkedArray:
    """Return rows `start:stop` of a column. Row groups without any of them are not read.

    Raises:
        DataError: it cannot be read, or has not so many rows.
    """
    chunks: list[pa.Array] = []
    try:
        with pq.ParquetFile(file) as table:
            before = 0
            for group in range(table.num_row_groups):
                end = before + table.metadata.row_group(group).num_rows
                if before < stop and end > start:
                    chunks += _pieces(table, group, key, max(start - before, 0), min(stop, end) - before)
                before = end
    except UNREADABLE as error:
        raise DataError(f"{file}: {key} cannot be read ({error}). {AGAIN}") from error
    if sum(map(len, chunks)) != stop - start:
        raise DataError(f"{file}: {key} has no rows {start} to {stop - 1}. {AGAIN}")
    return pa.chunked_array(chunks)


def _pieces(table: pq.ParquetFile, group: int, key: str, start: int, stop: int) -> Iterator[pa.Array]:
    """Yield rows `start:stop` of a row group, in batches: pictures need not be in memory all at once."""
    before = 0
    for batch in table.iter_batches(BATCH, row_groups=[group], columns=[key]):
        low, high = max(start - before, 0), min(stop - before, len(batch))
        if low < high:
            yield batch.column(key).slice(low, high - low)
        before += len(batch)
        if before >= stop:
            return


def numbers(column: pa.ChunkedArray, first: int = 0) -> np.ndarray:
    """Return a column of numbers, or of lists of equally many numbers, as (n, k).

    Args:
        first: number of its first row, for messages.

    Raises:
        ValueError: it is none.
    """
    values = pa.concat_arrays(column.chunks)
    rows = len(values)
    while True:
        if values.null_count:  # looked for at each level: `flatten` drops lists that are null
            at = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
            raise ValueError(f"has an empty cell in row {first + at * rows // len(values)}")
        kind = values.type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            break
        if len(pc.unique(pc.list_value_length(values))) > 1:
            raise ValueError("has lists of several lengths")
        values = values.flatten()
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise ValueError(f"holds {kind}, not numbers")
    return values.to_numpy(zero_copy_only=False).reshape(rows, -1)


def read_json(file: Path) -> dict[str, Any]:
    """Return a mapping. Raises DataError for a file that holds none."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read ({error}). {AGAIN}") from error
    if not isinstance(found, dict):
        raise DataError(f"{file}: is no mapping. {AGAIN}")
    return found


def read_json_lines(file: Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    """Return the mappings of a file with one on each line. Raises DataError where one lacks an entry of `needed`."""
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read ({error}). {AGAIN}") from error
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not {*needed} <= row.keys():
            raise DataError(f"{file}: line {number + 1} lacks {' or '.join(needed)}. {AGAIN}")
    return rows
