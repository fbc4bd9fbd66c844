import gzip
import json
import pickle

import pytest

from rewards.code import code_reward

RIGHT = "```python\ndef add(a, b):\n    return a + b\n```"
WRONG = "```python\ndef add(a, b):\n    return a - b\n```"
ECHO = "```python\nprint(int(input()) + 1)\n```"
STDIN_CASES = [{"type": "stdin_stdout", "fn_name": None, "input": f"{n}\n", "output": f"{n + 1}\n"} for n in (1, 5)]
PROMPT = 'def helper(n):\n    return n + 1\n\n\ndef add(a, b):\n    """Adds."""\n'
CHECK = "def check(candidate):\n    assert candidate(1, 2) == helper(2)\n    assert add(0, 1) == 1\n"


def score(completions, **columns):
    return code_reward(completions=completions, timeout_s=20, **columns)


def test_verification_info():
    info = {"language": "python", "test_cases": STDIN_CASES}
    for value in (info, json.dumps(info)):
        assert score([ECHO, WRONG], verification_info=[value] * 2) == [1.0, 0.0]
    function = [{"type": "function_call", "fn_name": "add", "input": "[1, 2]", "output": "3"}]
    assert score([RIGHT, WRONG], verification_info=[{"test_cases": function}] * 2) == [1.0, 0.0]


def test_other_languages_and_missing_tests_are_left_out():
    infos = [{"language": "cpp", "test_cases": STDIN_CASES}, {"test_cases": []}, None, {"test_cases": STDIN_CASES}]
    assert score([ECHO] * 4, verification_info=infos) == [None, None, None, 1.0]


def test_tests_column():
    tests = [{"type": "call", "args": [1, 2], "expected": 3}, {"type": "assert", "code": "assert add(1, 1) == 2"}]
    columns = {"tests": [tests, json.dumps(tests), tests], "entry_point": ["add"] * 3}
    assert score([RIGHT, RIGHT, WRONG], **columns) == [1.0, 1.0, 0.0]


def test_human_eval_columns():
    completions = ["    return a + b\n", "    return helper(a) + b - 1\n", RIGHT, "    return None\n", WRONG, ""]
    columns = {"test": [CHECK] * 6, "entry_point": ["add"] * 6}
    assert score(completions, prompts=[PROMPT] * 6, **columns) == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]


def test_human_eval_with_chat_prompts():
    check = CHECK.replace("helper(2)", "3")
    prompts = [[{"role": "user", "content": "Write add."}]] * 2
    completions = [[{"role": "assistant", "content": text}] for text in (RIGHT, WRONG)]
    assert score(completions, prompts=prompts, test=[check] * 2, entry_point=["add"] * 2) == [1.0, 0.0]


def test_mbpp_columns():
    asserts = ["assert add(1, 2) == 3", "assert math.isclose(add(0.1, 0.2), 0.3)"]
    assert score([RIGHT, WRONG], test_list=[asserts] * 2, test_imports=[["import math"]] * 2) == [1.0, 0.0]
    assert score([RIGHT], test_list=[asserts], test_setup_code=["import math"]) == [1.0]


def test_mbpp_functions_named_like_builtins():
    code = "```python\ndef sum(a, b):\n    return a * b\n```"
    assert score([code], test_list=[["assert sum(10, 15) == 150"]]) == [1.0]


def test_partial_credit():
    tests = [{"type": "call", "args": [1, n], "expected": 1 + n} for n in (0, 1, 2, 3)]
    columns = {"tests": [tests] * 2, "entry_point": ["add"] * 2}
    half = "def add(a, b):\n    return a + b if b < 2 else 0\n"
    assert score([RIGHT, half], **columns) == [1.0, 0.0]
    assert score([RIGHT, half], partial_credit=True, **columns) == [1.0, 0.5]


def test_broken_tests_are_no_score():
    columns = {"test_list": [["assert add(1, 2) == undefined.x"], ["assert add("]]}
    assert score([RIGHT] * 2, **columns) == [None, None]


def test_no_program_scores_nothing():
    completions = ["", "I do not know.", "<think>" + RIGHT, "```cpp\nint x;\n```", [{"role": "user", "content": RIGHT}]]
    assert score(completions, tests=[[{"type": "assert", "code": "assert add(1, 2) == 3"}]] * 5) == [0.0] * 5


def test_trl_calls_with_extras():
    extras = {"trainer_state": object(), "log_extra": print, "log_metric": print, "unrelated": [1]}
    columns = {"prompts": [None], "completion_ids": [[1]], "test_list": [["assert add(1, 2) == 3"]]}
    assert score([RIGHT], **columns, **extras) == [1.0]
    assert pickle.loads(pickle.dumps(code_reward)) is code_reward and code_reward.__name__ == "code_reward"
    assert score([], tests=[]) == []


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"solution": ["x"]}, TypeError, "verification_info, tests, test, test_list; got solution"),
        ({"tests": [[], []]}, ValueError, "'tests' must be a list of one entry for each of the 1 completions"),
        ({"verification_info": ["{"]}, ValueError, "verification_info is no JSON"),
        ({"verification_info": [{"cases": []}]}, ValueError, "must hold a list 'test_cases'"),
        ({"test": ["def check(c): pass"]}, ValueError, "entry_point"),
        ({"test_list": ["assert f()"]}, ValueError, "test_list is no JSON"),
        ({"tests": [[{"type": "?"}]]}, ValueError, "'type' one of"),
        ({"tests": [[]], "require": "most"}, ValueError, "require='most'"),
    ],
)
def test_wrong_columns(columns, error, message):
    with pytest.raises(error, match=message):
        code_reward(completions=[RIGHT], **columns)


def test_human_eval(data):
    """Its canonical solutions pass; mutants that return None, or what claims to equal everything, do not."""
    with gzip.open(data / "humaneval" / "HumanEval.jsonl.gz") as file:
        problems = [json.loads(line) for line in file]
    columns = {name: [problem[name] for problem in problems] for name in ("test", "entry_point")}
    columns["prompts"] = [problem["prompt"] for problem in problems]
    assert score([problem["canonical_solution"] for problem in problems], **columns) == [1.0] * 164
    assert score(["    return None\n"] * 164, **columns) == [0.0] * 164
    liar = "class Liar(int):\n    __eq__ = lambda self, other: True\n    __hash__ = int.__hash__\n"
    mutants = [f"```python\n{liar}def {name}(*args):\n    return Liar()\n```" for name in columns["entry_point"]]
    assert score(mutants, **columns) == [0.0] * 164


def test_each_rows_reason_is_logged():
    columns = {}
    tests = [{"type": "call", "args": [1, 2], "expected": 3}]
    completions = [RIGHT, WRONG, "```python\n1 / 0\n```", "```c\nreturn 3;\n```", RIGHT]
    scores = score(completions, tests=[tests] * 4 + [None], entry_point=["add"] * 5, log_extra=columns.__setitem__)
    assert scores == [1.0, 0.0, 0.0, 0.0, None]
    assert columns["code_reason"][:2] == ["ok", "wrong"] and columns["code_reason"][3:] == ["no_program", "no_tests"]
    assert columns["code_reason"][2] in ("load_error", "exception")
