"""A run directory as the report reads it: checked, sorted, its reward columns known."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from r1lab.trace.load import Run, load_run
from r1lab.trace.metrics import find_accuracy_key

if TYPE_CHECKING:
    import pandas

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
