"""Verifiable rewards in TRL's signature, importable without torch.

    f(prompts=None, completions=..., completion_ids=None, **columns) -> list[float | None]

`completions` is a list of strings or of message lists; every dataset column comes as a list of the same length.
None means "not applicable": the trainer leaves that function out of the row's reward. All functions pickle.
"""

from rewards.accuracy import accuracy_reward
from rewards.countdown import countdown_reward
from rewards.format import format_reward
from rewards.registry import REWARDS, load_reward

__all__ = ["REWARDS", "accuracy_reward", "countdown_reward", "format_reward", "load_reward"]
