"""Two evaluations of the same problems, problem by problem: what changed, how sure, split by split."""

from collections.abc import Sequence
from dataclasses import dataclass

from r1lab.evaluate.split import SplitOutcome
from r1lab.evaluate.statistics import bootstrap_intervals, mcnemar_test, sign_flip_test
from r1lab.evaluate.store import Evaluation


@dataclass(slots=True)
class Comparison:
    """One metric of one split in two evaluations, over the problems that both have."""

    split: str
    metric: str
    first: float
    second: float
    difference: float
    """second - first."""
    low: float
    high: float
    """95 % interval of the difference: paired bootstrap over problems."""
    p_value: float
    """Two-sided: exact McNemar where a problem is right or wrong (greedy), else a sign-flip permutation test. Not
    corrected for the number of metrics and splits looked at."""
    num_problems: int


def compare_evaluations(first: Evaluation, second: Evaluation, *, seed: int = 0) -> list[Comparison]:
    """Every metric that both have, split by split, then for each task as a whole.

    Problems are matched by their prompts; those of one evaluation only are left out (`num_problems` says how many
    were compared). Where the numbers of completions differ, maj@k is compared for no k and pass@k for the common ones.

    Raises:
        ValueError: no split has a problem in common.
    """
    firsts, seconds = Evaluation({}), Evaluation({})
    for split in first.splits:
        if split in second.splits:
            a, b = _common(first.splits[split], second.splits[split])
            if a.prompts:
                firsts.splits[split], seconds.splits[split] = a, b
    if not firsts.splits:
        raise ValueError(
            f"the evaluations have no problem in common: one has {_describe(first)}, the other {_describe(second)}; "
            "evaluate both on the same task"
        )
    all_second = seconds.everything()
    return [
        row
        for split, outcome in firsts.everything().items()
        for row in _compare_split(split, outcome, all_second[split], seed)
    ]


def _describe(evaluation: Evaluation) -> str:
    return ", ".join(f"{split} ({len(one.prompts)})" for split, one in evaluation.splits.items()) or "no split"


def _common(first: SplitOutcome, second: SplitOutcome) -> tuple[SplitOutcome, SplitOutcome]:
    places = [{key: index for index, key in enumerate(_keys(one.prompts))} for one in (first, second)]
    shared = [key for key in places[0] if key in places[1]]
    return (
        _select(first, [places[0][key] for key in shared]),
        _select(second, [places[1][key] for key in shared]),
    )


def _keys(prompts: Sequence[str]) -> list[tuple[str, int]]:
    """A prompt that occurs again is another problem: (prompt, its occurrence)."""
    seen: dict[str, int] = {}
    keys = []
    for prompt in prompts:
        keys.append((prompt, seen.get(prompt, 0)))
        seen[prompt] = seen.get(prompt, 0) + 1
    return keys


def _select(outcome: SplitOutcome, indices: list[int]) -> SplitOutcome:
    def pick(values: list) -> list:
        return [values[index] for index in indices]

    return SplitOutcome(pick(outcome.prompts), pick(outcome.sampled), pick(outcome.greedy), outcome.has_votes)


def _compare_split(split: str, first: SplitOutcome, second: SplitOutcome, seed: int) -> list[Comparison]:
    ours, theirs = first.scores(), second.scores()
    names = [name for name in ours if name in theirs and not name.endswith("@1")]  # which is accuracy
    differences = {name: [b - a for a, b in zip(ours[name], theirs[name], strict=True)] for name in names}
    intervals = bootstrap_intervals(differences, seed=seed)
    num_problems = len(first.prompts)

    def mean(values: Sequence[float]) -> float:
        return sum(values) / num_problems

    return [
        Comparison(
            split,
            name,
            mean(ours[name]),
            mean(theirs[name]),
            mean(differences[name]),
            *intervals[name],
            _p_value(name, ours[name], theirs[name], differences[name], seed),
            num_problems,
        )
        for name in names
    ]


def _p_value(name: str, first: list[float], second: list[float], differences: list[float], seed: int) -> float:
    if name.startswith("greedy_"):
        return mcnemar_test(list(map(bool, first)), list(map(bool, second)))
    return sign_flip_test(differences, seed=seed)
