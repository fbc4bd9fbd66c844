"""Completions on disk, and a whole run read back.

`completions/completions_00012.parquet` has TRL's columns (step, prompt, completion, one column a reward function,
advantage), then ours: group, reward, finish_reason, num_tokens, token_ids, logps, reflects.
"""

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1lab.trace.metrics import read_metrics
from r1lab.trace.reflection import find_reflections
from r1lab.types import Prompt, RolloutGroup

if TYPE_CHECKING:
    import pandas

_FIXED_COLUMNS = (
    "step", "prompt", "completion", "advantage", "group", "reward", "finish_reason", "num_tokens", "token_ids",
    "logps", "reflects",
)  # fmt: skip
_FILE_NAME = re.compile(r"completions_(\d+)\.parquet")


# --------------------------------------------------------------------------------------------------------- writing


def write_completions(
    run_dir: str | Path, step: int, groups: Sequence[RolloutGroup], *, reward_names: Sequence[str] | None = None
) -> Path:
    """Writes a step's rollouts to `<run_dir>/completions/completions_<step>.parquet`, one row a completion.

    The file appears in one piece. A step written twice (after a resume) replaces the first.

    Args:
        groups: in order; the row's `group` is the index here.
        reward_names: the reward columns; None takes every name found in the rollouts, in order of appearance.

    Raises:
        ValueError: a reward has the name of another column.
        OSError: the file could not be written; nothing is left behind.
    """
    import pyarrow.parquet

    table = _completions_table(step, groups, reward_names)
    directory = Path(run_dir) / "completions"
    directory.mkdir(parents=True, exist_ok=True)
    final = directory / f"completions_{step:05d}.parquet"
    temporary = directory / f".tmp-{final.name}"
    try:
        pyarrow.parquet.write_table(table, temporary)
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)
    return final


def _completions_table(step: int, groups: Sequence[RolloutGroup], reward_names: Sequence[str] | None):
    import pyarrow

    rollouts = [rollout for group in groups for rollout in group.rollouts]
    if reward_names is None:
        reward_names = list(dict.fromkeys(name for rollout in rollouts for name in rollout.rewards))
    taken = sorted(set(reward_names) & set(_FIXED_COLUMNS))
    if taken:
        raise ValueError(f"reward named {taken[0]!r}: that is a column of the completions file; rename the reward")
    completions = [rollout.completion for rollout in rollouts]
    prompts = [_prompt_text(group.prompt) for group in groups for _ in group.rollouts]
    indices = [index for index, group in enumerate(groups) for _ in group.rollouts]

    def floats(values: Iterable[float | None]):
        return pyarrow.array(list(values), pyarrow.float64(), from_pandas=True)  # NaN becomes null

    return pyarrow.table(
        {
            "step": pyarrow.array([step] * len(rollouts), pyarrow.int64()),
            "prompt": pyarrow.array(prompts, pyarrow.string()),
            "completion": pyarrow.array([_utf8(rollout.text) for rollout in rollouts], pyarrow.string()),
            **{name: floats(rollout.rewards.get(name) for rollout in rollouts) for name in reward_names},
            "advantage": floats(rollout.advantage for rollout in rollouts),
            "group": pyarrow.array(indices, pyarrow.int32()),
            "reward": floats(rollout.reward for rollout in rollouts),
            "finish_reason": pyarrow.array([item.finish_reason for item in completions], pyarrow.string()),
            "num_tokens": pyarrow.array([len(item.token_ids) for item in completions], pyarrow.int32()),
            "token_ids": pyarrow.array([item.token_ids for item in completions], pyarrow.list_(pyarrow.int32())),
            "logps": pyarrow.array([item.logps for item in completions], pyarrow.list_(pyarrow.float32())),
            "reflects": pyarrow.array([bool(find_reflections(rollout.text)) for rollout in rollouts], pyarrow.bool_()),
        }
    )


