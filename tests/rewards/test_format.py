import pytest

from rewards import format_reward

GOOD = [
    "<think>2+2</think> <answer>4</answer>",
    "<think>\n2+2\n</think>\n<answer>\n4\n</answer>",
    "  \n<think>a</think><answer>4</answer>\n",
    "<think>1 < 2 and <b>bold</b></think> <answer>4</answer>",
]
BAD = [
    "",
    "4",
    "<answer>4</answer>",
    "<think>a</think>",
    "<think>a</think> 4",
    "Sure! <think>a</think> <answer>4</answer>",
    "<think>a</think> <answer>4</answer> done",
    "<think>a</think> so <answer>4</answer>",
    "<think></think> <answer>4</answer>",
    "<think> \n</think> <answer>4</answer>",
    "<think>\u200b</think> <answer>4</answer>",
    "<think>a</think> <answer></answer>",
    "<think>a</think> <answer> </answer>",
    "<think>a</think> <answer>4</answer> <answer>5</answer>",
    "<think>a</think> <answer>4</answer></answer>",
    "<think>a</think></think> <answer>4</answer>",
    "<think><think>a</think></think> <answer>4</answer>",
    "<think>a</think><think>b</think> <answer>4</answer>",
    "<answer>4</answer> <think>a</think>",
    "<think>a <answer>4</answer></think>",
    "<think>a <answer>4</think></answer>",
    "<answer><think>a</think>4</answer>",
    "</think>a<think> <answer>4</answer>",
    "<think>a</think> </answer>4<answer>",
    "<think>a</think> <answer>4",
    "<THINK>a</THINK> <ANSWER>4</ANSWER>",
    "< think>a</think> <answer>4</answer>",
    "a</think> <answer>4</answer>",
    "Respond as <think> </think> <answer> </answer>. <think>a</think> <answer>4</answer>",
]


@pytest.mark.parametrize("text", GOOD)
def test_good(text):
    assert format_reward(completions=[text]) == [1.0]


@pytest.mark.parametrize("text", BAD)
def test_bad(text):
    assert format_reward(completions=[text]) == [0.0]


def test_prefilled_think_is_declared_by_argument_or_column():
    texts = ["2+2</think> <answer>4</answer>", "<think>2+2</think> <answer>4</answer>", "</think> <answer>4</answer>"]
    assert format_reward(completions=texts, prefilled_think=True) == [1.0, 0.0, 0.0]
    assert format_reward(completions=texts, prefilled_think=[True, False, True]) == [1.0, 1.0, 0.0]
    assert format_reward(completions=texts, prefilled_think=[None, None, None]) == [0.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="prefilled_think"):
        format_reward(completions=texts, prefilled_think=[True])


def test_a_megabyte_of_tags():
    assert format_reward(completions=["<think>" * 150_000, "a" * 1_000_000, "<" * 1_000_000]) == [0.0] * 3
