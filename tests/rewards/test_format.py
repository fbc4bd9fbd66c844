import pytest

from rewards import code_format_reward, format_reward, tag_count_reward

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


def test_reasons_are_logged():
    texts = [
        "<think>a</think> <answer>4</answer>",
        "a",
        "<think>a</think></think> <answer>4</answer>",
        "<answer>4</answer> <think>a</think>",
        "<think>a</think> <answer>4</answer>!",
        "<think> </think> <answer>4</answer>",
        "<think>a</think> <answer></answer>",
    ]
    logged = {}
    format_reward(completions=texts, log_extra=logged.__setitem__)
    assert logged["format_reason"] == [
        "good",
        "no <think>",
        "several </think>",
        "tags out of order",
        "text outside the blocks",
        "empty <think>",
        "empty <answer>",
    ]


@pytest.mark.parametrize(
    ("text", "paid"),
    [
        ("<think>a</think> <answer>4</answer>", 4),
        ("<think>a</think> <answer>4</answer> and more", 4),
        ("<think>a</think> <answer>4", 3),
        ("<think>a</think> 4", 2),
        ("<think>a", 1),
        ("a", 0),
        # hacks: the four tags without anything between them, out of order, twice
        ("<think></think><answer></answer>", 2),
        ("<think> \u200b</think>", 1),
        ("</answer><answer></think><think>", 1),
        ("</think></answer>", 0),
        ("<answer>4</answer><think>a</think>", 2),
        ("<think>a</think><think>b</think><answer>4</answer>", 2),
        ("<think></think> <answer></answer> " * 2, 0),
    ],
)
def test_tag_count(text, paid):
    assert tag_count_reward(completions=[text]) == [paid / 4]


def test_tag_count_with_prefilled_think():
    assert tag_count_reward(completions=["a</think><answer>4</answer>"], prefilled_think=True) == [1.0]
    assert tag_count_reward(completions=["a</think><answer>4</answer>"]) == [0.5]


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("```python\nprint(1)\n```", 1.0),
        ("Here:\n```Python\nprint(1)\n```\n", 1.0),
        ("```python\nprint(1)", 0.0),
        ("```python\n\n```", 0.0),
        ("```js\n1\n```", 0.0),
        ("```\nprint(1)\n```", 0.0),
        ("```python\n1\n```\n```python\n2\n```", 0.0),
        ("print(1)", 0.0),
    ],
)
def test_code_format(answer, reward):
    text = f"<think>a</think>\n<answer>\n{answer}\n</answer>"
    assert code_format_reward(completions=[text]) == [reward]
    assert code_format_reward(completions=[text.replace("<think>", "")]) == [0.0]


def test_code_format_languages_by_column():
    text = "<think>a</think> <answer>\n```cpp\nint x;\n```\n</answer>"
    assert code_format_reward(completions=[text] * 3, language=["cpp", "python", None]) == [1.0, 0.0, None]
