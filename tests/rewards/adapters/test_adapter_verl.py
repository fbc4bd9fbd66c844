"""verl's call shapes: its naive, DAPO and loop managers by keyword, prime by position, batch by lists."""

import importlib.util
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

import rewards.adapters.verl
from rewards.adapters import verl_compute_score

KEYS = {"score", "acc", "reason", "unscorable"}
RIGHT, WRONG = r"so \boxed{4}", r"so \boxed{5}"


def test_keyword():
    extra = {"index": 3, "split": "train", "num_turns": None}
    result = verl_compute_score(
        data_source="openai/gsm8k", solution_str=RIGHT, ground_truth="4", extra_info=extra, sandbox_fusion_url=None
    )
    assert (result["score"], result["acc"], result["unscorable"]) == (1.0, 1.0, False)
    assert verl_compute_score("math", WRONG, "4", None)["score"] == 0.0


def test_positional_in_a_thread():
    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(verl_compute_score, "math", RIGHT, "4").result()["score"] == 1.0


def test_batch():
    results = verl_compute_score(
        data_sources=["math", "countdown", "math"],
        solution_strs=[RIGHT, "<answer>1+3</answer>", WRONG],
        ground_truths=["4", {"target": 4, "numbers": [1, 3]}, None],
        extra_infos=[None, {}, {"index": 1}],
    )
    assert [result["score"] for result in results] == [1.0, 1.0, 0.0]
    assert [result["unscorable"] for result in results] == [False, False, True]
    assert verl_compute_score(data_sources=[], solution_strs=[], ground_truths=[], extra_infos=[]) == []


def test_a_batch_of_arrays():
    numpy = pytest.importorskip("numpy")
    columns = {
        "data_sources": ["math", "math"], "ground_truths": ["4", "4"], "extra_infos": [{"index": 0}, {"index": 1}]
    }  # fmt: skip
    arrays = {name: numpy.array(column, dtype=object) for name, column in columns.items()}
    results = verl_compute_score(solution_strs=[RIGHT, WRONG], **arrays)
    assert [result["score"] for result in results] == [1.0, 0.0]


def test_the_ground_truth_is_the_gold_whatever_extra_info_tells_of():
    extra = {"solution": "2 + 2 by adding", "answer": "worked out below", "question": "2 + 2?"}
    assert verl_compute_score("math", RIGHT, "4", extra)["score"] == 1.0
    assert verl_compute_score("math", RIGHT, None, {"answer": "4"})["score"] == 1.0
    numbers = {"target": 4, "numbers": [1, 3]}
    assert verl_compute_score("countdown", "<answer>1+3</answer>", "4", numbers)["score"] == 1.0


@pytest.mark.parametrize(
    ("text", "gold"), [(RIGHT, "4"), (WRONG, "4"), ("", "4"), (RIGHT, ""), (RIGHT, None), ("\\boxed{" * 9, "4")]
)
def test_always_the_same_keys_and_no_none(text, gold):
    result = verl_compute_score("math", text, gold)
    assert set(result) == KEYS and None not in result.values()
    assert [type(result[key]) for key in ("score", "acc", "reason", "unscorable")] == [float, float, str, bool]


def test_the_reward_is_chosen_by_setting_then_source():
    text = "<think>a</think> <answer>5</answer>"
    assert verl_compute_score("math", text, "4", reward="format")["score"] == 1.0
    assert verl_compute_score("format", text, "4")["score"] == 1.0
    assert verl_compute_score("math", text, "4", reward="format")["reason"] == "good"
    with pytest.raises(ValueError, match="acuracy"):
        verl_compute_score("math", text, "4", reward="acuracy")


def test_columns_come_from_extra_info():
    assert verl_compute_score("language_consistency", "我们", None, {"language": "zh"})["score"] == 1.0


CODE_GOLDS = {
    "verl": {"inputs": ["1 2", "3 4"], "outputs": ["3", "7"]},
    "open-r1": {"language": "python", "test_cases": [{"input": "3 4", "output": "7", "type": "stdin_stdout"}]},
    "columns": {"tests": [{"type": "stdin_stdout", "input": "3 4", "output": "7"}]},
    "list": [{"type": "stdin_stdout", "input": "3 4", "output": "7"}],
}


@pytest.mark.parametrize("gold", CODE_GOLDS.values(), ids=CODE_GOLDS)
@pytest.mark.parametrize("encode", [json.dumps, lambda gold: gold], ids=["json", "object"])
def test_programs(gold, encode):
    good = "```python\nprint(sum(map(int, input().split())))\n```"
    bad = good.replace("sum", "max")
    assert [verl_compute_score("codecontests", text, encode(gold))["score"] for text in (good, bad)] == [1.0, 0.0]


def test_a_function_by_name():
    gold = {"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]}
    text = "```python\ndef add(a, b):\n    return a + b\n```"
    assert verl_compute_score("taco", text, gold)["score"] == 1.0
    assert verl_compute_score("taco", text.replace("+", "-"), gold)["score"] == 0.0


def test_without_a_completion():
    with pytest.raises(TypeError, match="solution_str"):
        verl_compute_score(data_source="math", ground_truth="4")


def test_loads_from_its_file_and_pickles():
    spec = importlib.util.spec_from_file_location("custom_module", rewards.adapters.verl.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.verl_compute_score("math", RIGHT, "4")["score"] == 1.0
    assert pickle.loads(pickle.dumps(verl_compute_score)) is verl_compute_score
