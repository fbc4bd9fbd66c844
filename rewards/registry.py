"""Reward functions by name, as a configuration file writes them."""

import importlib
from collections.abc import Callable

from rewards.accuracy import accuracy_reward
from rewards.countdown import countdown_reward
from rewards.format import format_reward

REWARDS: dict[str, Callable[..., list[float | None]]] = {
    "accuracy": accuracy_reward,
    "format": format_reward,
    "countdown": countdown_reward,
}
"""open-r1's names where open-r1 has the function."""


def load_reward(name: str) -> Callable[..., list[float | None]]:
    """A reward function by its name in `REWARDS`, or by dotted path: "package.module.function".

    Raises ValueError for a name that leads to no callable.
    """
    if name in REWARDS:
        return REWARDS[name]
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        raise ValueError(f"reward {name!r} is unknown; use {', '.join(REWARDS)}, or a path 'package.module.name'")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise  # The module exists and lacks a dependency of its own: that message says more than ours.
        raise ValueError(f"reward {name!r}: there is no module {error.name!r}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ValueError(f"reward {name!r}: module {module_name!r} has no function {attribute!r}")
    return function
