"""Datasets as evaluation problems, HumanEval among them, and how their completions are judged."""

import gzip
import json
from types import SimpleNamespace

import pytest

from r1lab.evaluate import build_generate, judge_completions, judge_split, load_problems
from r1lab.evaluate.judge import cut_at_stop
from r1lab.evaluate.problems import STOP_SEQUENCES, choose_reward
from r1lab.loading import LoadingError
from r1lab.types import Completion, Prompt
from rewards import accuracy_reward, code_reward

STUB = 'from math import sqrt\n\n\ndef root(x):\n    """ The square root. """\n'
TEST = "def check(candidate):\n    assert candidate(9) == 3\n    assert candidate(4) == 2\n"
PROBLEM = {"task_id": "T/0", "prompt": STUB, "entry_point": "root", "test": TEST, "canonical_solution": ""}
SCRIPT = SimpleNamespace(
    dataset_config=None, dataset_train_split="test", prompt_column=None, solution_column=None, system_prompt="Solve."
)
BASE, CHAT = SimpleNamespace(chat_template=None), SimpleNamespace(chat_template="x")


def _write(path, rows):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


def _prompts(rows):
    return [Prompt(row.pop("prompt"), [1], row) for row in rows]


def test_embedded_tasks_are_split_by_difficulty():
    problems = load_problems(["pick_two", "arithmetic"], 5, SCRIPT, BASE)
    assert {name: len(rows) for name, rows in problems.items()} == dict.fromkeys(
        ["pick_two/n3", "pick_two/n4", "pick_two/n5", "arithmetic/n3", "arithmetic/n4"], 5
    )
    assert [choose_reward(rows) for rows in problems.values()] == ["countdown"] * 3 + ["accuracy"] * 2


def test_mathematics_is_split_by_level(tmp_path):
    rows = [
        {"problem": f"q{i}", "solution": rf"so \boxed{{{i}}}", "level": f"Level {1 + i % 2}", "type": "Algebra"}
        for i in range(6)
    ]
    problems = load_problems([_write(tmp_path / "math.jsonl", rows)], 2, SCRIPT, BASE)
    assert {name: len(rows) for name, rows in problems.items()} == {"math/level_1": 2, "math/level_2": 2}
    assert problems["math/level_2"]["prompt"] == ["Solve. User: q1 Assistant:", "Solve. User: q3 Assistant:"]
    assert choose_reward(problems["math/level_1"]) == "accuracy"


def test_a_level_must_have_few_values(tmp_path):
    rows = [{"problem": "q", "solution": "1", "difficulty": i / 100} for i in range(30)]
    with pytest.raises(LoadingError, match="'difficulty' has 30 values"):
        load_problems([_write(tmp_path / "math.jsonl", rows)], 2, SCRIPT, BASE)


def test_gsm8k_is_one_split_and_judged_in_any_form(tmp_path):
    rows = [{"question": "3 + 4?", "answer": "It is <<3+4=7>>7.\n#### 7"}]
    problems = load_problems([_write(tmp_path / "test.jsonl", rows)], 9, SCRIPT, BASE)
    (prompt,) = _prompts(problems["test"])
    texts = ["<think> x </think> <answer> 7 </answer>", r"so \boxed{7}", "I get 7", "#### 8", ""]
    group = [Completion([i], [-1.0], "stop") for i in range(len(texts))]
    (judged,) = judge_completions([prompt], [group], lambda ids: texts[ids[0]], accuracy_reward)
    assert [one.is_correct for one in judged] == [True, True, False, False, False]
    assert [one.is_correct_blind for one in judged] == [True, True, True, False, False]
    assert [one.answer for one in judged] == ["7", "7", "7", "8", None]


