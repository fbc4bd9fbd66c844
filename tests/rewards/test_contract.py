"""What every reward function promises a trainer."""

import inspect
import math
import pickle

import pytest

from rewards import REWARDS

GOOD = "<think>3 and 4 make seven, which is enough</think> <answer>3+4</answer>"
BAD = "no"
# Code's columns, and its seconds, are in its own tests.
GENERAL = [name for name in REWARDS if name not in ("code", "binary_code")]
EVERY_REWARD = pytest.mark.parametrize("name", GENERAL)
PROMPTS = ["p", "p"]
COLUMNS = {"solution": ["3 + 4", "3 + 4"], "target": [7, 7], "numbers": [[3, 4], [3, 4]]}
IDS = [[1, 2, 3, 4], [1, 1, 1, 1, 1]]

# of GOOD and of BAD, with the ids above
EXPECTED = {
    "accuracy": [1.0, 0.0],
    "format": [1.0, 0.0],
    "tag_count": [1.0, 0.0],
    "reasoning_steps": [0.0, 0.0],
    "cosine": [1.0, -1.0],
    "length": [0.5, -0.5],
    "soft_overlong_punishment": [0.0, 0.0],
    "repetition_penalty": [0.0, -2 / 3],
    "language_consistency": [1.0, 1.0],
    "code_format": [0.0, 0.0],
    "countdown": [1.0, 0.0],
}


@EVERY_REWARD
def test_trl_calls_with_keywords_and_extras(name):
    extras = {"trainer_state": object(), "log_extra": lambda *_: None, "log_metric": print, "unrelated": ["a", "b"]}
    scores = REWARDS[name](prompts=PROMPTS, completions=[GOOD, BAD], completion_ids=IDS, **COLUMNS, **extras)
    assert scores == pytest.approx(EXPECTED[name], abs=1e-3)
    assert all(type(score) is float and math.isfinite(score) for score in scores)


@EVERY_REWARD
def test_strings_and_messages_score_the_same(name):
    messages = [
        {"role": "assistant", "content": "<answer>0</answer>"},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": [{"type": "text", "text": GOOD}]},
    ]
    calls = [[GOOD, ""], [messages, [{"role": "assistant", "content": None}]], [[{"content": GOOD}], []]]
    results = [
        REWARDS[name](prompts=PROMPTS, completions=completions, completion_ids=IDS, **COLUMNS) for completions in calls
    ]
    assert results[0] == results[1] == results[2]


@EVERY_REWARD
def test_what_is_logged_has_one_entry_for_each_completion(name):
    logged = {}
    REWARDS[name](completions=[GOOD, BAD], completion_ids=IDS, log_extra=logged.__setitem__, **COLUMNS)
    assert all(len(entries) == 2 and None not in entries for entries in logged.values())
    assert all(column.startswith(f"{name}_") for column in logged)


@EVERY_REWARD
def test_pickles_and_has_a_name(name):
    function = REWARDS[name]
    assert pickle.loads(pickle.dumps(function)) is function
    assert function.__name__ in (name, f"{name}_reward") and not inspect.iscoroutinefunction(function)


@EVERY_REWARD
def test_no_completions(name):
    empty = {column: [] for column in COLUMNS}
    assert REWARDS[name](prompts=[], completions=[], completion_ids=[], **empty) == []


@pytest.mark.parametrize("name", [name for name in GENERAL if name != "soft_overlong_punishment"])
@pytest.mark.parametrize("completion", [7, None, {"role": "assistant", "content": "4"}, ["4"]], ids=str)
def test_a_completion_of_another_type_is_an_error(name, completion):
    with pytest.raises(TypeError, match="a completion must be"):
        REWARDS[name](completions=[completion], solution=["4"], target=[4], numbers=[[4]])


@pytest.mark.parametrize("name", ["accuracy", "cosine", "length"])
def test_missing_gold_names_the_columns_tried(name):
    reward = REWARDS[name]
    with pytest.raises(TypeError, match="solution, answer, ground_truth, target; got level$"):
        reward(completions=["4"], level=[1], log_extra=print)
    with pytest.raises(ValueError, match="'solution'"):
        reward(completions=["4"], solution=["4", "5"])
    with pytest.raises(ValueError, match="'solution'"):
        reward(completions=["4"], solution="4")


def test_countdown_names_the_columns_tried():
    with pytest.raises(TypeError, match="numbers, nums; got target$"):
        REWARDS["countdown"](completions=["4"], target=[1])


@EVERY_REWARD
def test_hostile_texts_are_data(name):
    texts = ["<think>" * 20_000, "\\boxed{" * 20_000, "```\n" * 20_000, "- " * 20_000, "\x00\ud800", "First," * 20_000]
    size = len(texts)
    columns = {"solution": ["4"] * size, "target": [4] * size, "numbers": [[4]] * size}
    scores = REWARDS[name](completions=texts, completion_ids=[[1]] * size, **columns)
    assert len(scores) == size and all(score is None or math.isfinite(score) for score in scores)
