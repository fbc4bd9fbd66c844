"""Reward functions by name, as a configuration file writes them."""

import functools
import importlib
import inspect
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

RewardFunction = Callable[..., list[float | None]]


class Registry(MutableMapping[str, RewardFunction]):
    """Name -> reward function. One given as a dotted path is imported when it is first asked for."""

    def __init__(self, entries: dict[str, RewardFunction | str]):
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> RewardFunction:
        entry = self._entries[name]
        if isinstance(entry, str):
            entry = self._entries[name] = _import_function(entry)
        return entry

    def __setitem__(self, name: str, function: RewardFunction | str) -> None:
        self._entries[name] = function

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)


REWARDS = Registry(
    {
        "accuracy": "rewards.accuracy.accuracy_reward",
        "format": "rewards.format.format_reward",
        "tag_count": "rewards.format.tag_count_reward",
        "reasoning_steps": "rewards.reasoning.reasoning_steps_reward",
        "cosine": "rewards.length.cosine_reward",
        "length": "rewards.length.length_reward",
        "soft_overlong_punishment": "rewards.length.soft_overlong_punishment",
        "repetition_penalty": "rewards.repetition.repetition_penalty_reward",
        "language_consistency": "rewards.language.language_consistency_reward",
        "code": "rewards.code.code_reward",
        "binary_code": "rewards.code.code_reward",
        "code_format": "rewards.format.code_format_reward",
        "countdown": "rewards.countdown.countdown_reward",
    }
)
"""open-r1's names where open-r1 has the function. `REWARDS["mine"] = function_or_path` adds one."""


def load_reward(name: str, **options: Any) -> RewardFunction:
    """A reward function by its name in `REWARDS`, or by dotted path: "package.module.function".

    options are keyword arguments of the function to fix, such as max_len=4096 for "cosine"; the result is then a
    `functools.partial` of the same `__name__`, which pickles. Raises ValueError for a name that leads to no callable,
    TypeError for an option that the function does not have, SandboxUnavailable for "code" where this machine cannot
    isolate as the option `require` asks.
    """
    function = REWARDS[name] if name in REWARDS else _import_function(name)
    if not options:
        return function
    known = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise TypeError(f"reward {name!r} has no option {option!r}; it has {', '.join(known) or 'none'}")
    if prepare := getattr(function, "prepare", None):
        prepare(**options)  # What this machine cannot do is an error now, not in the middle of the training.
    configured = functools.partial(function, **options)
    configured.__name__ = reward_name(function)
    return configured


def reward_name(function: RewardFunction) -> str:
    """Under which a reward is logged: its `__name__`, that of the function in a partial, or that of its class."""
    while isinstance(function, functools.partial) and not hasattr(function, "__name__"):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _import_function(path: str) -> RewardFunction:
    module_name, _, attribute = path.rpartition(".")
    if not module_name:
        raise ValueError(f"reward {path!r} is unknown; use {', '.join(REWARDS)}, or a path 'package.module.name'")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise  # The module exists and lacks a dependency of its own: that message says more than ours.
        raise ValueError(f"reward {path!r}: there is no module {error.name!r}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ValueError(f"reward {path!r}: module {module_name!r} has no function {attribute!r}")
    return function
