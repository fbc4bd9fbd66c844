"""Reflective words, attempts of search traces, and the conditional numbers over them."""

import math
import time

import pytest

from r1lab.trace import aha_events, find_behaviours, find_reflections, parse_attempts, reflection_metrics


@pytest.mark.parametrize(
    "text, keywords",
    [
        ("wait", ["wait"]),
        ("WAIT, wait. Wait!", ["wait", "wait", "wait"]),
        ("the waiter waits, awaiting", []),
        ("I re-check and recheck and Re-Checked", ["recheck", "recheck", "recheck"]),
        ("double-check, double check, double\ncheck", ["double-check"] * 3),
        ("let me check again", ["let me check"]),
        ("Let me  verify that. Let's verify again.", ["let me verify", "verify again"]),
        ("a mistake, two mistakes, mistakenly", ["mistake", "mistake"]),
        ("However, alternatively, rethink; retry or try again: aha!", ["however", "alternatively", "rethink", "retry",
                                                                       "try again", "aha"]),
        ("hm hmm hmmmm ham hmmX", ["hmm", "hmm", "hmm"]),
        ("check 5 , error , wrong , but verify", []),
        ("Ahab's entry, retrying", ["retry"]),
        ("naïve—wait—déjà", ["wait"]),
        ("", []),
    ],
)  # fmt: skip
def test_find_reflections(text, keywords):
    found = find_reflections(text)
    assert [reflection.keyword for reflection in found] == keywords
    ends = [0]
    for _, start, end in found:
        assert ends[-1] <= start < end
        ends.append(end)


def test_spans_point_at_the_words():
    text = "ok. Wait, let me check"
    assert [text[start:end] for _, start, end in find_reflections(text)] == ["Wait", "let me check"]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("3 + 5 = 8 off 2", [("3 + 5", 8, 2, False)]),
        ("( 3 + 5 ) * 7 = 8 * 7 = 56 off 32", [("( 3 + 5 ) * 7", 56, 32, False)]),
        ("3+5=8 off 2 wait 3*5=15 off 0", [("3+5", 8, 2, True), ("3*5", 15, 0, False)]),
        ("3 + 5 = 8 off 2 . 3 * 5 = 15 off 0 . wait", [("3 + 5", 8, 2, False), ("3 * 5", 15, 0, True)]),
        ("3 - 5 = -2 off 10", [("3 - 5", -2, 10, False)]),
        ("7 / 2 = 3.5 off 0.5", [("7 / 2", 3.5, 0.5, False)]),
        ("7 × 2 − 1 = 13: off: 1", [("7 × 2 − 1", 13, 1, False)]),
        ("3 5 7 3 + 5 = 8 off 2", [("3 + 5", 8, 2, False)]),
        ("numbers 3 5\n3 + 5 = 8\noff 2\n5 - 3 = 2 Off 8", [("3 + 5", 8, 2, False), ("5 - 3", 2, 8, False)]),
        ("3 + 5 = 8 , 8 * 7 = 56 off 2", [("( 3 + 5 ) * 7", 56, 2, False)]),
        ("3+5=8, 8*7=56 off 2", [("( 3+5 )*7", 56, 2, False)]),
        ("3 + 5 = 8 , 9 - 2 = 7 , 8 * 7 = 56 off 2", [("( 3 + 5 ) * ( 9 - 2 )", 56, 2, False)]),
        ("3 + 5 = 8 , 8 * 8 = 64 off 2", [("( 3 + 5 ) * 8", 64, 2, False)]),  # one result stands for one operand
        ("4 + 4 = 8 , 3 + 5 = 8 , 8 - 8 = 0 off 2", [("( 3 + 5 ) - ( 4 + 4 )", 0, 2, False)]),
        ("3 + 5 = 8 , 8 - 1 = 7 , 7 * 2 = 14 off 2", [("( ( 3 + 5 ) - 1 ) * 2", 14, 2, False)]),
        ("3 + 5 = 8 , 9 * 7 = 63 off 2", [("9 * 7", 63, 2, False)]),  # the first step is not used
        ("3 + 5 = 8 off 2 , 8 * 7 = 56 off 0", [("3 + 5", 8, 2, False), ("8 * 7", 56, 0, False)]),  # two tries
        ("1 + 1 = 2 , " * 20 + "2 + 1 = 3 off 0", [("( 1 + 1 ) + 1", 3, 0, False)]),
        ("3 + 5 = 8 8 * 7 = 56 off 2", [("8 * 7", 56, 2, False)]),
        ("3 + 5 = 8 = 8 off 2", [("3 + 5", 8, 2, False)]),
        ("wait 3 + 5 = 8 off 2", [("3 + 5", 8, 2, False)]),  # before the attempt: not about it
        ("3 + 5 = 8", []),  # no check
        ("off 0 off 3", []),  # no chain
        ("3 + 5 = off 2", []),  # no value
        ("3 + 5 = 8 * 7 off 2", []),  # the value is not worked out
        ("x = 8 off 2 , 8 = 8 off 0", []),  # nothing computed
        ("3 + 5 = 8 off 2 off 0", [("3 + 5", 8, 2, False)]),  # one check an attempt
        ("3 + 5 = 8 offline 2", []),
        ("3 + 5 = 8 . 8 * 7 = 56 off 2", [("8 * 7", 56, 2, False)]),  # two sentences
        ("3 + 5 = 8 off 12345678901234567890", []),  # no distance of this size exists
    ],
)
def test_parse_attempts(text, expected):
    attempts = parse_attempts(text)
    assert [(a.expression, a.value, a.off, a.reconsidered) for a in attempts] == expected
    for attempt in attempts:
        first = attempt.expression.lstrip("( ").partition(" ")[0]
        assert first in text[attempt.start : attempt.end] and attempt.start < attempt.end <= len(text)


