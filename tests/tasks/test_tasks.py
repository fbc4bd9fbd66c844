import random
import re
from collections import Counter

import pytest

from r1lab.tasks import TASKS, corpus, encode_prompts, load_task
from r1lab.tasks.arithmetic import draw_question
from r1lab.tasks.corpus import stream_documents, write_document
from r1lab.tasks.countdown import draw_problem, scan_pairs
from r1lab.tasks.expressions import distance, evaluate, render
from r1lab.tasks.tokenizer import LARGEST_NUMBER, build_tokenizer
from r1lab.trace.reflection import parse_attempts
from rewards import accuracy_reward, countdown_reward


@pytest.mark.parametrize("task", ["pick_two", "countdown"])
def test_every_given_solution_is_right(task):
    rows = load_task(task, "train", 300, seed=0)
    completions = [f"<think> x </think> <answer> {solution} </answer>" for solution in rows["solution"]]
    columns = {name: rows[name] for name in ("target", "numbers", "num_used")}
    assert countdown_reward(completions=completions, **columns) == [1.0] * 300


def test_arithmetic_answers_are_right():
    rows = load_task("arithmetic", "test", 200, seed=0)
    completions = [f"<think> x </think> <answer> {solution} </answer>" for solution in rows["solution"]]
    assert accuracy_reward(completions=completions, solution=rows["solution"]) == [1.0] * 200
    for prompt, solution in zip(rows["prompt"], rows["solution"], strict=True):
        assert eval(prompt.removeprefix("User : what is ").removesuffix(" ? Assistant :")) == int(solution)


def _key(row):
    return (tuple(sorted(row["numbers"])), row["target"]) if "numbers" in row else row["prompt"]


@pytest.mark.parametrize("task", TASKS)
def test_train_and_test_share_no_problem(task):
    train = {_key(row) for row in load_task(task, "train", 3000, seed=0)}
    test = {_key(row) for row in load_task(task, "test", 300, seed=0)}
    assert len(train) == 3000 and len(test) == 300
    assert not train & test


@pytest.mark.parametrize("family", ["pick_two", "countdown"])
def test_the_split_does_not_depend_on_the_order_of_the_numbers(family):
    rng = random.Random(1)
    for _ in range(100):
        problem = draw_problem(rng, family, 4, "test")
        shuffled = tuple(rng.sample(problem.numbers, 4))
        assert type(problem)(family, shuffled, problem.target, problem.solution).split == "test"


def test_the_same_seed_draws_the_same_rows():
    assert load_task("pick_two", "train", 50, seed=3)["prompt"] == load_task("pick_two", "train", 50, seed=3)["prompt"]
    assert load_task("pick_two", "train", 50, seed=3)["prompt"] != load_task("pick_two", "train", 50, seed=4)["prompt"]


def test_difficulty_is_the_number_of_numbers():
    assert {len(numbers) for numbers in load_task("countdown", "test", 50, 0, difficulty=4)["numbers"]} == {4}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_task("sudoku", "train", 1, 0), "unknown task 'sudoku'"),
        (lambda: load_task("pick_two", "dev", 1, 0), "unknown split 'dev'"),
        (lambda: load_task("pick_two", "test", 1, 0, difficulty=9), "n=9"),
        (lambda: load_task("countdown", "test", 3000, 0, difficulty=2), "distinct test problems"),
        (lambda: draw_question(random.Random(0), 2, "test"), "n=2"),
        (lambda: draw_problem(random.Random(0), "chess", 3, "test"), "unknown family 'chess'"),
    ],
)
def test_bad_requests_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_scan_pairs_goes_through_the_pairs_in_reading_order():
    assert [render(candidate) for candidate in scan_pairs((3, 5, 9))] == [
        "3 + 5", "5 - 3", "3 + 9", "9 - 3", "5 + 9", "9 - 5",
    ]  # fmt: skip
    assert [render(candidate) for candidate in scan_pairs((3, 5, 3))] == ["3 + 5", "5 - 3", "3 + 3", "5 + 3", "5 - 3"]


RIDDLE = r"f \( (\d+) \) = (\d+)"


def test_documents_hold_no_held_out_problem_and_no_unknown_token():
    tokenizer = build_tokenizer()
    held_out = {
        (amount, _key(row))
        for amount, task in (("two", "pick_two"), ("all", "countdown"))
        for row in load_task(task, "test", 500, 1)
    }
    riddles = {tuple(sorted(re.findall(RIDDLE, row["prompt"]))) for row in load_task("program", "test", 500, 1)}
    documents = stream_documents(0, drill=0.3)
    num_problems = num_riddles = 0
    for _ in range(3000):
        document = next(documents)
        assert tokenizer.unk_token_id not in tokenizer(document).input_ids
        question = re.match(r"User : (?:pick|use|try) (two|all) of ([\d ]+) to make (\d+) \.", document)
        if question:
            num_problems += 1
            problem = (tuple(sorted(map(int, question[2].split()))), int(question[3]))
            assert (question[1], problem) not in held_out
        elif shown := tuple(sorted(re.findall(RIDDLE, document.partition("Assistant")[0]))):
            num_riddles += 1
            assert shown not in riddles
    assert num_problems > 2000 and num_riddles > 150


