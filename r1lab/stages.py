"""A recipe of several stages, each in a directory of its own that a marker declares finished.

<output_dir>/<stage>/stage.json    settings, where it started from, its model, seconds and counts; written last
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accelerate import PartialState

MARKER = "stage.json"


def read_marker(directory: str | Path) -> dict[str, Any] | None:
    """What a finished stage left; None when it has not finished.

    Raises:
        ValueError: the marker is not one of ours.
    """
    path = Path(directory) / MARKER
    if not path.exists():
        return None
    try:
        marker = json.loads(path.read_text())
        return marker | {"finished": str(marker["finished"]), "settings": dict(marker["settings"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no marker of a finished stage; delete it to run the stage again") from error


def run_stage(
    directory: str | Path, settings: dict[str, Any], work: Callable[[], dict[str, Any]]
) -> tuple[dict[str, Any], bool]:
    """Runs `work` unless the stage has finished with the same settings. Every process calls it.

    Args:
        directory: the stage's.
        settings: what decides the outcome, the model it starts from included; must survive JSON.
        work: does the stage and returns its facts, `model` among them where it makes one: its directory, relative to
            `directory`.

    Returns: the marker, and whether the stage ran just now.

    Raises:
        ValueError: it finished with other settings; the message names the first that differs.
    """
    directory = Path(directory)
    settings = json.loads(json.dumps(settings))
    marker = read_marker(directory)
    if marker is not None:
        _check_same(directory, marker["settings"], settings)
        return marker, False
    started = time.perf_counter()
    facts = work()
    marker = {
        "finished": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "seconds": round(time.perf_counter() - started, 1),
        **facts,
        "settings": settings,
    }
    state = PartialState()
    if state.is_main_process:
        temporary = directory / f".tmp-{MARKER}"
        temporary.write_text(json.dumps(marker, indent=1) + "\n")
        os.replace(temporary, directory / MARKER)
    state.wait_for_everyone()
    return marker, True


def remove_stage(directory: str | Path) -> None:
    """Deletes a stage, finished or not. The marker goes first: what a kill leaves then counts as unfinished."""
    (Path(directory) / MARKER).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def _check_same(directory: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            raise ValueError(
                f"{directory} is a finished stage with {name}={old.get(name)!r}, and now {name}={new.get(name)!r}; "
                "choose another output_dir, or add --overwrite_output_dir true to run the stages again"
            )
