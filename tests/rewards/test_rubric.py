import functools
import pickle

import pytest

from rewards import Rubric, format_reward
from rewards.adapters import async_reward
from rewards.rubric import RubricScore

TEXTS = ["<think>a</think> <answer>4</answer>", r"\boxed{4}", "no"]
GOLDS = ["4", "4", None]


def skip_all(completions, **columns):
    return [None] * len(completions)


def one_short(completions, **columns):
    return [0.0] * (len(completions) - 1)


def test_weighted_sum():
    rubric = Rubric({"accuracy": 1.0, format_reward: 0.25})
    assert rubric(completions=TEXTS, solution=GOLDS) == [1.25, 1.0, 0.0]


def test_breakdown_keeps_the_parts_unweighted_and_leaves_out_none():
    scores = Rubric({"accuracy": 2.0, "format": -1.0}).breakdown(completions=TEXTS, solution=GOLDS)
    assert scores == [
        RubricScore(1.0, {"accuracy_reward": 1.0, "format_reward": 1.0}),
        RubricScore(2.0, {"accuracy_reward": 1.0, "format_reward": 0.0}),
        RubricScore(0.0, {"accuracy_reward": None, "format_reward": 0.0}),
    ]


def test_none_when_every_part_is_none():
    assert Rubric({skip_all: 1.0, "accuracy": 1.0})(completions=["4"], solution=[None]) == [None]


def test_parts_are_logged_as_columns():
    logged = {}
    Rubric({"accuracy": 1, "format": 1}, name="r1")(completions=TEXTS, solution=GOLDS, log_extra=logged.__setitem__)
    assert logged == {"r1/accuracy_reward": [1.0, 1.0, None], "r1/format_reward": [1.0, 0.0, 0.0]}


def test_rubrics_nest_and_pickle():
    inner = Rubric({"format": 1.0}, name="shape")
    rubric = pickle.loads(pickle.dumps(Rubric({"accuracy": 1.0, inner: 0.5})))
    assert rubric(completions=TEXTS, solution=GOLDS) == [1.5, 1.0, 0.0] and rubric.__name__ == "rubric"


def test_mistakes():
    with pytest.raises(ValueError, match="at least one"):
        Rubric({})
    with pytest.raises(ValueError, match="two parts are named 'format_reward'"):
        Rubric({"format": 1.0, functools.partial(format_reward, prefilled_think=True): 1.0})
    with pytest.raises(TypeError, match="'format_reward' is async"):
        Rubric({async_reward("format"): 1.0})
    with pytest.raises(ValueError, match="acuracy"):
        Rubric({"acuracy": 1.0})
    with pytest.raises(ValueError, match="'one_short' returned 2 values for 3"):
        Rubric({one_short: 1.0})(completions=TEXTS)
