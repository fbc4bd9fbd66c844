"""Prompts -> rollout groups with rewards and advantages: the first half of a step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.profiler import record_function

from r1lab.config import GRPOConfig
from r1lab.grpo.advantage import group_advantages
from r1lab.grpo.score import RewardFunction, score_groups
from r1lab.types import Completion, Gather, Prompt, Rollout, RolloutGroup

Sampler = Callable[[list[list[int]], list[list[int]]], list[list[Completion]]]
"""(prompt_ids [P][...], seeds [P][G]) -> G completions a prompt. A seed fixes its completion's random numbers. Every
process calls it at the same time, with P = 0 too."""


@dataclass(slots=True)
class PromptStream:
    """The training prompts in a seeded random order, epoch after epoch.

    The order does not depend on the number of processes; `position` is all that a resume needs.
    """

    prompts: Sequence[Prompt]
    seed: int
    position: int = 0
    """Prompts taken so far, over all processes."""

    def take(self, count: int) -> list[tuple[int, Prompt]]:
        """The next `count` prompts, each with its position in the stream."""
        positions = range(self.position, self.position + count)
        self.position += count
        orders = {epoch: self._order(epoch) for epoch in {p // len(self.prompts) for p in positions}}
        return [(p, self.prompts[orders[p // len(self.prompts)][p % len(self.prompts)]]) for p in positions]

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(len(self.prompts), generator=generator).tolist()


@dataclass(slots=True)
class Collection:
    """One process's rollouts of a step."""

    sampled: list[RolloutGroup]
    """Every group sampled."""
    fresh: list[RolloutGroup]
    """The groups of the first round only: an unbiased sample of the prompts, for metrics."""
    trained: list[RolloutGroup]
    """The groups to train on."""


@dataclass(slots=True)
class Collector:
    """Samples, scores and compares groups; process `rank` of `world_size` takes every `world_size`-th prompt."""

    config: GRPOConfig
    stream: PromptStream
    sample: Sampler
    decode: Callable[[list[int]], str]
    reward_funcs: Sequence[RewardFunction]
    gather: Gather
    rank: int = 0
    world_size: int = 1

    def collect(self) -> Collection:
        """One step's groups.

        With `dynamic_sampling`, groups of equal rewards teach nothing and are replaced by groups of further prompts,
        for up to `max_resamples` rounds (DAPO, arXiv:2503.14476, section 3.2); what is then still missing is filled
        with the groups first dropped, whose advantages are 0.
        """
        fresh = self._sample_round(self.config.num_prompts)
        if not self.config.dynamic_sampling:
            self._compare(fresh)
            return Collection(fresh, fresh, fresh)
        sampled = list(fresh)
        trained = [group for group in fresh if is_informative(group)]
        for _ in range(self.config.max_resamples):
            missing = self._missing(trained)
            if not missing:
                break
            groups = self._sample_round(missing)
            sampled += groups
            trained += [group for group in groups if is_informative(group)]
        trained += self._first_dropped(fresh, self._missing(trained))
        self._compare(trained)
        return Collection(sampled, fresh, trained)

    def _missing(self, groups: list[RolloutGroup]) -> int:
        """How many groups of a step all processes still lack; never negative, since no round asks for more."""
        return self.config.num_prompts - sum(self.gather([len(groups)]))

    def _first_dropped(self, fresh: list[RolloutGroup], count: int) -> list[RolloutGroup]:
        """This process's part of the step's first `count` groups of equal rewards, whatever the number of processes."""
        dropped = {
            self.rank + turn * self.world_size: group for turn, group in enumerate(fresh) if not is_informative(group)
        }
        first = set(sorted(self.gather(list(dropped)))[:count])
        return [group for place, group in dropped.items() if place in first]

    def _sample_round(self, num_prompts: int) -> list[RolloutGroup]:
        mine = self.stream.take(num_prompts)[self.rank :: self.world_size]
        # A process without prompts takes part too: the engine may answer all of them together.
        seeds = [[self._seed(position, i) for i in range(self.config.num_generations)] for position, _ in mine]
        with record_function("r1lab/rollout"):
            completions = self.sample([prompt.token_ids for _, prompt in mine], seeds)
        if not mine:
            return []
        groups = [
            RolloutGroup(prompt, [Rollout(completion, self.decode(completion.token_ids)) for completion in group])
            for (_, prompt), group in zip(mine, completions, strict=True)
        ]
        with record_function("r1lab/rewards"):
            score_groups(groups, self.reward_funcs, self.config.reward_weights or [1.0] * len(self.reward_funcs))
        return groups

    def _seed(self, position: int, generation: int) -> int:
        return (self.config.seed << 48) + position * self.config.num_generations + generation

    def _compare(self, groups: list[RolloutGroup]) -> None:
        """Fills in the advantages. All processes' rewards are compared together, for `scale_rewards="batch"`."""
        own = [[rollout.reward for rollout in group.rollouts] for group in groups]
        sizes = self.gather([len(own)])
        rewards = self.gather(own)
        if not rewards:
            return
        advantages = group_advantages(torch.tensor(rewards, dtype=torch.float64), self.config.scale_rewards)
        start = sum(sizes[: self.rank])
        for group, row in zip(groups, advantages[start : start + len(own)].tolist(), strict=True):
            for rollout, advantage in zip(group.rollouts, row, strict=True):
                rollout.advantage = advantage


def is_informative(group: RolloutGroup) -> bool:
    """Whether the group's rewards differ, so that it has something to teach."""
    rewards = torch.tensor([[rollout.reward for rollout in group.rollouts]], dtype=torch.float64)
    return bool(group_advantages(rewards, "none").any())
