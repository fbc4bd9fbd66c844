"""Rows of jsonl and parquet files."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
KINDS = (".jsonl", ".parquet")


def check_kind(path: Path) -> None:
    """Raises ValueError unless the path's suffix says which kind of file it is."""
    if path.suffix not in KINDS:
        raise ValueError(f"{path}: unknown kind of file; use {' or '.join(KINDS)}")


def read_rows(path: Path) -> list[Row]:
    """The rows of a .jsonl or .parquet file. Raises ValueError naming the file, and the line of a bad one."""
    check_kind(path)
    if path.suffix == ".parquet":
        return _parquet().read_table(path).to_pylist()
    with path.open(encoding="utf-8") as lines:
        return [_parse_line(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Writes them whole or not at all; the kind of file goes by the suffix. Raises ValueError for another suffix."""
    check_kind(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    if path.suffix == ".parquet":
        parquet = _parquet()
        import pyarrow

        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), temporary)
    else:
        lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        # A lone surrogate has no UTF-8, but its backslash escape is JSON for it.
        temporary.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
    temporary.replace(path)


def _parse_line(line: str, place: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{place}: a row must be a JSON object, not {type(row).__name__}")
    return row


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ValueError("parquet files need pyarrow: pip install pyarrow") from error
    return pyarrow.parquet
