"""A recipe of several stages, each in a directory of its own that a marker declares begun and finished.

<output_dir>/<stage>/stage.json    settings, where it started from; once finished its model, seconds and counts too
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accelerate import PartialState

from r1lab.files import replacing

MARKER = "stage.json"


def check_stages(stages: Sequence[str], known: Sequence[str]) -> None:
    """Raises ValueError for a stage that is not one of the recipe's."""
    for stage in stages:
        if stage not in known:
            raise ValueError(f"stages: unknown stage {stage!r}; use some of {', '.join(known)}")


def read_marker(directory: str | Path) -> dict[str, Any] | None:
    """What a finished stage left; None when it has not finished.

    Raises:
        ValueError: the marker is not one of ours.
    """
    marker = _read(Path(directory))
    return None if marker is None or marker["finished"] is None else marker


def run_stage(
    directory: str | Path, settings: dict[str, Any], work: Callable[[], dict[str, Any]]
) -> tuple[dict[str, Any], bool]:
    """Runs `work` unless the stage has finished with the same settings. Every process calls it.

    Args:
        directory: the stage's.
        settings: what decides the outcome, the model it starts from included; must survive JSON.
        work: does the stage, or the rest of it where it was cut short, and returns its facts; `model` among them where
            it makes one: its directory, relative to `directory`.

    Returns: the marker, and whether the stage ran just now.

    Raises:
        ValueError: it was begun or finished with other settings; the message names the first that differs.
    """
    directory = Path(directory)
    settings = json.loads(json.dumps(settings))
    marker = _read(directory)
    if marker is not None:
        _check_same(directory, marker, settings)
        if marker["finished"] is not None:
            return marker, False
    _write(directory, {"finished": None, "settings": settings})
    started = time.perf_counter()
    facts = work()
    finished = datetime.now(UTC).isoformat(timespec="milliseconds")
    seconds = round(time.perf_counter() - started, 1)
    _write(directory, {"finished": finished, "seconds": seconds, **facts, "settings": settings})
    return _read(directory), True


def remove_stage(directory: str | Path) -> None:
    """Deletes a stage, finished or not. The marker goes first: what a kill leaves is then no finished stage."""
    (Path(directory) / MARKER).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def _read(directory: Path) -> dict[str, Any] | None:
    path = directory / MARKER
    if not path.exists():
        return None
    try:
        marker = json.loads(path.read_text())
        return marker | {"finished": marker["finished"], "settings": dict(marker["settings"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no marker of a stage; delete {directory} to run the stage again") from error


def _write(directory: Path, marker: dict[str, Any]) -> None:
    """In one piece, by the main process; the others read it afterwards."""
    state = PartialState()
    if state.is_main_process:
        directory.mkdir(parents=True, exist_ok=True)
        with replacing(directory / MARKER) as temporary:
            temporary.write_text(json.dumps(marker, indent=1) + "\n")
    state.wait_for_everyone()


def _check_same(directory: Path, marker: dict[str, Any], settings: dict[str, Any]) -> None:
    old, begun = marker["settings"], "begun" if marker["finished"] is None else "finished"
    for name in dict.fromkeys([*old, *settings]):
        if old.get(name) != settings.get(name):
            raise ValueError(
                f"{directory} was {begun} with {name}={old.get(name)!r}, and now {name}={settings.get(name)!r}; "
                "choose another output_dir, or add --overwrite_output_dir true to run the stages again"
            )
