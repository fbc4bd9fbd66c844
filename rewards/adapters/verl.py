"""verl's `custom_reward_function`: path to this file, name `verl_compute_score`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.accuracy import GOLD_COLUMNS
from rewards.registry import REWARDS, load_reward

_ARGUMENTS = frozenset({"prompts", "completions", "completion_ids", "log_extra"})
"""Names of the functions' own parameters, which no entry of extra_info may take."""

_BEFORE_GROUND_TRUTH = GOLD_COLUMNS[: GOLD_COLUMNS.index("ground_truth")]
"""Not read beside a ground truth: GSM8K's extra_info holds a worked solution, others' one without an answer."""

_CODE_SOURCES = frozenset({"apps", "codecontests", "codeforces", "taco", "livecodebench", "humaneval", "mbpp"})


def verl_compute_score(
    data_source: str | None = None,
    solution_str: str | None = None,
    ground_truth: Any = None,
    extra_info: Mapping[str, Any] | None = None,
    *,
    reward: str | None = None,
    data_sources: Sequence[str] | None = None,
    solution_strs: Sequence[str] | None = None,
    ground_truths: Sequence[Any] | None = None,
    extra_infos: Sequence[Mapping[str, Any] | None] | None = None,
    **settings: Any,
) -> dict[str, Any] | list[dict[str, Any]]:
    """verl's reward of one completion, or of a batch where verl's batch manager passes `solution_strs`.

    Gives {"score": float, "acc": float, "reason": str, "unscorable": bool}, always these keys and never None, since
    verl makes one column of each. acc is 1.0 for a score of 1.0 or more. A row that the reward skips scores 0.0 with
    unscorable True.

    The function is `reward` (a name or dotted path; set it in verl's `reward_kwargs`), else the registry's entry named
    like the data source, else "code" for sources of programs, else "accuracy". ground_truth is its gold column, or all
    its columns where it is a mapping (Countdown's target and numbers); for code it is a mapping or its JSON: inputs,
    outputs and perhaps fn_name (verl's), test_cases (open-r1's), or columns of `code_reward`. extra_info's entries are
    columns as well. verl's further settings are ignored.

    Raises TypeError when neither form's arguments are there.
    """
    if solution_strs is not None:
        size = len(solution_strs)
        # Not `or`: verl passes arrays, which have no truth value.
        sources, golds, infos = (
            [None] * size if column is None else column for column in (data_sources, ground_truths, extra_infos)
        )
        rows = zip(sources, solution_strs, golds, infos, strict=True)
        return [_score(*row, reward=reward) for row in rows]
    if solution_str is None:
        raise TypeError("verl_compute_score needs solution_str, or solution_strs for a batch")
    return _score(data_source, solution_str, ground_truth, extra_info, reward=reward)


def _score(
    data_source: str | None, text: str, gold: Any, info: Mapping[str, Any] | None, reward: str | None
) -> dict[str, Any]:
    name = reward or _reward_of(data_source)
    columns = {**(info or {}), **_gold_columns(name, gold)}
    if columns.get("ground_truth") is not None:
        columns = {column: value for column, value in columns.items() if column not in _BEFORE_GROUND_TRUTH}
    rows = {column: [value] for column, value in columns.items() if column not in _ARGUMENTS}
    logged: dict[str, list] = {}
    (value,) = load_reward(name)(completions=[text], log_extra=logged.__setitem__, **rows)
    reasons = [str(column[0]) for column_name, column in logged.items() if column_name.endswith("_reason")]
    score = 0.0 if value is None else float(value)
    return {"score": score, "acc": float(score >= 1), "reason": "; ".join(reasons), "unscorable": value is None}


def _reward_of(data_source: str | None) -> str:
    source = (data_source or "").rpartition("/")[2].lower()
    if source in REWARDS:
        return source
    return "code" if source in _CODE_SOURCES else "accuracy"


def _gold_columns(name: str, gold: Any) -> Mapping[str, Any]:
    """The columns that a ground truth stands for."""
    if name not in ("code", "binary_code"):
        return gold if isinstance(gold, Mapping) else {"ground_truth": gold}
    if isinstance(gold, str):
        gold = json.loads(gold)
    if not isinstance(gold, Mapping):
        return {"tests": gold}
    if "inputs" in gold and "outputs" in gold:
        pairs = zip(gold["inputs"], gold["outputs"], strict=True)
        cases = [{"fn_name": gold.get("fn_name"), "input": given, "output": output} for given, output in pairs]
        return {"verification_info": {"language": "python", "test_cases": cases}}
    return {"verification_info": gold} if "test_cases" in gold else gold