MISS_WAIT_HIT = "1 + 2 = 3 off 4 wait 3 + 4 = 7 off 0"
MISS_HIT = "1 + 2 = 3 off 4 . 3 + 4 = 7 off 0"
HIT_WAIT_MISS = "3 + 4 = 7 off 0 hmm 1 + 2 = 3 off 4"


def test_aha_events():
    (event,) = aha_events(MISS_WAIT_HIT, is_correct=True)
    assert event.kind == "aha" and event.attempt.expression == "1 + 2" and event.reflection.keyword == "wait"
    (event,) = aha_events(HIT_WAIT_MISS, is_correct=False)
    assert event.kind == "inverse" and event.attempt.off == 0 and event.reflection.keyword == "hmm"
    assert aha_events(MISS_WAIT_HIT, is_correct=False) == []
    assert aha_events(MISS_HIT, is_correct=True) == []
    assert aha_events(HIT_WAIT_MISS, is_correct=True) == []
    assert aha_events("wait, no attempts here", is_correct=True) == []
    # Only the first attempt decides an aha: here it hit.
    assert aha_events("3 + 4 = 7 off 0 . 1 + 2 = 3 off 4 wait 3 + 4 = 7 off 0", is_correct=True) == []


TEXTS = [MISS_WAIT_HIT, MISS_WAIT_HIT, MISS_WAIT_HIT, MISS_HIT, HIT_WAIT_MISS, "1 + 2 = 3 off 4", "", "wait wait"]
RIGHT = [True, True, False, True, False, False, True, False]


def test_reflection_metrics():
    metrics = reflection_metrics(TEXTS, RIGHT)
    unconditional = {name: value for name, value in metrics.items() if name.count("/") == 1 or "keyword" in name}
    assert unconditional == {
        "reflection/rate": 5 / 8,
        "reflection/aha_rate": 2 / 8,
        "reflection/inverse_rate": 1 / 8,
        "reflection/mean_attempts": 11 / 8,
        "reflection/p_correct_wrong_first_reconsidered": 2 / 3,
        "reflection/num_wrong_first_reconsidered": 3.0,
        "reflection/p_correct_wrong_first_not_reconsidered": 1 / 2,
        "reflection/num_wrong_first_not_reconsidered": 2.0,
        "reflection/keyword/hmm": 1 / 8,
        "reflection/keyword/wait": 4 / 8,
    }
    behaviours = {name.rpartition("/")[2]: value for name, value in metrics.items() if "behaviour" in name}
    assert behaviours == {"verification": 6 / 8, "backtracking": 4 / 8, "enumeration": 0.0, "subgoals": 0.0}
    assert all(type(value) is float for value in metrics.values())
    events = [event.kind for text, is_right in zip(TEXTS, RIGHT, strict=True) for event in aha_events(text, is_right)]
    assert events.count("aha") == 2 and events.count("inverse") == 1


def test_a_try_of_two_steps_is_one_try():
    text = "9 / 3 = 3 , 3 + 2 = 5 off 2 . wait 9 - 2 = 7 off 0"
    metrics = reflection_metrics([text], [True])
    assert metrics["reflection/aha_rate"] == 1.0 and metrics["reflection/mean_attempts"] == 2.0
    (event,) = aha_events(text, is_correct=True)
    assert event.attempt.expression == "( 9 / 3 ) + 2" and text[event.attempt.start :].startswith("9 / 3")


