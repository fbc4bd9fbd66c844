"""What to sample, and where each request's random numbers come from."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from r1lab.kernels.reference.decode_step import random_stream, random_uniform, sample_tokens

__all__ = [
    "SamplingParams", "as_token_ids", "check_no_recording", "check_prompts", "generate_of", "random_stream",
    "random_uniform", "request_streams", "sample_tokens",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How `generate` samples. Raises ValueError on a field out of range."""

    n: int = 1
    """Completions per prompt."""
    max_tokens: int = 256
    """The most tokens a completion may have, the end-of-sequence token included."""
    temperature: float = 1.0
    """Divides the logits; 0 = greedy."""
    top_p: float = 1.0
    """Keep the smallest set of likeliest tokens that holds this much probability; 1 keeps all."""
    top_k: int = 0
    """Keep this many of the likeliest tokens, before `top_p`; 0 keeps all."""
    seed: int = 0
    """Same seed, same weights, same prompt list: same completions, whatever the batch size and thread count."""
    banned_token_ids: tuple[int, ...] = ()
    """Tokens that are never sampled (ablations); recorded logps ignore the ban."""
    record_routing: bool = False
    """Keep the experts chosen for every token (`Completion.routing`), for a training pass that replays them;
    `RolloutEngine` alone can."""

    def __post_init__(self):
        if self.n < 1:
            raise ValueError(f"n={self.n}: ask for at least 1 completion per prompt")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens}: allow at least 1 token")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature={self.temperature}: use a finite number >= 0 (0 is greedy)")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: use a number in (0, 1] (1 keeps every token)")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: use 0 to keep every token, or a positive count")


def as_token_ids(eos_token_id: int | list[int] | None) -> list[int]:
    """End-of-sequence tokens, of which transformers' configs may name none, one or several."""
    return [] if eos_token_id is None else [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)


def check_prompts(prompt_ids: list[list[int]], vocab_size: int, context: int, limit: str = "") -> None:
    """Raises ValueError on a prompt that is empty, leaves no room in a context of so many tokens (`limit`: what the
    message calls it), or holds a token id outside the vocabulary."""
    for index, prompt in enumerate(prompt_ids):
        if not len(prompt):
            raise ValueError(f"prompt {index} is empty: give at least one token (a BOS token will do)")
        if len(prompt) >= context:
            raise ValueError(
                f"prompt {index} has {len(prompt)} tokens, {limit or f'a context of {context}'} leaves no room for a "
                "completion: shorten it or raise the limit"
            )
        worst = max(prompt, key=lambda token: abs(2 * token - vocab_size + 1))
        if not 0 <= worst < vocab_size:
            raise ValueError(
                f"prompt {index} has token id {worst}, outside the vocabulary [0, {vocab_size}): check that the "
                "tokenizer belongs to the model"
            )


def check_no_recording(params: SamplingParams, engine: str) -> None:
    """Raises ValueError when an engine that does not see the experts is asked to record them."""
    if params.record_routing:
        raise ValueError(
            f"record_routing=True: {engine} does not record which experts it chose; leave router_replay off, or sample "
            "a DeepSeek-V3 policy with RolloutEngine"
        )


def request_streams(seed: int, num_prompts: int, n: int, seeds: list[list[int]] | None = None) -> np.ndarray:
    """The random stream of each request, uint64 [num_prompts, n].

    From (seed, prompt index, completion index), or from explicit `seeds` (then `seed` and the indices play no part,
    so that a caller can split prompts over processes without changing any completion).
    Raises ValueError when `seeds` is not [num_prompts][n].
    """
    if seeds is None:
        return random_stream(seed, np.arange(num_prompts)[:, None], np.arange(n)[None])
    if len(seeds) != num_prompts:
        raise ValueError(f"seeds has {len(seeds)} rows for {num_prompts} prompts: give one list of seeds per prompt")
    for p, row in enumerate(seeds):
        if len(row) != n:
            raise ValueError(f"seeds[{p}] has {len(row)} seeds for n={n} completions: give one seed per completion")
    return random_stream(np.array([[value % 2**64 for value in row] for row in seeds], np.uint64))


def generate_of(engine: Any) -> Callable:
    """An engine's `generate`, for all processes to call at the same time: `generate_together` where it answers them
    together."""
    return getattr(engine, "generate_together", engine.generate)