def test_a_base_model_continues_the_stub_and_is_cut(tmp_path):
    problems = load_problems([_write(tmp_path / "HumanEval.jsonl.gz", [PROBLEM])], 9, SCRIPT, BASE)
    assert choose_reward(problems["HumanEval"]) == "code"
    (prompt,) = _prompts(problems["HumanEval"])
    assert prompt.text == STUB.rstrip() and prompt.columns["stop_sequences"] == STOP_SEQUENCES
    texts = [
        "\n    return sqrt(x)\n\nprint(root(",  # cut before what would not even parse
        "\n    return sqrt(x)",
        "\n    return x\n",
        "\n    return int(sqrt(x)\n",
        "",
        "\n    def inner():\n        return sqrt(x)\n    if x:\n        return inner()\n",  # indented: no stop
    ]
    group = [Completion([10 + i], [-1.0], "length") for i in range(len(texts))]
    decoded = {1: prompt.text} | {10 + i: text for i, text in enumerate(texts)}

    def decode(ids):  # as some tokenizers do: white space at the start is lost
        return "".join(decoded[i] for i in ids).lstrip()

    (judged,) = judge_completions([prompt], [group], decode, code_reward)
    assert [one.is_correct for one in judged] == [True, True, False, False, False, True]
    assert [one.is_truncated for one in judged] == [False, True, True, True, True, True]
    assert [one.is_correct_blind for one in judged] == [one.is_correct for one in judged]
    assert all(one.answer is None for one in judged)


def test_a_chat_model_is_asked_for_the_whole_function(tmp_path):
    problems = load_problems([_write(tmp_path / "he.jsonl", [PROBLEM])], 9, SCRIPT, CHAT)
    (prompt,) = _prompts(problems["he"])
    (message,) = prompt.text
    assert message["role"] == "user" and STUB.rstrip() in message["content"]
    texts = [
        "Sure:\n```python\ndef root(x):\n    return sqrt(x)\n```\nprint(",
        "```python\ndef root(x):\n    return x\n```",
    ]
    group = [Completion([i], [-1.0], "stop") for i in range(2)]
    (judged,) = judge_completions([prompt], [group], lambda ids: texts[ids[0]], code_reward)
    assert [one.is_correct for one in judged] == [True, False]  # the stub's import is there


def test_cut_at_stop():
    assert cut_at_stop("a\ndef b\nclass c", ["\nclass", "\ndef"]) == ("a", True)
    assert cut_at_stop("a def b", ["\ndef"]) == ("a def b", False)
    assert cut_at_stop("", ["x"]) == ("", False)


def nothing(completions, **columns):
    """A reward."""
    return [0.0] * len(completions)


def test_programs_have_no_majority():
    prompt = Prompt("p", [1], {"test": TEST, "entry_point": "root"})

    def generate(prompt_ids, n, temperature):
        return [[Completion([1], [0.0], "stop")] * n for _ in prompt_ids]

    outcome = judge_split([prompt], generate, lambda ids: "x", nothing, num_samples=2)
    assert not outcome.has_votes and "maj@2" not in outcome.summary()


class FakeEngine:
    def __init__(self):
        self.model = SimpleNamespace(eval=lambda: None)
        self.calls = []

    def generate(self, prompt_ids, params, seeds):
        self.calls.append((params, seeds))
        return [[Completion([seed % 97], [0.0], "stop") for seed in row] for row in seeds]


def test_completions_do_not_depend_on_how_problems_are_split_over_calls():
    prompts = [Prompt(f"p{i}", [i, 2], {"solution": "1"}) for i in range(5)]
    seen = []
    for watch in (None, lambda chunks, count: chunks):
        engine = FakeEngine()
        generate = build_generate(engine, max_tokens=7, top_p=0.9, banned_token_ids=(3,))
        outcome = judge_split(
            prompts, generate, lambda ids: str(ids[0]), nothing, num_samples=400, temperature=0.6, watch=watch
        )
        seen.append([[one.text for one in group] for group in outcome.sampled])
    assert seen[0] == seen[1] and len({tuple(group) for group in seen[0]}) == 5
    assert len(engine.calls) == 6, "three chunks, sampled and greedy"
    assert {(params.temperature, params.top_p, params.n) for params, _ in engine.calls} == {
        (0.6, 0.9, 400),
        (0.0, 1.0, 1),
    }
    assert all(params.banned_token_ids == (3,) and params.max_tokens == 7 for params, _ in engine.calls)
