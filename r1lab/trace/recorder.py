"""Completions on disk.

`completions/completions_00012.parquet` has TRL's columns (step, prompt, completion, one column a reward function,
advantage), then ours: group, reward, finish_reason, num_tokens, reflects; token by token token_ids, logps (of the
rollout), train_logps and entropies (of the training pass; null for a completion that was not trained, such as one of
advantage 0); and as text what reward functions logged beside their number (countdown_reason, format_reason, ...).

A token takes up to 12 bytes, over the main job 8 (what was not trained has no logps of the training pass), so a step of
256 completions of 70 tokens takes 0.2 MB and 100 of them 15 MB; a step of 1024 completions of 4,000 tokens would take
50 MB. `trace_groups` (`write_completions(max_groups=...)`) bounds that: so
many groups of every step are kept, whole, spread evenly over the step's.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from r1lab.files import replacing
from r1lab.trace.words import find_reflections
from r1lab.types import Prompt, RolloutGroup

RUN_FORMAT = 1
"""The newest `run_format` in a run's `config.yaml` that this code reads; a config without one is format 1."""
FIXED_COLUMNS = (
    "step", "prompt", "completion", "advantage", "group", "reward", "finish_reason", "num_tokens", "token_ids",
    "logps", "train_logps", "entropies", "reflects",
)  # fmt: skip
_FILE_NAME = re.compile(r"completions_(\d+)\.parquet")


# --------------------------------------------------------------------------------------------------------- writing


def write_completions(
    run_dir: str | Path,
    step: int,
    groups: Sequence[RolloutGroup],
    *,
    reward_names: Sequence[str] | None = None,
    max_groups: int | None = None,
) -> Path:
    """Writes a step's rollouts to `<run_dir>/completions/completions_<step>.parquet`, one row a completion.

    The file appears in one piece. A step written twice (after a resume) replaces the first.

    Args:
        groups: in order; the row's `group` is the index here.
        reward_names: the reward columns; None takes every name found in the rollouts, in order of appearance.
        max_groups: keep so many groups, spread evenly over all; None keeps all.

    Raises:
        ValueError: a reward has the name of another column, or `max_groups` is below 1.
        OSError: the file could not be written; nothing is left behind.
    """
    import pyarrow.parquet

    table = _completions_table(step, _sample(groups, max_groups), reward_names)
    directory = Path(run_dir) / "completions"
    directory.mkdir(parents=True, exist_ok=True)
    final = directory / f"completions_{step:05d}.parquet"
    with replacing(final) as temporary:
        pyarrow.parquet.write_table(table, temporary)
    return final


def _sample(groups: Sequence[RolloutGroup], max_groups: int | None) -> list[tuple[int, RolloutGroup]]:
    """The groups to keep, each with its index."""
    if max_groups is not None and max_groups < 1:
        raise ValueError(f"max_groups={max_groups}: keep at least 1 group, or None for all")
    count = len(groups) if max_groups is None else min(max_groups, len(groups))
    return [(index, groups[index]) for index in (turn * len(groups) // count for turn in range(count))]


def _completions_table(step: int, groups: Sequence[tuple[int, RolloutGroup]], reward_names: Sequence[str] | None):
    import pyarrow

    rollouts = [rollout for _, group in groups for rollout in group.rollouts]
    if reward_names is None:
        reward_names = list(dict.fromkeys(name for rollout in rollouts for name in rollout.rewards))
    taken = sorted(set(reward_names) & set(FIXED_COLUMNS))
    if taken:
        raise ValueError(f"reward named {taken[0]!r}: that is a column of the completions file; rename the reward")
    completions = [rollout.completion for rollout in rollouts]
    prompts = [prompt_text(group.prompt) for _, group in groups for _ in group.rollouts]
    indices = [index for index, group in groups for _ in group.rollouts]
    extras = dict.fromkeys(name for rollout in rollouts for name in rollout.extras)

    def floats(values: Iterable[float | None]):
        return pyarrow.array(list(values), pyarrow.float64(), from_pandas=True)  # NaN becomes null

    def texts(values: Iterable[str | None]):
        return pyarrow.array(list(values), pyarrow.string())

    def by_token(values: Iterable[list | None], kind: pyarrow.DataType):
        return pyarrow.array(list(values), pyarrow.list_(kind))

    return pyarrow.table(
        {
            "step": pyarrow.array([step] * len(rollouts), pyarrow.int64()),
            "prompt": texts(prompts),
            "completion": texts(_utf8(rollout.text) for rollout in rollouts),
            **{name: floats(rollout.rewards.get(name) for rollout in rollouts) for name in reward_names},
            "advantage": floats(rollout.advantage for rollout in rollouts),
            "group": pyarrow.array(indices, pyarrow.int32()),
            "reward": floats(rollout.reward for rollout in rollouts),
            "finish_reason": texts(item.finish_reason for item in completions),
            "num_tokens": pyarrow.array([len(item.token_ids) for item in completions], pyarrow.int32()),
            "token_ids": by_token((item.token_ids for item in completions), pyarrow.int32()),
            "logps": by_token((item.logps for item in completions), pyarrow.float32()),
            "train_logps": by_token((rollout.train_logps for rollout in rollouts), pyarrow.float32()),
            "entropies": by_token((rollout.entropies for rollout in rollouts), pyarrow.float32()),
            "reflects": pyarrow.array([bool(find_reflections(rollout.text)) for rollout in rollouts], pyarrow.bool_()),
            **{
                name: texts(_extra_text(rollout.extras.get(name)) for rollout in rollouts)
                for name in extras
                if name not in FIXED_COLUMNS and name not in reward_names
            },
        }
    )


def _extra_text(value: Any) -> str | None:
    """Any value as text, so that a column has one type over all steps, and none looks like a reward's."""
    if value is None or isinstance(value, str):
        return None if value is None else _utf8(value)
    return _utf8(json.dumps(value, ensure_ascii=False, default=str))


def prompt_text(prompt: Prompt) -> str:
    """A prompt as one text, chat messages as JSON."""
    return _utf8(prompt.text if isinstance(prompt.text, str) else json.dumps(prompt.text, ensure_ascii=False))


def _utf8(text: str) -> str:
    # Byte-level tokenizers can decode to lone surrogates, which no UTF-8 file can hold.
    return text.encode("utf-8", errors="replace").decode("utf-8")


def remove_completions_after(run_dir: str | Path, step: int) -> int:
    """Deletes the completions files of steps after `step`, for a resume from that step. Returns how many."""
    stale = [path for number, path in completions_files(run_dir) if number > step]
    for path in stale:
        path.unlink()
    return len(stale)


def completions_files(run_dir: str | Path) -> list[tuple[int, Path]]:
    """(step, file) of every recorded step, in order."""
    found = []
    for path in (Path(run_dir) / "completions").glob("completions_*.parquet"):
        match = _FILE_NAME.fullmatch(path.name)
        if match:
            found.append((int(match[1]), path))
    return sorted(found)
