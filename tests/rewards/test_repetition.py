import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import repetition_penalty_reward
from rewards.repetition import repeated_share


def test_over_token_ids():
    ids = [[1, 2, 3, 4], [5, 5, 5, 5, 5], [1, 2, 1, 2, 1]]
    assert repetition_penalty_reward(completions=[""] * 3, completion_ids=ids, ngram_size=2) == [0.0, -0.75, -0.5]
    assert repetition_penalty_reward(completion_ids=ids, ngram_size=2, completions=[""] * 3, max_penalty=0) == [0.0] * 3


def test_over_words_without_ids():
    texts = ["one two three four", "a b c A B C", "今天今天今天", ""]
    assert repetition_penalty_reward(completions=texts) == pytest.approx([0.0, -0.25, -0.5, 0.0])


def test_short_completions_are_not_penalised():
    assert repetition_penalty_reward(completions=["", "a", "a a"]) == [0.0] * 3
    assert repetition_penalty_reward(completions=[""] * 3, completion_ids=[[], [1], [1, 1]]) == [0.0] * 3


def test_a_loop_approaches_the_full_penalty():
    assert repetition_penalty_reward(completions=["again and " * 1000]) == pytest.approx([-1.0], abs=0.01)


@given(st.lists(st.integers(0, 3)), st.integers(1, 5))
def test_share_counts_what_occurred_before(tokens, size):
    seen, repeated = set(), 0
    ngrams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    for ngram in ngrams:
        repeated += ngram in seen
        seen.add(ngram)
    assert repeated_share(tokens, size) == pytest.approx(repeated / len(ngrams) if ngrams else 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_penalty": 0.5}, "max_penalty=0.5"), ({"ngram_size": 0}, "ngram_size=0")],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        repetition_penalty_reward(completions=["a"], **options)


def test_ids_of_another_length():
    with pytest.raises(ValueError, match="completion_ids"):
        repetition_penalty_reward(completions=["a"], completion_ids=[[1], [2]])
