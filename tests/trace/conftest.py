"""Rollouts to record."""

import pytest

from r1lab.types import Completion, Prompt, Rollout, RolloutGroup


def build_rollout(text, tokens, rewards, reward, advantage=0.0, finish_reason="stop"):
    logps = [-0.1 * (index + 1) for index in range(len(tokens))]
    return Rollout(Completion(tokens, logps, finish_reason), text, rewards, reward, advantage)


@pytest.fixture
def groups():
    chat = [{"role": "user", "content": "Was ist 3 × 4?"}]
    return [
        RolloutGroup(
            Prompt("3 5 target 8", [1, 2]),
            [
                build_rollout("3 + 5 = 8 off 0", [5, 6, 7], {"accuracy": 1.0, "format": 0.0}, 1.0, 0.5),
                build_rollout("wait", [5], {"accuracy": 0.0, "format": None}, 0.0, -0.5, "length"),
            ],
        ),
        RolloutGroup(Prompt(chat, [3]), [build_rollout("bad \ud800 surrogate", [], {"accuracy": None}, float("nan"))]),
    ]