def test_tokenizer_splits_as_the_corpus_is_spaced():
    tokenizer = build_tokenizer()
    vocabulary = tokenizer.get_vocab()
    rng = random.Random(0)
    for _ in range(300):
        document = write_document(rng, drill=0.3)
        ids = tokenizer(document, add_special_tokens=False).input_ids
        assert ids == [vocabulary[word] for word in document.split()]
        assert tokenizer.decode(ids) == document


def test_whole_numbers_are_single_tokens():
    tokenizer = build_tokenizer()
    assert len(tokenizer(f"{LARGEST_NUMBER}+12", add_special_tokens=False).input_ids) == 3


def test_the_corpus_is_mixed_as_its_card_says():
    documents = stream_documents(0, drill=0.0)
    sample = [next(documents) for _ in range(4000)]
    tagged = sum("</think> <answer>" in document for document in sample) / len(sample)
    waits = sum(" wait " in document for document in sample) / len(sample)
    assert 0.33 < tagged < 0.39
    assert 0.05 < waits < 0.12


def test_every_attempt_in_the_corpus_is_worked_out_and_checked_correctly():
    rng = random.Random(5)
    num_attempts = 0
    for _ in range(1500):
        document = write_document(rng, drill=0.3)
        question = re.match(r"User : (pick|use|try) (?:two |all )?(?:of )?([\d ]+) to make (\d+) \.", document)
        if question is None:  # a program, or an exercise without a target
            continue
        target, given = int(question[3]), Counter(question[2].split())
        for attempt in parse_attempts(document[question.end() :]):
            num_attempts += 1
            written = attempt.expression
            assert eval(written) == attempt.value and attempt.off == abs(attempt.value - target)
            used = Counter(re.findall(r"\d+", written))
            assert used <= given and (used == given or document.startswith(("User : pick", "User : try two")))
    assert num_attempts > 2000


@pytest.mark.parametrize("family", ["pick_two", "countdown"])
def test_the_reading_order_misses_no_solution(family):
    """A search in reading order always ends in a hit, so that giving up is the only way to fail."""
    rng = random.Random(6)
    for _ in range(300):
        problem = draw_problem(rng, family, 3, "train")
        assert problem.target in map(evaluate, problem.candidates())


@pytest.mark.parametrize("family", ["pick_two", "countdown"])
def test_a_search_stops_at_its_first_hit_and_always_reaches_one(family):
    rng = random.Random(7)
    for _ in range(1000):
        problem = draw_problem(rng, family, rng.choice((3, 4)), "train")
        tries = [distance(attempt, problem.target) for attempt in corpus.search(rng, problem)]
        assert tries.index(0) == len(tries) - 1


def test_an_answer_in_the_corpus_is_the_last_attempt():
    rng = random.Random(8)
    num_answers = 0
    for _ in range(2000):
        document = write_document(rng, drill=0.0)
        attempts = parse_attempts(document)
        if not attempts or " write f " in document:
            continue
        num_answers += 1
        answer = re.search(r"(?:<answer>|answer is) ([^<]*)", document)[1]
        assert eval(answer) == attempts[-1].value
        assert sorted(re.findall(r"\d+", answer)) == sorted(re.findall(r"\d+", attempts[-1].expression))
    assert num_answers > 500


def test_prompts_are_encoded_after_the_bos_token():
    tokenizer = build_tokenizer()
    prompts = encode_prompts(load_task("pick_two", "test", 3, 0), tokenizer, max_length=64)
    assert prompts[0].token_ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(prompts[0].token_ids[1:]) == prompts[0].text
    assert set(prompts[0].columns) == {"solution", "numbers", "target", "num_used", "difficulty"}


def test_prompt_problems_are_named():
    tokenizer = build_tokenizer()
    rows = load_task("pick_two", "test", 3, 0)
    with pytest.raises(ValueError, match="row 0: its prompt has 1[0-9] tokens, more than the 4"):
        encode_prompts(rows, tokenizer, max_length=4)
    with pytest.raises(ValueError, match="no column 'prompt', only"):
        encode_prompts(rows.remove_columns("prompt"), tokenizer, max_length=64)
    with pytest.raises(ValueError, match="row 0: prompt is int"):
        encode_prompts(rows.remove_columns("prompt").add_column("prompt", [1, 2, 3]), tokenizer, max_length=64)


@pytest.mark.parametrize(("task", "difficulty"), [(task, n) for task, shares in TASKS.items() for n in shares])
def test_every_split_has_300_held_out_problems(task, difficulty):
    assert len(load_task(task, "test", 300, 1, difficulty)) == 300
