"""Evaluations on disk: one JSON file, every problem's outcomes in it, so that runs can be compared later.

{"format": 1, "settings": {...}, "results": {split: {metric: mean}}, "intervals": {split: {metric: [low, high]}},
 "problems": {split: [{"prompt", "correct": [1, 0, ...], "correct_blind", "well_formed", "truncated", "num_tokens",
 "answers", "greedy": the same columns}]}}

A split's name is `<task>/<difficulty>`, or the task's alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r1lab.evaluate.judge import Judged
from r1lab.evaluate.split import SplitOutcome
from r1lab.evaluate.statistics import bootstrap_intervals
from r1lab.files import replacing

FORMAT = 1
_FLAGS = {
    "correct": "is_correct",
    "correct_blind": "is_correct_blind",
    "well_formed": "is_well_formed",
    "truncated": "is_truncated",
}


@dataclass
class Evaluation:
    """One model on some problems."""

    settings: dict[str, Any]
    splits: dict[str, SplitOutcome] = field(default_factory=dict)

    def tasks(self) -> dict[str, SplitOutcome]:
        """The splits of each task that has several put together: its pooled outcome, by the task's name."""
        parts: dict[str, list[SplitOutcome]] = {}
        for name, outcome in self.splits.items():
            parts.setdefault(name.partition("/")[0], []).append(outcome)
        return {task: _pool(outcomes) for task, outcomes in parts.items() if len(outcomes) > 1}

    def everything(self) -> dict[str, SplitOutcome]:
        """The splits, then the pooled tasks."""
        return self.splits | self.tasks()


def _pool(outcomes: Sequence[SplitOutcome]) -> SplitOutcome:
    return SplitOutcome(
        [prompt for outcome in outcomes for prompt in outcome.prompts],
        [group for outcome in outcomes for group in outcome.sampled],
        [one for outcome in outcomes for one in outcome.greedy],
        all(outcome.has_votes for outcome in outcomes),
    )


def write_evaluation(
    path: str | Path,
    evaluation: Evaluation,
    results: Mapping[str, Mapping[str, float]],
    intervals: Mapping[str, Mapping[str, tuple[float, float]]],
    *,
    keep_text: bool = False,
) -> None:
    """Writes an evaluation, in one piece. keep_text: the completions too.

    Raises OSError when the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    problems = {
        split: [
            {"prompt": prompt, **_pack(group, keep_text), "greedy": _pack([greedy], keep_text)}
            for prompt, group, greedy in zip(one.prompts, one.sampled, one.greedy, strict=True)
        ]
        for split, one in evaluation.splits.items()
    }
    head = {
        "format": FORMAT,
        "settings": evaluation.settings,
        "code": sorted(split for split, one in evaluation.splits.items() if not one.has_votes),
        "results": results,
        "intervals": intervals,
    }
    # One problem a line: small, and still a file that can be read and diffed.
    lines = ",\n".join(
        f"{json.dumps(split)}: [\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]"
        for split, rows in problems.items()
    )
    text = json.dumps(_without_nan(head), indent=1).removesuffix("\n}") + f',\n "problems": {{\n{lines}\n}}\n}}\n'
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def summaries(evaluation: Evaluation) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, tuple[float, float]]]]:
    """(results, 95 % intervals) of every split and every pooled task."""
    everything = evaluation.everything()
    results = {name: outcome.summary() for name, outcome in everything.items()}
    return results, {name: bootstrap_intervals(outcome.scores()) for name, outcome in everything.items()}


def load_evaluation(path: str | Path) -> Evaluation:
    """Reads an evaluation back.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not an evaluation, or one of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such evaluation; write one with evaluate.py --output_file {path}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); evaluate again") from error
    version = data.get("format") if isinstance(data, dict) else None
    if not isinstance(version, int) or not isinstance(data.get("problems"), dict):
        raise ValueError(f"{path} is not an evaluation: no `format` and `problems` in it; write one with evaluate.py")
    if version > FORMAT:
        raise ValueError(f"{path} has format {version}, this r1lab reads up to {FORMAT}: upgrade r1lab")
    evaluation = Evaluation(data.get("settings", {}))
    try:
        for split, rows in data["problems"].items():
            evaluation.splits[split] = SplitOutcome(
                [row["prompt"] for row in rows],
                [_unpack(row) for row in rows],
                [_unpack(row["greedy"])[0] for row in rows],
                split not in data.get("code", ()),
            )
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"{path}: a problem of split {split!r} is damaged ({error!r}); evaluate again") from error
    return evaluation


def _pack(group: Sequence[Judged], keep_text: bool) -> dict[str, list]:
    packed = {name: [int(getattr(one, attribute)) for one in group] for name, attribute in _FLAGS.items()}
    packed |= {"num_tokens": [one.num_tokens for one in group], "answers": [one.answer for one in group]}
    return packed | ({"texts": [one.text for one in group]} if keep_text else {})


def _unpack(row: dict[str, Any]) -> list[Judged]:
    texts = row.get("texts") or [""] * len(row["correct"])
    flags = [map(bool, row[name]) for name in ("correct", "correct_blind", "well_formed")]
    columns = (texts, *flags, row["answers"], row["num_tokens"], map(bool, row["truncated"]))
    return [Judged(*values) for values in zip(*columns, strict=True)]


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null."""
    if isinstance(value, Mapping):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value
