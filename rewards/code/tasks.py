"""Data set rows as tests: the columns of open-r1, HumanEval and MBPP, and our own."""

import ast
import builtins
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TEST_COLUMNS = ("verification_info", "tests", "test", "test_list")
"""Which of these a data set has decides how its rows are read, in this order."""


@dataclass(frozen=True)
class Task:
    """What one row asks of a program; the fields are parameters of `run_tests`."""

    tests: tuple[Mapping[str, Any], ...]
    entry_point: str | None = None
    setup: str = ""
    stub: str = ""
    """HumanEval's prompt: source that a completion may continue, or rely on."""
    tuple_as_list: bool = False


def read_task(column: str, row: Mapping[str, Any], prompt: Any = None) -> Task | None:
    """The task of one row, read from `column` (one of `TEST_COLUMNS`). None when the row has no tests for Python.

    Raises ValueError for a row that cannot be understood.
    """
    value = row.get(column)
    if value is None or value == "" or value == []:
        return None
    return _READERS[column](value, row, prompt)


def _read_verification_info(value: Any, row: Mapping[str, Any], prompt: Any) -> Task | None:
    """open-r1's {"language": "python", "test_cases": [{"type", "input", "output", "fn_name"}]}, also as JSON text."""
    info = _from_json(value, "verification_info")
    if not isinstance(info, Mapping) or not isinstance(info.get("test_cases"), Sequence):
        raise ValueError(f"verification_info must hold a list 'test_cases': {info!r:.200}")
    if str(info.get("language", "python")).lower() not in ("python", "python3", "py"):
        return None
    tests = tuple(_open_r1_test(case) for case in info["test_cases"])
    return Task(tests, row.get("entry_point"), tuple_as_list=True) if tests else None


def _open_r1_test(case: Any) -> Mapping[str, Any]:
    if not isinstance(case, Mapping):
        raise ValueError(f"a test case must be a dict: {case!r:.200}")
    function = case.get("fn_name")
    if function is None:
        if case.get("type", "stdin_stdout") != "stdin_stdout":
            return case  # One of ours; `run_tests` checks it.
        return {"type": "stdin_stdout", "input": _as_text(case.get("input")), "output": _as_text(case.get("output"))}
    args = _from_json(case.get("input"), "input")
    expected = _from_json(case.get("output"), "output")
    return {"type": "call", "entry_point": function, "args": args, "expected": expected}


def _read_tests(value: Any, row: Mapping[str, Any], prompt: Any) -> Task:
    """A list of what `run_tests` takes, also as JSON text; JSON has no tuples, so there a list may stand for one."""
    tests = _from_json(value, "tests")
    if not isinstance(tests, Sequence) or isinstance(tests, str):
        raise ValueError(f"tests must be a list: {tests!r:.200}")
    return Task(tuple(tests), row.get("entry_point"), row.get("setup") or "", tuple_as_list=isinstance(value, str))


def _read_human_eval(value: Any, row: Mapping[str, Any], prompt: Any) -> Task:
    """`test` defines `check(candidate)`; `entry_point` names the function; the prompt is its stub, with helpers."""
    entry_point = row.get("entry_point")
    if not isinstance(value, str) or not isinstance(entry_point, str):
        raise ValueError(f"HumanEval's columns test and entry_point must be text: {value!r:.100}, {entry_point!r:.100}")
    stub = prompt if isinstance(prompt, str) and _is_source(prompt) else ""
    test = {"type": "assert", "code": f"{value}\n\ncheck({entry_point})\n"}
    return Task((test,), entry_point, setup=stub, stub=stub)


def _read_mbpp(value: Any, row: Mapping[str, Any], prompt: Any) -> Task:
    """`test_list` holds asserts, run after `test_imports` (sanitized MBPP) and `test_setup_code` (full MBPP)."""
    asserts = _from_json(value, "test_list")
    if not isinstance(asserts, Sequence) or isinstance(asserts, str):
        raise ValueError(f"test_list must be a list of asserts: {asserts!r:.200}")
    setup = "\n".join([*(row.get("test_imports") or []), row.get("test_setup_code") or ""])
    entry_point = row.get("entry_point") or _shadowed_builtin(asserts)
    return Task(tuple({"type": "assert", "code": code} for code in asserts), entry_point, setup)


_READERS = {
    "verification_info": _read_verification_info,
    "tests": _read_tests,
    "test": _read_human_eval,
    "test_list": _read_mbpp,
}


def _shadowed_builtin(asserts: Sequence[str]) -> str | None:
    """The function under test where it is named like one of Python's: `assert sum(10, 15) == 6`.

    Otherwise None: a name that Python does not know is the program's anyway.
    """
    try:
        nodes = [node for code in asserts for node in ast.walk(ast.parse(code))]
    except SyntaxError:
        return None
    called = [node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return called[0] if called and all(hasattr(builtins, name) for name in called) else None


def _from_json(value: Any, name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"{name} is no JSON: {value!r:.200}") from error


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    raise ValueError(f"a test's input and output must be text: {value!r:.200}")


def _is_source(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True
