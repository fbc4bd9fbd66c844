import itertools
import math

import pytest

from r1lab.evaluate import (
    Judged,
    evaluate_split,
    find_answer,
    join_shares,
    judge_answer,
    judge_completions,
    judge_split,
    majority_is_correct,
    pass_at_k,
    reflection_token_ids,
    summarize,
)
from r1lab.tasks.tokenizer import build_tokenizer
from r1lab.types import Completion, Prompt
from rewards import code_reward


def _judged(
    answer="1", is_correct=False, is_blind=None, text="", num_tokens=4, is_truncated=False, is_well_formed=True
):
    is_blind = is_correct if is_blind is None else is_blind
    return Judged(text, is_correct, is_blind, is_well_formed, answer, num_tokens, is_truncated)


@pytest.mark.parametrize("num_samples", [1, 2, 5, 6])
def test_pass_at_k_equals_enumeration(num_samples):
    for num_correct in range(num_samples + 1):
        samples = [True] * num_correct + [False] * (num_samples - num_correct)
        for k in range(1, num_samples + 1):
            draws = list(itertools.combinations(samples, k))
            expected = sum(any(draw) for draw in draws) / len(draws)
            assert pass_at_k(num_samples, num_correct, k) == pytest.approx(expected)


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_refuses_a_k_it_cannot_estimate(k):
    with pytest.raises(ValueError, match=f"k={k} with 4 samples"):
        pass_at_k(4, 2, k)


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ("aab", 1.0),
        ("abb", 0.0),
        ("ab", 0.5),
        ("abc", 1 / 3),
        ("aabbc", 0.5),
        ("--a", 1.0),  # without an answer: no vote
        ("--b", 0.0),
        ("---", 0.0),
    ],
)
def test_majority_vote_where_a_is_right(votes, expected):
    group = [_judged(None if vote == "-" else vote, is_correct=vote == "a") for vote in votes]
    assert majority_is_correct(group) == pytest.approx(expected)


def test_majority_by_another_judgement():
    group = [_judged("a", is_correct=False, is_blind=True)] * 2 + [_judged("b")]
    assert majority_is_correct(group) == 0.0
    assert majority_is_correct(group, "is_correct_blind") == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think> 3 + 5 </think> <answer> 3 + 5 </answer>", "3 + 5"),
        ("<answer>42</answer> and so on", "42"),
        ("<answer> 3 + 5", "3 + 5"),
        ("<answer> 3 + 5 <think>", "3 + 5"),
        ("<answer> 3 + 5\nUser: next", "3 + 5"),
        ("so the answer is 3 + 5", "3 + 5"),
        ("so the answer is 3 + 5 .", "3 + 5"),
        ("the answer is: 7", "7"),
        ("the answer is .5.", ".5"),
        ("so the answer is 3 + 5 </think> done", "3 + 5"),
        ("<answer> 1 </answer> no wait <answer> 2 </answer>", "2"),
        ("the answer is 1 no the answer is 2", "2"),
        ("the answer is 1 <answer> 2 </answer>", "2"),
        ("<answer></answer>", None),
        ("<answer>", None),
        ("3 + 5 = 8 off 0", None),
        ("", None),
    ],
)
def test_find_answer(text, expected):
    assert find_answer(text) == expected


@pytest.mark.parametrize(
    ("answer", "columns", "expected"),
    [
        ("3 + 5", {"numbers": [3, 5, 9], "target": 8, "num_used": 2}, True),
        ("3 + 5", {"numbers": [3, 5], "target": 8}, True),
        ("5 + 3", {"numbers": [3, 5], "target": 8}, True),
        ("8", {"numbers": [3, 5], "target": 8}, False),
        ("3 + 5", {"numbers": [3, 5], "target": 9}, False),
        ("4 + 4", {"numbers": [3, 5], "target": 8}, False),
        ("3 +", {"numbers": [3, 5], "target": 8}, False),
        (None, {"numbers": [3, 5], "target": 8}, False),
        ("1/2", {"solution": "0.5"}, True),
        ("2", {"solution": "3"}, False),
        (None, {"solution": "3"}, False),
    ],
)
def test_judge_answer(answer, columns, expected):
    assert judge_answer(answer, columns) is expected


