"""Several rewards as one."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.registry import RewardFunction, load_reward, reward_name


@dataclass(frozen=True, slots=True)
class RubricScore:
    total: float | None
    """Weighted sum of the parts that are not None; None when none is left."""
    parts: dict[str, float | None]
    """Unweighted, by the reward's name."""


class Rubric:
    """A reward function that is the weighted sum of others, in TRL's signature.

        rubric = Rubric({"accuracy": 1.0, "format": 0.2, my_reward: 0.5})

    rewards: name of the registry, dotted path or function -> weight. A part that is None for a completion is left out
    of its sum. log_extra, TRL's hook, gets each part as a column "<name of the rubric>/<name of the part>".

    Raises ValueError without parts, for two parts of one name, or a part that returns another number of values than
    there are completions; TypeError for an async part.
    """

    def __init__(self, rewards: Mapping[str | RewardFunction, float], name: str = "rubric"):
        if not rewards:
            raise ValueError("a rubric needs at least one reward: pass {reward: weight}")
        self.__name__ = name
        self.parts: list[tuple[str, RewardFunction, float]] = []
        for reward, weight in rewards.items():
            function = load_reward(reward) if isinstance(reward, str) else reward
            self._add(function, float(weight))

    def _add(self, function: RewardFunction, weight: float) -> None:
        name = reward_name(function)
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
            raise TypeError(f"part {name!r} is async; pass the plain function, and make the whole rubric async")
        if any(name == other for other, _, _ in self.parts):
            raise ValueError(f"two parts are named {name!r}; give one another __name__")
        self.parts.append((name, function, weight))

    def __call__(
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Any] = (),
        completion_ids: Sequence[Any] | None = None,
        *,
        log_extra: Callable[[str, list], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        scores = self.breakdown(prompts, completions, completion_ids, **columns)
        if log_extra is not None:
            for name, _, _ in self.parts:
                log_extra(f"{self.__name__}/{name}", [score.parts[name] for score in scores])
        return [score.total for score in scores]

    def breakdown(
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Any] = (),
        completion_ids: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[RubricScore]:
        """The sum and its parts, one `RubricScore` for each completion."""
        values: dict[str, list[float | None]] = {}
        for name, function, _ in self.parts:
            part = list(function(prompts=prompts, completions=completions, completion_ids=completion_ids, **columns))
            if len(part) != len(completions):
                raise ValueError(f"part {name!r} returned {len(part)} values for {len(completions)} completions")
            values[name] = part
        rows = [{name: values[name][index] for name in values} for index in range(len(completions))]
        return [RubricScore(self._total(row), row) for row in rows]

    def _total(self, row: Mapping[str, float | None]) -> float | None:
        weighted = [weight * row[name] for name, _, weight in self.parts if row[name] is not None]
        return sum(weighted) if weighted else None
