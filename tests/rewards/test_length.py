import functools
import math

import pytest

from rewards import cosine_reward, countdown_reward, length_reward, soft_overlong_punishment

RIGHT, WRONG = r"\boxed{4}", r"\boxed{5}"


def cosine(text, length, gold="4", **options):
    (reward,) = cosine_reward(completions=[text], completion_ids=[[0] * length], solution=[gold], **options)
    return reward


def test_cosine_at_both_ends_and_in_the_middle():
    lengths = (0, 500, 1000)
    assert [cosine(RIGHT, length) for length in lengths] == pytest.approx([1.0, 0.75, 0.5])
    assert [cosine(WRONG, length) for length in lengths] == pytest.approx([-1.0, -0.75, -0.5])


def test_cosine_does_not_climb_past_max_len():
    assert [cosine(RIGHT, length) for length in (1001, 1500, 2000, 9999)] == [0.5] * 4
    assert [cosine(WRONG, length) for length in (1001, 1500, 2000, 9999)] == [-0.5] * 4


def test_cosine_falls_all_the_way_for_right_answers():
    rewards = [cosine(RIGHT, length, max_len=50) for length in range(80)]
    assert rewards == sorted(rewards, reverse=True)


def test_a_gold_without_answer_is_skipped_not_rewarded():
    assert cosine(RIGHT, 10, gold="") is None
    assert length_reward(completions=[RIGHT, RIGHT + "!"], solution=["", None]) == [None, None]


def test_gold_and_answer_keep_their_sides():
    # 50% is met by 50, but a gold of 50 is not met by 50%.
    assert cosine(r"\boxed{50}", 0, gold=r"50\%") == 1.0
    assert cosine(r"\boxed{50\%}", 0, gold="50") == -1.0


def test_cosine_counts_characters_without_ids():
    assert cosine_reward(completions=[RIGHT], solution=["4"], max_len=len(RIGHT)) == pytest.approx([0.5])


def test_cosine_for_another_notion_of_right():
    reward = functools.partial(cosine_reward, correct=countdown_reward, max_len=100)
    texts = ["<answer>3+4</answer>", "<answer>3*4</answer>"]
    ids = [[0] * 100] * 2
    columns = {"target": [7, 7], "numbers": [[3, 4]] * 2}
    assert reward(completions=texts, completion_ids=ids, **columns) == pytest.approx([0.5, -0.5])


def test_cosine_bad_max_len():
    with pytest.raises(ValueError, match="max_len=0"):
        cosine(RIGHT, 1, max_len=0)


def test_length_within_one_prompt():
    texts = [RIGHT, RIGHT, RIGHT, WRONG, WRONG]
    ids = [[0] * length for length in (10, 20, 30, 10, 30)]
    rewards = length_reward(prompts=["p"] * 5, completions=texts, completion_ids=ids, solution=["4"] * 5)
    assert rewards == [0.5, 0.0, -0.5, 0.0, -0.5]


def test_length_does_not_compare_different_prompts():
    chat = [{"role": "user", "content": "short question"}], [{"role": "user", "content": "long proof"}]
    for first, second in (("short question", "long proof"), chat):
        prompts = [first, second, first, second]
        ids = [[0] * length for length in (10, 1000, 20, 2000)]
        rewards = length_reward(prompts=prompts, completions=[RIGHT] * 4, completion_ids=ids, solution=["4"] * 4)
        assert rewards == [0.5, 0.5, -0.5, -0.5]


def test_length_of_equal_lengths_or_one_completion_is_zero():
    assert length_reward(completions=[RIGHT, WRONG], completion_ids=[[1], [1]], solution=["4", "4"]) == [0.0, 0.0]
    assert length_reward(completions=[RIGHT], solution=["4"]) == [0.0]


def test_skipped_rows_do_not_stretch_the_scale():
    ids = [[0] * 10, [0] * 20, [0] * 999]
    rewards = length_reward(completions=[RIGHT] * 3, completion_ids=ids, solution=["4", "4", None])
    assert rewards == [0.5, -0.5, None]


@pytest.mark.parametrize(
    ("length", "reward"), [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (100, -1.0), (101, -1.0), (5000, -1.0)]
)
def test_overlong(length, reward):
    rewards = soft_overlong_punishment(
        completions=[""], completion_ids=[[0] * length], max_completion_len=100, soft_punish_cache=20
    )
    assert rewards == pytest.approx([reward]) and not math.isnan(rewards[0])


def test_overlong_without_a_slope():
    options = {"max_completion_len": 100, "soft_punish_cache": 0}
    assert soft_overlong_punishment(completion_ids=[[0] * 100, [0] * 101], **options) == [0.0, -1.0]


def test_overlong_bad_input():
    with pytest.raises(TypeError, match="completion_ids"):
        soft_overlong_punishment(completions=["a"])
    with pytest.raises(ValueError, match="soft_punish_cache=200"):
        soft_overlong_punishment(completion_ids=[[1]], max_completion_len=100, soft_punish_cache=200)
