import inspect
import pickle
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from rewards.adapters import ReasoningGymTask, reasoning_gym

pytestmark = pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed")

RUNS_TEXT = re.compile(r"(?<![\w.])(?:eval|exec)\(|parse_expr\(|sympify\(")


def score(task, answer, index=0):
    text = f"<think>a</think> <answer>{answer}</answer>"
    return task(completions=[text], source_dataset=[task.name], source_index=[index])[0]


def test_rows_are_tasks_and_the_task_scores_them():
    task = ReasoningGymTask("leg_counting", size=4, seed=7)
    rows = task.rows(instruction="Answer in <answer> tags.")
    assert len(rows) == 4 and rows == ReasoningGymTask("leg_counting", size=4, seed=7).rows("Answer in <answer> tags.")
    assert rows[0]["prompt"].endswith("\nAnswer in <answer> tags.")
    assert [score(task, row["answer"], row["source_index"]) for row in rows] == [1.0] * 4
    assert score(task, int(rows[0]["answer"]) + 1) == 0.0
    assert task(completions=[rows[0]["answer"]], source_dataset=["leg_counting"], source_index=[0]) == [0.0]


def test_rows_of_other_datasets_are_skipped():
    task = ReasoningGymTask("leg_counting", size=2)
    assert task(completions=["a", "b"], source_dataset=["countdown", None], source_index=[9, None]) == [None, None]
    with pytest.raises(TypeError, match="source_dataset; got answer"):
        task(completions=["a"], answer=["4"])


def test_name_pickle_and_mistakes():
    task = pickle.loads(pickle.dumps(ReasoningGymTask("leg_counting", size=2, seed=5)))
    assert task.__name__ == "leg_counting_reward" and score(task, task.rows()[0]["answer"]) == 1.0
    with pytest.raises(ValueError, match="not registered"):
        ReasoningGymTask("leg_cuonting")


def test_listing_answers_earns_nothing():
    strict, partial = (ReasoningGymTask("leg_counting", size=1, strict=strict) for strict in (True, False))
    gold = strict.rows()[0]["answer"]
    listing = f"{gold} or {int(gold) + 1} or {int(gold) + 2}"
    assert score(strict, listing) == 0.0 < score(partial, listing)
    assert score(strict, gold) == score(partial, gold) == 1.0


@pytest.mark.parametrize("name", reasoning_gym._OWN_SCORERS)
def test_own_scorers_accept_the_golds_and_refuse_others(name):
    task = ReasoningGymTask(name, size=3, seed=3)
    for index, row in enumerate(task.rows()):
        assert score(task, row["answer"], index) == 1.0
        assert [score(task, wrong, index) for wrong in ("", "0", "qqq", f"{row['answer']} + 1")] == [0.0] * 4


def test_signs_in_expressions():
    entry = {"answer": "", "metadata": {"numbers": [2, 5], "target": 3}}
    for answer, right in [("-2 + 5", True), ("5 + (-2)", True), ("0 - 2 + 5", False), ("-0 + 5 - 2", False)]:
        assert reasoning_gym._reaches_target(answer, entry) is right


@pytest.mark.parametrize("name", reasoning_gym._OWN_SCORERS)
def test_no_answer_is_run(name, tmp_path):
    marker = tmp_path / "ran"
    answer = f"__import__('pathlib').Path({str(marker)!r}).write_text('x')"
    assert score(ReasoningGymTask(name, size=1), answer) == 0.0
    assert not marker.exists()


def test_every_scorer_that_runs_answers_is_replaced():
    """A version of reasoning-gym with a further one fails here, and needs an entry in `_OWN_SCORERS`."""
    from reasoning_gym.factory import DATASETS

    running = set()
    for name, (dataset_class, _) in DATASETS.items():
        source = Path(inspect.getsourcefile(dataset_class)).read_text()
        scorer = source.partition("def score_answer(")[2].partition("\n    def ")[0].partition("\nclass ")[0]
        if RUNS_TEXT.search(scorer.replace('eval(entry["answer"])', "")):  # The gold is the dataset's own.
            running.add(name)
    assert running == set(reasoning_gym._OWN_SCORERS)


@pytest.mark.parametrize(
    "answer", ["", " ", "9" * 100_000, "\x00", "((((", "[[[]]]", "None", "1e999", "nan", "nan+nanj", "inf", "\ud800"]
)
def test_hostile_answers_are_data(answer):
    for name in ("number_sorting", "sudoku", "complex_arithmetic", "polynomial_equations", "time_intervals"):
        assert score(ReasoningGymTask(name, size=1), answer) == 0.0
