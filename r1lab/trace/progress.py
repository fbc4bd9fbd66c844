"""A run's live view: a small table on a terminal, quiet log lines anywhere else.

with Progress(total_steps=400) as progress:
    for step in range(1, 401):
        ...
        progress.update(step, metrics)
        progress.show_sample(step, best=(text, reward), worst=(text, reward))
"""

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any, TextIO

from r1lab.trace.metrics import find_accuracy_key

_BLOCKS = "▁▂▃▄▅▆▇█"
_MAX_SAMPLE_CHARS = 1200

Sample = tuple[str, float]
"""A completion's text and its reward."""


class Progress:
    """Shows the last step's numbers while a run goes on.

    On a terminal the view redraws in place (rich). Elsewhere (a file, a pipe, CI, a dumb terminal) each step is one
    line, at most one every `log_every_s` seconds; the first and the last step are always shown. Processes other than
    the main one pass `enabled=False`.

    Args:
        total_steps: of the whole run.
        first_step: steps already done by the run that this one resumes.
        log_every_s: seconds between two log lines where there is no terminal; 0 logs every step.
        stream: where to write; standard error by default, so that standard output stays free for results.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        first_step: int = 0,
        log_every_s: float = 0.0,
        enabled: bool = True,
        stream: TextIO | None = None,
    ):
        self.total_steps = total_steps
        self.first_step = first_step
        self.log_every_s = log_every_s
        self.enabled = enabled
        self._stream = stream or sys.stderr
        self._accuracies: deque[float] = deque(maxlen=400)
        self._row: dict[str, str] = {}
        self._samples: list[tuple[str, str, float]] = []
        self._sample_step = 0
        self._step = first_step
        self._started = self._last_update = time.monotonic()
        self._last_log = -math.inf
        self._last_num_tokens: float | None = None
        self._console: Any = None
        self._live: Any = None

    def __enter__(self) -> "Progress":
        self._started = self._last_update = time.monotonic()
        if self.enabled and self._is_terminal():
            from rich.console import Console
            from rich.live import Live

            self._console = Console(file=self._stream)
            self._live = Live(console=self._console, get_renderable=self._render, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the last view on the terminal."""
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()
            self._live = None

    def update(self, step: int, metrics: dict[str, Any]) -> None:
        """Shows the metrics of a finished step.

        Args:
            step: from 1 to `total_steps`.
            metrics: TRL's keys (`reward`, `rewards/<name>/mean`, `completions/mean_length`, `num_tokens` counted from
                the run's start, `step_time` in seconds), `reflection/rate`, and optionally `tokens_per_second`.
                Missing or non-finite numbers show as `-`.
        """
        if not self.enabled:
            return
        now = time.monotonic()
        accuracy = _finite(metrics.get(find_accuracy_key(metrics)))
        if accuracy is not None:
            self._accuracies.append(accuracy)
        means = (key for key in metrics if key.startswith("rewards/") and key.endswith("/mean"))
        format_key = next((key for key in means if "format" in key), None)
        self._step = step
        self._row = {
            "reward": _fixed(metrics.get("reward"), 3),
            "accuracy": _percent(accuracy),
            "format": _percent(metrics.get(format_key)),
            "length": _fixed(metrics.get("completions/mean_length"), 1),
            "reflect": _percent(metrics.get("reflection/rate")),
            "tok/s": _thousands(self._tokens_per_second(metrics, now - self._last_update)),
            "ETA": self._eta(step, now),
        }
        self._last_update = now
        if self._live is not None:
            self._write(self._live.refresh)
        elif step >= self.total_steps or now - self._last_log >= self.log_every_s:
            self._last_log = now
            self._log(self._line())

    def show_sample(self, step: int, *, best: Sample | None = None, worst: Sample | None = None) -> None:
        """Shows a step's best and worst completion under the numbers; without a terminal it does nothing (they are in
        the completions file). Completions are shown as they are: markup and control characters have no effect."""
        if not self.enabled:
            return
        named = (("best", best), ("worst", worst))
        self._samples = [(name, _printable(sample[0]), sample[1]) for name, sample in named if sample is not None]
        self._sample_step = step
        if self._live is not None:
            self._write(self._live.refresh)

    def message(self, text: str) -> None:
        """Prints a line (a saved checkpoint, an evaluation) without disturbing the view."""
        if not self.enabled:
            return
        if self._live is not None:
            self._write(lambda: self._console.print(_printable(text), markup=False, highlight=False))
        else:
            self._log(_printable(text))

    # ---------------------------------------------------------------------------------------------------- rendering

    def _is_terminal(self) -> bool:
        return self._stream.isatty() and os.environ.get("TERM") != "dumb"

    def _log(self, line: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        line = line.encode(encoding, "replace").decode(encoding)
        self._write(lambda: print(line, file=self._stream, flush=True))

    def _write(self, write: Callable[[], Any]) -> None:
        # A lost terminal or a closed pipe is no reason to lose the run: the metrics file goes on.
        try:
            write()
        except OSError:
            self.enabled = False

    def _line(self) -> str:
        width = len(str(self.total_steps))
        values = "  ".join(f"{name} {value}" for name, value in self._row.items())
        return f"step {self._step:>{width}}/{self.total_steps}  {values}"

    def _render(self):
        from rich.console import Group
        from rich.panel import Panel
        from rich.text import Text

        width = max(self._console.width, 1)
        head = Text(f"step {self._step}/{self.total_steps}", style="bold")
        parts: list[Any] = [head, *self._columns(width)]
        room = min(width - len("accuracy  ") - 1, 60)
        if len(self._accuracies) > 1 and room >= 10:
            parts.append(Text(f"accuracy {sparkline(list(self._accuracies), room)}", no_wrap=True, style="cyan"))
        for name, text, reward in self._samples:
            title = f"{name} of step {self._sample_step}, reward {_fixed(reward, 2)}"
            style = "green" if name == "best" else "red"
            if width >= 20:
                parts.append(Panel(Text(text), title=Text(title), title_align="left", border_style=style))
        return Group(*parts)

    def _columns(self, width: int) -> list[Any]:
        """The numbers as a table, in as many rows of cells as the terminal's width asks for."""
        from rich.table import Table
        from rich.text import Text

        cells = [(name, value, max(len(name), len(value)) + 2) for name, value in self._row.items()]
        tables: list[Any] = []
        while cells:
            row, used = [], 0
            while cells and (not row or used + cells[0][2] <= width):
                used += cells[0][2]
                row.append(cells.pop(0))
            table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
            for name, _, _ in row:
                table.add_column(Text(name, style="dim"), justify="right", no_wrap=True)
            table.add_row(*(Text(value) for _, value, _ in row))
            tables.append(table)
        return tables

    # ------------------------------------------------------------------------------------------------------ numbers

    def _tokens_per_second(self, metrics: dict[str, Any], seconds: float) -> float | None:
        if _finite(metrics.get("tokens_per_second")) is not None:
            return _finite(metrics["tokens_per_second"])
        num_tokens, before = _finite(metrics.get("num_tokens")), self._last_num_tokens
        self._last_num_tokens = num_tokens
        if num_tokens is None or (before is None and self.first_step):
            return None
        seconds = _finite(metrics.get("step_time")) or seconds
        return (num_tokens - (before or 0.0)) / seconds if seconds > 0 else None

    def _eta(self, step: int, now: float) -> str:
        done = step - self.first_step
        if done <= 0:
            return "-"
        seconds = round((now - self._started) / done * max(self.total_steps - step, 0))
        hours, minutes = seconds // 3600, seconds % 3600 // 60
        return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds % 60:02d}s"


def sparkline(values: list[float], width: int) -> str:
    """The values, averaged into at most `width` columns, as bars from 0 to the larger of 1 and the maximum."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite or width < 1:
        return ""
    columns = min(width, len(finite))
    edges = [index * len(finite) // columns for index in range(columns + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in pairwise(edges)]
    top = max(1.0, *means)
    return "".join(_BLOCKS[min(max(int(mean / top * len(_BLOCKS)), 0), len(_BLOCKS) - 1)] for mean in means)


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _fixed(value: Any, digits: int) -> str:
    number = _finite(value)
    return "-" if number is None else f"{number:.{digits}f}"


def _percent(value: Any) -> str:
    number = _finite(value)
    return "-" if number is None else f"{number:.1%}"


def _thousands(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _printable(text: str) -> str:
    """Without control characters (a completion must not move the cursor) and cut in the middle if long."""
    if len(text) > _MAX_SAMPLE_CHARS:
        half = _MAX_SAMPLE_CHARS // 2
        text = f"{text[:half]} […] {text[-half:]}"
    text = text.encode("utf-8", errors="replace").decode("utf-8")
    return "".join(char if char == "\n" or char.isprintable() else "·" for char in text)
