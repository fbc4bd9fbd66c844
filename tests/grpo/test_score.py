import functools
import math

import pytest

from r1lab.grpo.score import RewardError, score_groups
from r1lab.types import Completion, Prompt, Rollout, RolloutGroup


def _groups(text="p", texts=("a", "bb"), **columns):
    completion = Completion([1, 2], [-0.1, -0.2], "stop")
    return [RolloutGroup(Prompt(text, [5], columns), [Rollout(completion, t) for t in texts])]


def test_functions_get_trls_keywords_and_their_weighted_sum_is_the_reward():
    seen = {}

    def length(prompts, completions, completion_ids, target, **columns):
        seen.update(prompts=prompts, completions=completions, completion_ids=completion_ids, target=target)
        return [float(len(c)) for c in completions]

    def one(completions, **columns):
        return [1.0, None]

    groups = _groups(target=7)
    score_groups(groups, [length, one], [2.0, 0.5])
    assert seen == {"prompts": ["p", "p"], "completions": ["a", "bb"], "completion_ids": [[1, 2]] * 2, "target": [7, 7]}
    assert [r.reward for r in groups[0].rollouts] == [2.5, 4.0]
    assert groups[0].rollouts[1].rewards == {"length": 2.0, "one": None}


def test_chat_prompts_get_chat_completions():
    def check(completions, **columns):
        return [float(c == [{"role": "assistant", "content": "a"}]) for c in completions]

    groups = _groups(text=[{"role": "user", "content": "p"}], texts=("a",))
    score_groups(groups, [check], [1.0])
    assert groups[0].rollouts[0].reward == 1.0


def test_a_partial_is_logged_under_its_functions_name():
    def agrees(completions, word, **columns):
        return [float(word in completion) for completion in completions]

    groups = _groups(texts=("a",))
    score_groups(groups, [functools.partial(agrees, word="a")], [1.0])
    assert groups[0].rollouts[0].rewards == {"agrees": 1.0}


def test_nothing_applicable_is_nan():
    groups = _groups()
    score_groups(groups, [lambda **columns: [None, None]], [1.0])
    assert all(math.isnan(r.reward) for r in groups[0].rollouts)


def _raises(**columns):
    raise KeyError("boom")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_raises, "'_raises' raised KeyError: 'boom'"),
        (lambda **c: [1.0], "returned 1 values for 2 completions"),
        (lambda **c: [1.0, float("nan")], "returned nan"),
        (lambda **c: [1.0, "good"], "returned 'good'"),
        (lambda **c: 1.0, "returned float"),
    ],
)
def test_a_broken_reward_function_is_named(function, message):
    with pytest.raises(RewardError, match=message.replace("(", r"\(")):
        score_groups(_groups(), [function], [1.0])