def _prompt_text(prompt: Prompt) -> str:
    return _utf8(prompt.text if isinstance(prompt.text, str) else json.dumps(prompt.text, ensure_ascii=False))


def _utf8(text: str) -> str:
    # Byte-level tokenizers can decode to lone surrogates, which no UTF-8 file can hold.
    return text.encode("utf-8", errors="replace").decode("utf-8")


def remove_completions_after(run_dir: str | Path, step: int) -> int:
    """Deletes the completions files of steps after `step`, for a resume from that step. Returns how many."""
    stale = [path for number, path in _completions_files(run_dir) if number > step]
    for path in stale:
        path.unlink()
    return len(stale)


# --------------------------------------------------------------------------------------------------------- reading


@dataclass
class Run:
    """A run directory, read back."""

    path: Path
    config: dict[str, Any]
    """`config.yaml`; {} when the run has none."""
    metrics: "pandas.DataFrame"
    """One row a line of `metrics.jsonl`, in order; null reads as NaN."""
    notes: list[str] = field(default_factory=list)
    """What was left out and why: files a kill left half-written, files that are missing."""

    @cached_property
    def completions(self) -> "pandas.DataFrame":
        """All rollouts that were recorded, by step; read at the first use. Unreadable files are left out and noted."""
        frame, notes = _read_completions(self.path, None)
        self.notes.extend(notes)
        return frame


def load_run(path: str | Path) -> Run:
    """Reads a run directory; a run that is still writing, or was killed, loads up to its last finished step.

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: it is not a run directory, its config or its metrics cannot be read, or no step was finished.
    """
    import pandas

    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such run directory")
    file = path / "metrics.jsonl"
    if not file.is_file():
        inside = sorted(child.parent.name for child in path.glob("*/metrics.jsonl"))
        hint = f"; did you mean {path / inside[0]}?" if inside else ""
        raise ValueError(f"{path} is not a run directory: it has no metrics.jsonl{hint}")
    rows = read_metrics(file)
    if not rows:
        raise ValueError(f"{file} has no finished step: the run was stopped before its first one; start it again")
    notes = []
    if not file.read_bytes().endswith(b"\n"):
        notes.append("metrics.jsonl: half-written last line left out")
    return Run(path=path, config=_read_config(path / "config.yaml", notes), metrics=pandas.DataFrame(rows), notes=notes)


def _read_config(file: Path, notes: list[str]) -> dict[str, Any]:
    import yaml

    if not file.is_file():
        notes.append(f"{file.name} is missing")
        return {}
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict | None):
        raise ValueError(f"{file} holds a {type(config).__name__}: expected `field: value` lines")
    return config or {}


def read_completions(run_dir: str | Path, steps: Iterable[int] | None = None) -> "pandas.DataFrame":
    """The rollouts of the given steps (None: all), by step. Empty, with the fixed columns, when there are none."""
    return _read_completions(run_dir, None if steps is None else set(steps))[0]


def _read_completions(run_dir: str | Path, steps: set[int] | None) -> tuple["pandas.DataFrame", list[str]]:
    import pandas
    import pyarrow.parquet

    tables, notes = [], []
    for number, path in _completions_files(run_dir):
        if steps is not None and number not in steps:
            continue
        try:
            tables.append(pyarrow.parquet.read_table(path))
        except (pyarrow.ArrowInvalid, OSError) as error:
            notes.append(f"{path.name}: left out, cannot be read ({str(error).splitlines()[0]})")
    if not tables:
        return pandas.DataFrame(columns=list(_FIXED_COLUMNS)), notes
    return pyarrow.concat_tables(tables, promote_options="default").to_pandas(), notes


def _completions_files(run_dir: str | Path) -> list[tuple[int, Path]]:
    found = []
    for path in (Path(run_dir) / "completions").glob("completions_*.parquet"):
        match = _FILE_NAME.fullmatch(path.name)
        if match:
            found.append((int(match[1]), path))
    return sorted(found)