def test_a_hard_prompt_cannot_make_reflection_look_bad():
    """Simpson's paradox: reconsidering pays on every prompt, yet happens on the hard one."""
    miss_wait, miss_stop = MISS_WAIT_HIT, "1 + 2 = 3 off 4 . no"
    rows = [("easy", miss_wait, 1, 1), ("easy", miss_stop, 8, 7), ("hard", miss_wait, 8, 2), ("hard", miss_stop, 1, 0)]
    flat = [(prompt, text, i < right) for prompt, text, count, right in rows for i in range(count)]
    prompts, texts, rights = zip(*flat, strict=True)
    metrics = reflection_metrics(texts, rights, prompts)
    plain = [metrics[f"reflection/p_correct_wrong_first_{kind}"] for kind in ("reconsidered", "not_reconsidered")]
    assert plain == [3 / 9, 7 / 9]
    prefix = "reflection/within_prompt"
    assert metrics[f"{prefix}/num_strata"] == 2.0
    # The two prompts weigh 8/9 each: (1 + 2/8) / 2 against (7/8 + 0) / 2.
    assert metrics[f"{prefix}/p_correct_wrong_first_reconsidered"] == pytest.approx((1 + 2 / 8) / 2)
    assert metrics[f"{prefix}/p_correct_wrong_first_not_reconsidered"] == pytest.approx((7 / 8 + 0) / 2)


def test_completions_are_compared_at_one_length():
    long = [MISS_WAIT_HIT + " so" * 40, MISS_HIT + " so" * 40]
    metrics = reflection_metrics([MISS_WAIT_HIT, MISS_HIT, *long], [True, False, True, True])
    assert metrics["reflection/same_length/num_strata"] == 2.0
    assert metrics["reflection/same_length/p_correct_wrong_first_reconsidered"] == 1.0
    assert metrics["reflection/same_length/p_correct_wrong_first_not_reconsidered"] == 0.5
    apart = reflection_metrics([MISS_WAIT_HIT, long[1]], [True, False])
    assert apart["reflection/same_length/num_strata"] == 0.0
    assert math.isnan(apart["reflection/same_length/p_correct_wrong_first_reconsidered"])


def test_unknown_prompts_are_never_the_same():
    metrics = reflection_metrics([MISS_WAIT_HIT, MISS_HIT], [True, False])
    assert metrics["reflection/within_prompt/num_strata"] == 0.0


def test_reflection_metrics_of_nothing_and_of_other_text():
    assert reflection_metrics([], []) == {}
    metrics = reflection_metrics(["Let me verify: the integral is 2."], [True])
    assert metrics["reflection/rate"] == 1.0 and metrics["reflection/mean_attempts"] == 0.0
    assert math.isnan(metrics["reflection/p_correct_wrong_first_reconsidered"])
    with pytest.raises(ValueError, match="2 texts but 1"):
        reflection_metrics(["a", "b"], [True])
    with pytest.raises(ValueError, match="2 texts but 1 prompts"):
        reflection_metrics(["a", "b"], [True, False], ["p"])


MILLION = 1_000_000


@pytest.mark.parametrize(
    "text",
    [
        "1" * MILLION,
        "(" * MILLION,
        "1 + " * (MILLION // 4),
        "1 = " * (MILLION // 4),
        "1+1=2 " * (MILLION // 6),
        "1 1 " * (MILLION // 4),
        "1 + 1 = 2 off 1 wait " * (MILLION // 21),
        "off " * (MILLION // 4) + "1",
        "3 + 5 = 8 off " + "9" * MILLION,
        "1 + 1 = 2 , " * (MILLION // 12) + "off 1",
        "1 + 1 = 2 , 2 + 2 = 4 off 1 , " * (MILLION // 30),
        " , ".join(f"{i} + 1 = {i + 1}" for i in range(MILLION // 20)) + " off 1",
        "1 + 1 = 2 " + "," * MILLION + " 2 + 2 = 4 off 1",
        "(" + "1" * MILLION + ") + 1 = 2 off 1",
        "( 1" + " " * MILLION + ") + 1 = 2 off 1",
        " ".join(f"{i} + {i + 1} = {i} off 1 ." for i in range(MILLION // 30)),
        "3 + 5 = " + "9" * MILLION + " off 0",
        "let me " * (MILLION // 7),
        "let" + " " * MILLION + "me check",
        "h" + "m" * MILLION,
        "double-" * (MILLION // 7),
        " " * MILLION,
        "٣ + ٥ = ٨ off ٠ " * (MILLION // 16),
        "🤔 wait… \x00\ud800" * (MILLION // 10),
    ],
    ids=lambda text: repr(text[:16]),
)
def test_hostile_text_takes_linear_time(text):
    started = time.process_time()
    assert len(find_reflections(text)) < len(text)
    assert len(parse_attempts(text)) < len(text)
    find_behaviours(text)
    find_behaviours(text, [str(i) for i in range(MILLION // 30)])
    # Linear work takes a second on a loaded machine; quadratic work on a million characters takes hours.
    assert time.process_time() - started < 10
