"""metrics.jsonl: one JSON object a line, one line a step, readable while the run writes it."""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from r1lab.files import replacing


class MetricsLog:
    """Appends to a run's `metrics.jsonl`.

    Each line is flushed as it is written, so a killed run keeps every finished step. A half-written last line left
    by a kill is cut off when the file is opened again.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            _cut_half_line(self.path)
        self._file: TextIO | None = None

    def append(self, metrics: dict[str, Any]) -> None:
        """Writes one line.

        Args:
            metrics: must hold an int `step`. Numbers of numpy and torch (one element) become plain ones; NaN and
                infinities become null, which JSON has.

        Raises:
            ValueError: `step` is missing or a value is not a number, string, bool, None, list or dict.
        """
        if not isinstance(metrics.get("step"), int):
            raise ValueError(f"metrics['step']={metrics.get('step')!r}: give the step as an int")
        line = json.dumps({str(key): _plain(value, str(key)) for key, value in metrics.items()}, allow_nan=False)
        if self._file is None:
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  closed by close()
        self._file.write(line + "\n")
        self._file.flush()

    def truncate_after(self, step: int) -> int:
        """Drops the lines of steps after `step`, for a resume from that step. Returns how many were dropped.

        The file is replaced in one piece: a kill in between leaves the old one.
        """
        self.close()
        if not self.path.exists():
            return 0
        rows = read_metrics(self.path)
        kept = [row for row in rows if row["step"] <= step]
        with replacing(self.path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in kept)
            file.flush()
            os.fsync(file.fileno())
        return len(rows) - len(kept)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, in file order. A half-written last line (the run was killed, or is writing) is
    left out.

    Raises:
        ValueError: another line is not a JSON object with a `step`; the line is named.
    """
    lines = Path(path).read_bytes().split(b"\n")
    # A finished file ends in a newline, which leaves an empty last piece; anything else there is half a line.
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({line[:40]!r}); remove this line") from error
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise ValueError(f"{path}, line {number}: no integer `step` in {line[:40]!r}; remove this line")
        rows.append(row)
    return rows


def find_accuracy_key(keys: Iterable[str]) -> str | None:
    """The `rewards/<name>/mean` key that tells right answers: the one with "accuracy" in its name, else the first one
    that is not about form (format, length, ...); None without any."""
    means = [key for key in keys if key.startswith("rewards/") and key.endswith("/mean")]
    form = ("format", "tag", "length", "overlong", "repetition", "language", "steps", "cosine")
    named = [key for key in means if "accuracy" in key]
    return next(iter(named or [key for key in means if not any(word in key for word in form)]), None)


def _cut_half_line(path: Path) -> None:
    with open(path, "rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def _plain(value: Any, key: str) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _plain(item, f"{key}/{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, key) for item in value]
    try:
        item = value.item()
    except (AttributeError, ValueError, RuntimeError) as error:
        kind = type(value).__name__
        raise ValueError(f"metrics[{key!r}] is a {kind}: give a number, a string, a list or a dict") from error
    return _plain(item, key)
