"""A run directory as the report reads it: checked, sorted, its reward columns known."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from r1lab.trace.metrics import find_accuracy_key
from r1lab.trace.recorder import Run, load_run

if TYPE_CHECKING:
    import pandas

RUN_FORMAT = 1
"""The newest `run_format` in a `config.yaml` that this code reads; a config without one is format 1."""
_NEEDED = ("step", "prompt", "completion", "advantage", "group", "reward", "finish_reason", "num_tokens")
_NOT_REWARDS = {"advantage", "reward"}


@dataclass
class Source:
    """What the report is made from."""

    run: Run
    frame: "pandas.DataFrame"
    """Every recorded completion, by step, group and place in the group; index 0, 1, ..."""
    reward_names: list[str]
    """The columns of `frame` that hold one reward function each."""
    accuracy_name: str | None
    """The one of them that tells right answers; None: rightness is unknown."""
    best_reward: float
    """The highest total reward of the run; NaN without any."""


def read_source(run_dir: str | Path) -> Source:
    """Reads a run; of a run that was killed or is still writing, what is there. What had to be left out stands in
    `run.notes`.

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: it is not a run directory, is unreadable, holds no finished step, or is from a newer version.
    """
    run = load_run(run_dir)
    _check_format(run)
    frame = run.completions
    missing = [name for name in _NEEDED if name not in frame.columns]
    if missing:
        raise ValueError(
            f"{run.path / 'completions'}: no column {missing[0]!r}; these files are not r1lab's, or of another version"
        )
    if not len(frame):
        run.notes.append("no completions were recorded: only the curves are shown")
    frame = frame.sort_values(["step", "group"], kind="stable", ignore_index=True)
    names = [name for name in frame.select_dtypes("float").columns if name not in _NOT_REWARDS]
    key = find_accuracy_key(f"rewards/{name}/mean" for name in names)
    accuracy_name = key.removeprefix("rewards/").removesuffix("/mean") if key else None
    return Source(run, frame, names, accuracy_name, best_reward=float(frame["reward"].astype(float).max()))


def _check_format(run: Run) -> None:
    version = run.config.get("run_format", RUN_FORMAT)
    if not isinstance(version, int):
        raise ValueError(f"{run.path / 'config.yaml'}: run_format is {version!r}, not a number")
    if version > RUN_FORMAT:
        raise ValueError(
            f"{run.path} was written by a newer r1lab (run_format {version}; this one reads up to {RUN_FORMAT}): "
            "upgrade r1lab to look at it"
        )
