"""The page: template, style, scripts and data in one HTML file that needs nothing else."""

import base64
import hashlib
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from pathlib import Path

from r1lab.files import replacing
from r1lab.trace.report.build import build_data, encode_json
from r1lab.trace.report.source import read_source

MAX_MB = 9.0
"""A report's size by default."""
_PAGE = files("r1lab.trace.report") / "page"
_SCRIPTS = ("data.js", "dom.js", "curves.js", "completion.js", "findings.js", "explorer.js", "main.js")
"""In the order in which they run; they share one scope."""
_RESERVED = 300_000
"""Bytes of a page that are not groups: template, style, scripts, curves, neighbours."""


def write_report(
    run_dir: str | Path,
    out: str | Path | None = None,
    *,
    max_mb: float = MAX_MB,
    tokenizer: str | Path | None = None,
    show_progress: bool = False,
) -> Path:
    """Writes a run's report: one HTML file, opened from disk, without network.

    Args:
        run_dir: the run; one that was killed or is still writing is shown as far as it got.
        out: the file; None: `report.html` in the run directory.
        max_mb: its size at most, in millions of bytes. A run with more completions than fit is sampled: whole groups,
            evenly over the steps (see sampling.py).
        tokenizer: a tokenizer.json, or a directory with one, to shade tokens by; None takes the newest checkpoint's.
        show_progress: progress bars on standard error.

    Returns:
        The file's path. It appears in one piece: on an error an older report stays as it was.

    Raises:
        FileNotFoundError: no such run, or no such tokenizer.
        ValueError: the run cannot be read (see `read_source`), the tokenizer is none, or `max_mb` is too small.
        OSError: the file cannot be written.
    """
    max_bytes = int(max_mb * 1e6) - _RESERVED
    if max_bytes <= 0:
        raise ValueError(f"max_mb={max_mb}: a page needs at least {_RESERVED / 1e6 + 0.1:.1f}")
    source = read_source(run_dir)
    data = build_data(source, max_bytes, _tokenizer_file(tokenizer), _progress_bar if show_progress else _no_bar)
    out = Path(out) if out is not None else source.run.path / "report.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        temporary.write_bytes(render_page(data))
    return out


def render_page(data: dict) -> bytes:
    """The HTML of a page's data.

    Nothing of the data is ever markup: it is JSON in a script element that is not run, and the scripts put it on the
    page as text. A content security policy forbids any network access and any script or style but our own.
    """
    style = (_PAGE / "report.css").read_text(encoding="utf-8")
    bodies = [(_PAGE / name).read_text(encoding="utf-8") for name in _SCRIPTS]
    script = "\n".join(['"use strict";', *bodies])
    policy = f"default-src 'none'; style-src {_hash_source(style)}; script-src {_hash_source(script)}; base-uri 'none'"
    values = {
        "title": escape(f"{data['run']['name']}: traces"),
        "policy": policy,
        "style": style,
        "script": script,
        "data": encode_json(data).decode("utf-8"),
    }
    template = (_PAGE / "template.html").read_text(encoding="utf-8")
    # Split first, then fill: a value that looks like a placeholder stays what it is.
    parts = template.split("%%")
    return "".join(values[part] if number % 2 else part for number, part in enumerate(parts)).encode("utf-8")


def _hash_source(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _tokenizer_file(path: str | Path | None) -> Path | None:
    if path is None:
        return None
    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such tokenizer file")
    return file


def _no_bar(items: Iterable, count: int, what: str) -> Iterable:
    return items


def _progress_bar(items: Iterable, count: int, what: str) -> Iterable:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, what, total=count, console=console, transient=True, disable=not console.is_terminal)