def test_summary_of_hand_made_results():
    judged = [
        [_judged("a", True, num_tokens=2), _judged("a", True), _judged("b"), _judged("c", is_truncated=True)],
        [_judged("a", is_blind=True, text="wait"), _judged("b"), _judged("b"), _judged(None, is_well_formed=False)],
        [_judged("a", True)] * 4,
    ]
    summary = summarize(judged)
    assert summary["accuracy"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert summary["accuracy_se"] == pytest.approx(0.5 / math.sqrt(3))  # deviation of 0.5, 0, 1 is 0.5
    assert summary["accuracy_blind"] == pytest.approx((0.5 + 0.25 + 1) / 3)
    mean = 1.75 / 3
    variance = ((0.5 - mean) ** 2 + (0.25 - mean) ** 2 + (1 - mean) ** 2) / 2
    assert summary["accuracy_blind_se"] == pytest.approx(math.sqrt(variance / 3))
    assert summary["format"] == pytest.approx(11 / 12)
    assert summary["mean_length"] == pytest.approx(46 / 12)
    assert summary["clipped_ratio"] == pytest.approx(1 / 12)
    assert summary["maj@4"] == pytest.approx(2 / 3)
    assert summary["pass@1"] == pytest.approx(summary["accuracy"])
    assert summary["pass@2"] == pytest.approx(((1 - 1 / 6) + 0 + 1) / 3)
    assert summary["pass@4"] == pytest.approx(2 / 3)
    assert summary["pass_blind@4"] == 1.0
    assert summary["reflection/rate"] == pytest.approx(1 / 12)
    assert summary["num_problems"] == 3
    assert "pass@3" not in summary and "pass@8" not in summary


def test_one_problem_has_no_standard_error():
    assert math.isnan(summarize([[_judged(is_correct=True)]])["accuracy_se"])


TEXTS = {1: "<think> x </think> <answer> 3 + 5 </answer>", 2: "so the answer is 3 + 5", 3: "no"}
PROMPT = Prompt("pick two", [9], {"numbers": [3, 5], "target": 8})


def _strict_reward(completions, target, **columns):
    assert target == [8] * len(completions)
    return [1.0 if "<answer> 3 + 5 </answer>" in text else 0.1 for text in completions]


def _complete(ids):
    return Completion([ids], [-1.0], "length" if ids == 3 else "stop")


def test_judging_tells_strict_from_format_blind():
    completions = [[_complete(i) for i in TEXTS]]
    (judged,) = judge_completions([PROMPT], completions, lambda ids: TEXTS[ids[0]], _strict_reward)
    assert [one.is_correct for one in judged] == [True, False, False]
    assert [one.is_correct_blind for one in judged] == [True, True, False]
    assert [one.is_well_formed for one in judged] == [True, False, False]
    assert [one.is_truncated for one in judged] == [False, False, True]


def test_a_split_is_sampled_and_decoded_greedily():
    calls = []

    def generate(prompt_ids, n, temperature):
        calls.append((n, temperature))
        return [[_complete(2 if temperature == 0 else 1 + i % 3) for i in range(n)] for _ in prompt_ids]

    results = evaluate_split([PROMPT] * 2, generate, lambda ids: TEXTS[ids[0]], _strict_reward, num_samples=3)
    assert calls == [(3, 1.0), (1, 0.0)]
    assert results["accuracy"] == pytest.approx(1 / 3) and results["accuracy_blind"] == pytest.approx(2 / 3)
    assert results["greedy_accuracy"] == 0.0 and results["greedy_accuracy_blind"] == 1.0
    assert results["accuracy_se"] == 0.0


@pytest.mark.parametrize("num_problems", [0, 1, 2, 7])
def test_shares_of_processes_join_to_what_one_process_finds(num_problems):
    prompts = [Prompt(f"problem {i}", [1 + i % 3], {"target": 8}) for i in range(num_problems)]

    def generate(prompt_ids, n, temperature):
        return [[_complete(ids[0])] * n for ids in prompt_ids]

    how = {"decode": lambda ids: TEXTS[ids[0]], "reward": _strict_reward, "num_samples": 2}
    shares = [judge_split(prompts[rank::3], generate, **how) for rank in range(3)]
    whole = judge_split(prompts, generate, **how)
    assert join_shares(shares) == whole
    if num_problems:
        for rank in range(3):

            def gather(own, rank=rank):
                assert own == [shares[rank]]
                return shares

            assert evaluate_split(prompts, generate, **how, rank=rank, world_size=3, gather=gather) == whole.summary()


def test_the_ablation_bans_exactly_the_reflective_words_of_the_vocabulary():
    tokenizer = build_tokenizer()
    assert tokenizer.convert_ids_to_tokens(list(reflection_token_ids(tokenizer))) == ["wait"]


def test_programs_are_judged_in_any_form():
    texts = {
        1: "<think> x </think> <answer> def f ( x ) : return x + 1 </answer>",
        2: "so the answer is def f ( x ) : return x + 1",
        3: "def f ( x ) : return x + 1",
        4: "<think> x </think> <answer> def f ( x ) : return x + 2 </answer>",
        5: "so the answer is 5",
    }
    tests = [{"type": "call", "entry_point": "f", "args": [1], "expected": 2}]
    prompt = Prompt("write f ( 1 ) = 2", [9], {"tests": tests})
    (judged,) = judge_completions([prompt], [[_complete(i) for i in texts]], lambda ids: texts[ids[0]], code_reward)
    assert [one.is_correct for one in judged] == [True, False, True, False, False]
    assert [one.is_correct_blind for one in judged] == [True, True, True, False, False]
    assert [one.is_well_formed for one in judged] == [True, False, True, True, False]
