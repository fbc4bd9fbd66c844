"""Why a Countdown answer is right or wrong, through TRL's `log_extra`."""

from rewards import countdown_reward


def test_every_row_has_its_reason():
    answers = ["3 + 5", "3 + 4", "3 + 6", "3 +", None, "3 + 5"]
    completions = ["no answer" if one is None else f"<answer> {one} </answer>" for one in answers]
    logged = {}
    scores = countdown_reward(
        completions=completions,
        target=[8, 8, 8, 8, 8, None],
        numbers=[[3, 5], [3, 5], [3, 6], [3, 5], [3, 5], [3, 5]],
        log_extra=logged.__setitem__,
    )
    assert scores == [1.0, 0.0, 0.0, 0.0, 0.0, None]
    assert logged == {
        "countdown_reason": ["correct", "wrong_numbers", "wrong_value", "syntax", "no_answer", "no_problem"]
    }
