import pytest

from rewards import reasoning_steps_reward
from rewards.reasoning import reasoning_steps

THREE = [
    "Step 1: add the two numbers.\nStep 2: multiply the result.\nStep 3: compare with the target.",
    "1. add the two numbers\n2. multiply the result\n3) compare with the target",
    "- add the two numbers\n* multiply the result\n- compare with the target",
    "First, add the two numbers. Next, multiply the result. Finally, compare with the target.",
    "### Step 1: add the two numbers\n**Step 2:** multiply the result\nThen, compare with the target",
    "首先，我们把这两个数字加在一起\n然后，把结果乘以三得到九\n最后，我们与目标值进行比较",
]


@pytest.mark.parametrize("text", THREE)
def test_three_steps(text):
    assert len(reasoning_steps(text)) == 3
    assert reasoning_steps_reward(completions=[text, f"<think>{text}</think> <answer>4</answer>"]) == [1.0, 1.0]


def test_fewer_steps_pay_a_share_and_more_pay_no_more():
    lines = ["Step 1: add the two numbers.", "Step 2: multiply the result."]
    assert reasoning_steps_reward(completions=["", lines[0], "\n".join(lines)]) == pytest.approx([0, 1 / 3, 2 / 3])
    many = "\n".join(f"{n}. look at candidate number {n}" for n in range(20))
    assert reasoning_steps_reward(completions=[many]) == [1.0]


@pytest.mark.parametrize(
    "text",
    [
        "First,First,First,",
        "First, Second, Third, Finally,",
        "Step 1: Step 2: Step 3:",
        "1.\n2.\n3.\n",
        "- \n- \n- \n- \n",
        "1. ok\n2. ok\n3. ok",
        "3.14 is near pi and\n2.718 is near e and\n1.414 is near a root",
        "-3 is negative here\n-4 is negative here\n-5 is negative here",
    ],
)
def test_bare_markers_are_no_steps(text):
    assert reasoning_steps_reward(completions=[text]) == [0.0]


def test_the_same_step_counts_once():
    assert reasoning_steps("1. add the two numbers\n2. add  the two numbers\n3. add the two numbers") == [
        "add the two numbers"
    ]


def test_steps_in_the_answer_do_not_count():
    assert reasoning_steps_reward(completions=[f"<think>easy</think> <answer>{THREE[0]}</answer>"]) == [0.0]
