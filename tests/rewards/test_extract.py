import time

import pytest

from rewards.math import extract_answer
from rewards.math.extract import MODES

CASES = [
    # mode, text, answer
    ("answer_tag", "<think>2+2</think> <answer> 4 </answer>", "4"),
    ("answer_tag", "<answer>4</answer>", "4"),
    ("answer_tag", "2+2</think><answer>\n4\n</answer>", "4"),
    ("answer_tag", "<answer>4</answer> or <answer>5</answer>", None),
    ("answer_tag", "<think><answer>4</answer></think>", None),
    ("answer_tag", "<think><answer>4</answer></think> <answer>5</answer>", None),
    ("answer_tag", "<think>x <answer>4</answer>", None),
    ("answer_tag", "<think>a</think>b</think><answer>4</answer>", None),
    ("answer_tag", "<answer><answer>4</answer></answer>", None),
    ("answer_tag", "</answer>4<answer>", None),
    ("answer_tag", "<answer>4 <answer>5</answer>", None),
    ("answer_tag", "<answer>4</answer> 5</answer>", None),
    ("answer_tag", "<answer>  </answer>", None),
    ("answer_tag", "<answer>\u200b</answer>", None),
    ("answer_tag", "<answer>4", None),
    ("answer_tag", "4", None),
    ("answer_tag", "<answer>...</answer>", None),
    ("boxed", r"so \boxed{4}.", "4"),
    ("boxed", r"\boxed{4} wait, \boxed{5}", "5"),
    ("boxed", r"\boxed{3} and \boxed{5}", "3, 5"),
    ("boxed", r"$\boxed{3}$, $\boxed{5}$", "3, 5"),
    ("boxed", r"\boxed{1}\boxed{2}\boxed{3}", "1, 2, 3"),
    ("boxed", r"\boxed{\frac{1}{\sqrt{2}}} done 7", r"\frac{1}{\sqrt{2}}"),
    ("boxed", r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    ("boxed", r"\boxed{[1, 2\}}", r"[1, 2\}"),
    ("boxed", r"\boxed{\boxed{5}}", "5"),
    ("boxed", r"\fbox{5}", "5"),
    ("boxed", r"$\boxed 5$", "5"),
    ("boxed", r"\\boxed{5}", "5"),
    ("boxed", r"\boxed{5", None),
    ("boxed", r"\boxed{3} then \boxed{5", None),
    ("boxed", r"\boxed{}", None),
    ("boxed", r"\boxed{ }", None),
    ("boxed", r"\boxed{5}\boxed{}", None),
    ("boxed", r"\boxed{answer}", None),
    ("boxed", r"\boxed", None),
    ("boxed", r"<think>\boxed{5}</think> so it is", None),
    ("boxed", r"<think>\boxed{5}", None),
    ("boxed", r"<think>\boxed{3}</think> \boxed{5}", "5"),
    ("boxed", "the answer is 5", None),
    ("gsm8k", "1 + 1 = 2\n#### 2", "2"),
    ("gsm8k", "#### 1,234 \nso", "1,234"),
    ("gsm8k", "#### 1\n#### 2", "2"),
    ("gsm8k", "####", None),
    ("gsm8k", "answer: 2", None),
    ("gsm8k", "<think>#### 2</think>", None),
    ("auto", "<think>#### 3</think> <answer>4</answer>", "4"),
    ("auto", r"<answer>It is \boxed{4}</answer>", "4"),
    ("auto", r"<answer>4</answer> \boxed{5}", "4"),
    ("auto", r"<answer> \boxed{5}", None),
    ("auto", r"\boxed{4} #### 5", "4"),
    ("auto", "#### 5", "5"),
    ("auto", "5", None),
    ("auto", "", None),
    ("auto", "so 5 it is", None),
    ("boxed", r"\(\boxed{(2, 2)}\) \quad \text{and} \quad \(\boxed{(6, 2)}\)", "(2, 2), (6, 2)"),
    ("boxed", r"\(y_1 = \boxed{3}\) and \(y_2 = \boxed{4}\)", "3, 4"),
    ("boxed", r"\boxed{1} no no no \boxed{2}", "2"),
    ("boxed", r"\boxed{1} papers and \boxed{2}", "2"),
    ("choice", r"\boxed{\text{(B)}}", "B"),
    ("choice", "<answer>c</answer>", "C"),
    ("choice", "The answer is (D).", "D"),
    ("choice", "Answer: B. 42", "B"),
    ("choice", r"\boxed{B) 42}", "B"),
    ("choice", r"\boxed{A or B}", None),
    ("choice", r"\boxed{(A) or (B)}", None),
    ("choice", "A long story", None),
    ("last_number", "from 3 to 1,234.5 in all", "1,234.5"),
    ("last_number", "x2", None),
    ("last_number", "<think>3</think> none", None),
    ("lenient", r"the answer is $\frac{1}{2}$. Not 7", r"\frac{1}{2}"),
    ("lenient", "Final Answer: The largest $n$ is 34.", "34"),
    ("lenient", r"so $x=3$ and \(y=4\)", "y=4"),
    ("lenient", r"\boxed{5} or 6", "5"),
    ("lenient", "the answer is Evelyn.", "Evelyn"),
    ("lenient", "no", None),
]


@pytest.mark.parametrize(("mode", "text", "answer"), CASES)
def test_extraction(mode, text, answer):
    assert extract_answer(text, mode) == answer


def test_unknown_mode():
    with pytest.raises(ValueError, match="mode='last'"):
        extract_answer("5", "last")


HOSTILE = {
    "unclosed boxes": r"\boxed{" * 50_000,
    "braces": r"\boxed" + "{" * 500_000,
    "boxes": r"\boxed{1} " * 50_000,
    "unclosed after each": r"\boxed{1 \boxed{2} " * 50_000,
    "tags": "<answer>" * 100_000,
    "closings": "</think>" * 100_000,
    "hashes": "#" * 1_000_000,
    "delimiters": r"\( " * 300_000,
    "phrases": "the answer is " * 70_000,
    "spaces": r"\boxed" + " " * 1_000_000 + r"\boxed{1}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_megabyte_takes_linear_time(name):
    begin = time.process_time()
    for mode in MODES:
        extract_answer(HOSTILE[name], mode)
    assert time.process_time() - begin < 4
