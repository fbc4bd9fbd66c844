"""One split of held-out problems: sampled, decoded greedily, judged."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from r1lab.evaluate.judge import Judged, RewardFunction, is_code, judge_completions
from r1lab.evaluate.statistics import problem_scores, summarize
from r1lab.rollout import SamplingParams, generate_of
from r1lab.trace.recorder import prompt_text
from r1lab.trace.words import find_reflections
from r1lab.types import Completion, Gather, Prompt

Generate = Callable[[list[list[int]], int, float], list[list[Completion]]]
"""(prompt_ids, completions per prompt, temperature) -> completions; temperature 0 is greedy."""

Watch = Callable[[Iterable, int], Iterable]
"""(items, how many) -> the same items, with a progress bar."""

REQUESTS_PER_CHUNK = 1024
"""Completions between two moves of the progress bar."""


@dataclass(slots=True)
class SplitOutcome:
    """All that one evaluation of one split found."""

    prompts: list[str]
    """As text, chat messages as JSON."""
    sampled: list[list[Judged]]
    """k completions of each problem."""
    greedy: list[Judged]
    """One of each."""
    has_votes: bool = True
    """Whether answers can be compared for maj@k; programs cannot."""

    def scores(self) -> dict[str, list[float]]:
        """Metric -> its value for each problem."""
        return problem_scores(self.sampled, has_votes=self.has_votes) | {
            "greedy_accuracy": [float(one.is_correct) for one in self.greedy],
            "greedy_accuracy_blind": [float(one.is_correct_blind) for one in self.greedy],
        }

    def summary(self) -> dict[str, float]:
        """The split's results, see `evaluate_split`."""
        summary = summarize(self.sampled, self.prompts, has_votes=self.has_votes)
        for name, attribute in (("greedy_accuracy", "is_correct"), ("greedy_accuracy_blind", "is_correct_blind")):
            summary[name] = sum(getattr(one, attribute) for one in self.greedy) / len(self.greedy)
        return summary


def build_generate(
    engine: Any, *, max_tokens: int, top_p: float = 1.0, banned_token_ids: tuple[int, ...] = ()
) -> Generate:
    """How an evaluation draws completions from an engine of `r1lab.rollout`.

    A completion's random numbers follow from its prompt and its place among the prompt's completions alone, so that
    the native engine gives the same ones whatever other problems are evaluated.
    """

    def generate(prompt_ids: list[list[int]], n: int, temperature: float) -> list[list[Completion]]:
        params = SamplingParams(
            n=n,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p if temperature > 0 else 1.0,
            banned_token_ids=banned_token_ids,
        )
        engine.model.eval()
        seeds = [[_seed(ids) + i for i in range(n)] for ids in prompt_ids]
        return generate_of(engine)(prompt_ids, params, seeds=seeds)

    return generate


def _seed(token_ids: list[int]) -> int:
    return int.from_bytes(blake2b(str(token_ids).encode(), digest_size=7).digest())


def judge_split(
    prompts: Sequence[Prompt],
    generate: Generate,
    decode: Callable[[list[int]], str],
    reward: RewardFunction,
    *,
    num_samples: int,
    temperature: float = 1.0,
    watch: Watch | None = None,
) -> SplitOutcome:
    """Samples `num_samples` completions a prompt at `temperature` and one greedily, and judges them all."""
    size = max(1, REQUESTS_PER_CHUNK // num_samples)
    # All at once without a bar, and even where there is nothing: engines may answer several processes together.
    chunks = [prompts[start : start + size] for start in range(0, len(prompts), size)] if watch else [prompts]
    sampled, greedy = [], []
    for chunk in watch(chunks, len(chunks)) if watch else chunks:
        ids = [prompt.token_ids for prompt in chunk]
        sampled += judge_completions(chunk, generate(ids, num_samples, temperature), decode, reward)
        greedy += [group[0] for group in judge_completions(chunk, generate(ids, 1, 0.0), decode, reward)]
    return SplitOutcome(
        prompts=[prompt_text(prompt) for prompt in prompts],
        sampled=sampled,
        greedy=greedy,
        has_votes=not any(is_code(prompt.columns) for prompt in prompts),
    )


def evaluate_split(
    prompts: Sequence[Prompt],
    generate: Generate,
    decode: Callable[[list[int]], str],
    reward: RewardFunction,
    *,
    num_samples: int,
    temperature: float = 1.0,
    rank: int = 0,
    world_size: int = 1,
    gather: Gather = list,
) -> dict[str, float]:
    """Sampled (`num_samples` at `temperature`) and greedy results on one split.

    With several processes, all of which call it, process `rank` of `world_size` takes every `world_size`-th problem;
    gather concatenates a list over them. The results are those of one process, and the same on each.

    Returns `accuracy`, `accuracy_blind` (with `_se`), `format`, `mean_length`, `clipped_ratio`, `pass@k`,
    `pass_blind@k`, `maj@k`, `reflection/*`, and `greedy_accuracy`, `greedy_accuracy_blind`.
    """
    share = prompts[rank::world_size]
    outcome = judge_split(share, generate, decode, reward, num_samples=num_samples, temperature=temperature)
    return join_shares(gather([outcome])).summary()


def join_shares(shares: Sequence[SplitOutcome]) -> SplitOutcome:
    """The whole split's outcome, from those of its problems 0, n, 2n, ..., of 1, n + 1, 2n + 1, ..., and so on."""

    def interleave(name: str) -> list:
        parts = [getattr(share, name) for share in shares]
        return [part[turn] for turn in range(len(parts[0])) for part in parts if turn < len(part)]

    return SplitOutcome(
        interleave("prompts"), interleave("sampled"), interleave("greedy"), all(share.has_votes for share in shares)
    )


def reflection_token_ids(tokenizer: Any) -> tuple[int, ...]:
    """Every token that is, by itself, a word of the reflection lists: what an ablation bans at decode time."""
    return tuple(i for i in range(len(tokenizer)) if find_reflections(tokenizer.decode([i])))
