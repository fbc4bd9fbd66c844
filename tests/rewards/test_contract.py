"""What every reward function promises a trainer."""

import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import rewards
from rewards import REWARDS, load_reward

GOOD = "<think>3 and 4</think> <answer>3+4</answer>"
COLUMNS = {"solution": ["3 + 4", "3 + 4"], "target": [7, 7], "numbers": [[3, 4], [3, 4]]}
EVERY_REWARD = pytest.mark.parametrize("name", REWARDS)


@EVERY_REWARD
def test_trl_calls_with_keywords_and_extras(name):
    extras = {"trainer_state": object(), "log_extra": print, "log_metric": print, "unrelated": ["a", "b"]}
    scores = REWARDS[name](prompts=["p", "p"], completions=[GOOD, "no"], completion_ids=[[1], [2]], **COLUMNS, **extras)
    assert scores == [1.0, 0.0] and all(type(score) is float for score in scores)


@EVERY_REWARD
def test_strings_and_messages_score_the_same(name):
    messages = [
        {"role": "assistant", "content": "<answer>0</answer>"},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": [{"type": "text", "text": GOOD}]},
    ]
    no_text = [{"role": "assistant", "content": None}]
    assert REWARDS[name](completions=[messages, no_text], **COLUMNS) == [1.0, 0.0]
    assert REWARDS[name](completions=[[{"role": "assistant", "content": GOOD}], []], **COLUMNS) == [1.0, 0.0]


@EVERY_REWARD
def test_pickles_and_has_a_name(name):
    function = REWARDS[name]
    assert pickle.loads(pickle.dumps(function)) is function
    assert function.__name__ == f"{name}_reward" and not inspect.iscoroutinefunction(function)


@EVERY_REWARD
def test_no_completions(name):
    assert REWARDS[name](completions=[], solution=[], target=[], numbers=[]) == []


@EVERY_REWARD
@pytest.mark.parametrize("completion", [7, None, {"role": "assistant", "content": "4"}, ["4"]], ids=str)
def test_a_completion_of_another_type_is_an_error(name, completion):
    with pytest.raises(TypeError, match="a completion must be"):
        REWARDS[name](completions=[completion], solution=["4"], target=[4], numbers=[[4]])


def test_missing_gold_names_the_columns_tried():
    with pytest.raises(TypeError, match="solution, answer, ground_truth, target; got level"):
        rewards.accuracy_reward(completions=["4"], level=[1])
    with pytest.raises(ValueError, match="'solution'"):
        rewards.accuracy_reward(completions=["4"], solution=["4", "5"])
    with pytest.raises(ValueError, match="'solution'"):
        rewards.accuracy_reward(completions=["4"], solution="4")


def test_load_reward():
    assert load_reward("accuracy") is rewards.accuracy_reward
    assert load_reward("rewards.countdown.countdown_reward") is rewards.countdown_reward
    for name, message in [
        ("acuracy", "accuracy, format, countdown"),
        ("rewards.nothing.f", "no module 'rewards.nothing'"),
        ("rewards.countdown.nothing", "no function 'nothing'"),
        ("rewards.countdown.MAX_DEPTH", "no function 'MAX_DEPTH'"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_reward(name)


def test_imports_neither_torch_nor_r1lab():
    root = Path(rewards.__file__).parents[1]
    code = "import sys, rewards, rewards.math; print(sorted({name.split('.')[0] for name in sys.modules}))"
    run = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=root, timeout=60)
    assert run.returncode == 0, run.stderr
    loaded = set(eval(run.stdout))
    assert "rewards" in loaded
    assert loaded <= set(sys.stdlib_module_names) | {"rewards", "__main__"}
