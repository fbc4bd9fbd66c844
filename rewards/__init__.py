"""Verifiable rewards in TRL's signature, importable without torch.

    f(prompts=None, completions=..., completion_ids=None, **columns) -> list[float | None]

`completions` is a list of strings or of message lists; every dataset column comes as a list of the same length.
None means "not applicable": the trainer leaves that function out of the row's reward. All functions pickle.

Other trainers: `rewards.adapters`. Answers and programs by themselves: `rewards.math`, `rewards.code`.
"""

import importlib
from typing import Any

_MODULES = {
    "REWARDS": "rewards.registry",
    "Rubric": "rewards.rubric",
    "accuracy_reward": "rewards.accuracy",
    "code_format_reward": "rewards.format",
    "code_reward": "rewards.code",
    "cosine_reward": "rewards.length",
    "countdown_reward": "rewards.countdown",
    "format_reward": "rewards.format",
    "language_consistency_reward": "rewards.language",
    "length_reward": "rewards.length",
    "load_reward": "rewards.registry",
    "reasoning_steps_reward": "rewards.reasoning",
    "repetition_penalty_reward": "rewards.repetition",
    "soft_overlong_punishment": "rewards.length",
    "tag_count_reward": "rewards.format",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: `import rewards` costs a millisecond (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module 'rewards' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
