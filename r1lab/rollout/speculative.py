"""Speculative rollouts: when the engine drafts with the multi-token-prediction module, and what came of it.

How a cycle drafts and verifies is `r1lab/kernels/reference/speculative_step.py`. A completion is the same with and
without drafts, so the engine may switch at any time, and goes by the clock: a small batch waits for memory, and a
second row a step costs little; a large one computes as fast as it can, and every rejected draft is lost time.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from r1lab.kernels.cpu.decode_step import MAX_DRAFTS
from r1lab.kernels.reference.decode_step import DecodeRequests
from r1lab.model import has_mtp

RETRY_CALLS = 32
"""The way that was slower at a batch size is tried again after so many calls: weights, lengths and load change."""
SMOOTHING = 0.3
"""Weight of the newest call in the average time a token."""


@dataclass(slots=True)
class _Pace:
    """Seconds a token at one batch size, by way (False: plain, True: drafting)."""

    seconds: dict[bool, float] = field(default_factory=dict)
    calls: int = 0

    def choose(self) -> bool:
        for way in (True, False):
            if way not in self.seconds:
                return way
        drafts_win = self.seconds[True] < self.seconds[False]
        self.calls += 1
        return drafts_win != (self.calls % RETRY_CALLS == 0)

    def record(self, way: bool, seconds: float) -> None:
        before = self.seconds.get(way, seconds)
        self.seconds[way] = before + SMOOTHING * (seconds - before)


@dataclass(slots=True)
class Drafting:
    """Decides, call by call, whether the decoder drafts, and counts drafts."""

    num_tokens: int
    """Tokens drafted at a time; 0: never."""
    always: bool = False
    """Draft at every batch size, whatever it costs."""
    drafted: int = 0
    accepted: int = 0
    sampled: int = 0
    """Tokens, drafts or not."""
    _paces: dict[int, _Pace] = field(default_factory=dict)

    @contextmanager
    def chosen(self, requests: DecodeRequests, active: np.ndarray) -> Iterator[int]:
        """How many tokens to draft at a time in the call inside, which is timed and counted where that may be some."""
        if not self.num_tokens:
            yield 0
            return
        pace = self._paces.setdefault(len(active).bit_length(), _Pace())
        way = self.always or pace.choose()
        before = [int(each[active].sum()) for each in (requests.count, requests.drafted, requests.accepted)]
        start = time.perf_counter()
        yield self.num_tokens if way else 0
        seconds = time.perf_counter() - start
        after = [int(each[active].sum()) for each in (requests.count, requests.drafted, requests.accepted)]
        sampled, drafted, accepted = (b - a for a, b in zip(before, after, strict=True))
        self.sampled, self.drafted, self.accepted = (
            self.sampled + sampled, self.drafted + drafted, self.accepted + accepted
        )  # fmt: skip
        if sampled:
            pace.record(way, seconds / sampled)

    def take_metrics(self) -> dict[str, float]:
        """What happened since the last call: "mtp/rollout_acceptance" (share of the drafts that were accepted; left out
        where nothing was drafted) and "mtp/drafted_share" (accepted drafts among the tokens); {} without drafts."""
        drafted, accepted, sampled = self.drafted, self.accepted, self.sampled
        self.drafted = self.accepted = self.sampled = 0
        if not sampled:
            return {}
        metrics = {"mtp/drafted_share": accepted / sampled}
        return metrics | ({"mtp/rollout_acceptance": accepted / drafted} if drafted else {})


def check_drafting(model: torch.nn.Module, num_tokens: int) -> None:
    """Raises ValueError when so many drafts, or drafts by this model, are not possible."""
    if not 0 <= num_tokens <= MAX_DRAFTS:
        raise ValueError(f"num_speculative_tokens={num_tokens}: use 0 (no drafts) to {MAX_DRAFTS}")
    if num_tokens and not has_mtp(model):
        raise ValueError(
            f"num_speculative_tokens={num_tokens} needs a policy with its multi-token-prediction module: load it "
            "with_mtp=True, or train one with recipes/pretrain.py --init_from DIR --train_mtp_only true"
        )
