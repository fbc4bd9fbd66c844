"""Testing a program: by calls, by what it prints, by a task's own asserts."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rewards.code.compare import OUTPUT_MODES, matches, outputs_equal
from rewards.code.execution import DEFAULT_TIMEOUT_S, check_text, limits_with_timeout, run_script
from rewards.code.jail.limits import Limits
from rewards.code.jail.values import encode
from rewards.code.pool import Worker, get_sandbox
from rewards.code.results import TestReport, TestResult
from rewards.code.subject import Subject, TestFailed, exception_result
from rewards.code.suite import AssertSuite

TEST_FIELDS = {"call": ("args", "expected"), "stdin_stdout": ("input", "output"), "assert": ("code",)}
MAX_TOTAL_TIMEOUTS = 10
MAX_DETAIL = 500
ENDS_ALL = ("timeout", "sandbox_error", "test_error")


def run_tests(
    code: str,
    tests: Sequence[Mapping[str, Any]],
    *,
    entry_point: str | None = None,
    setup: str = "",
    timeout_s: float = DEFAULT_TIMEOUT_S,
    require: str = "auto",
    limits: Limits | None = None,
    compare_output: str = "lines",
    tuple_as_list: bool = False,
    stop_at_failure: bool = False,
) -> TestReport:
    """Tests Python source. Expected values stay in this process; the program sees inputs only.

    tests: any of
        {"type": "call", "args": [..], "expected": value}, also "kwargs", and "entry_point" of its own
        {"type": "stdin_stdout", "input": text, "output": text}, a fresh run of the script each
        {"type": "assert", "code": test source}, which calls functions of the program by name
    entry_point: the function under test, or "Solution().method".
    setup: source that asserts need, such as helper functions of the task. Test code and setup are trusted like any
        code of the data set, yet run isolated too, in another process than the program.
    timeout_s: seconds for each test; the first includes loading the program. A test that times out ends the whole, so
        that no program takes more than its share; a crash only ends its own process. All tests together get ten
        times as long.
    compare_output, tuple_as_list: see `outputs_equal` and `matches`. require, limits: see `run_program`.
    stop_at_failure: leave out the tests after the first failure.

    Raises ValueError or TypeError for malformed tests, SandboxUnavailable. Nothing the program does raises.
    """
    check_text("code", code)
    check_text("setup", setup)
    if compare_output not in OUTPUT_MODES:
        raise ValueError(f"compare_output={compare_output!r}; use one of {', '.join(OUTPUT_MODES)}")
    if not tests:
        raise ValueError("tests is empty; a program without tests has no score")
    for index, test in enumerate(tests):
        _check_test(index, test, entry_point)
    limits = limits_with_timeout(limits, timeout_s)
    sandbox = get_sandbox(require)
    with sandbox.worker() as worker:
        started = time.monotonic()
        session = _Session(worker, code, limits, entry_point, setup, compare_output, tuple_as_list)
        try:
            results = session.run_all(tests, stop_at_failure)
        finally:
            session.close()
        return TestReport(results, time.monotonic() - started, sandbox.backend.name)


class _Session:
    """The tests of one program on one worker."""

    def __init__(
        self,
        worker: Worker,
        code: str,
        limits: Limits,
        entry_point: str | None,
        setup: str,
        compare_output: str,
        tuple_as_list: bool,
    ):
        self._worker, self._code, self._limits = worker, code, limits
        self._entry_point, self._compare_output, self._tuple_as_list = entry_point, compare_output, tuple_as_list
        self._end: float | None = None
        self._subject = Subject(worker, code, limits)
        self._suite = AssertSuite(worker, self._subject, limits, setup, entry_point)

    def run_all(self, tests: Sequence[Mapping[str, Any]], stop_at_failure: bool) -> tuple[TestResult, ...]:
        run = {"stdin_stdout": self._run_script, "call": self._run_call, "assert": self._run_assert}
        results = []
        for test in tests:
            try:
                results.append(run[test["type"]](test))
            except TestFailed as failure:
                results.append(failure.result)
            if results[-1].status in ENDS_ALL or (stop_at_failure and not results[-1].is_passed):
                break
        return (*results, *[TestResult("not_run")] * (len(tests) - len(results)))

    def close(self) -> None:
        self._suite.close()
        self._subject.close()

    def _time(self) -> float:
        """Seconds for the next test. Raises TestFailed when those of all together are used up."""
        if self._end is None:  # The first process is ready now: the machine's business is not the program's time.
            self._end = time.monotonic() + MAX_TOTAL_TIMEOUTS * self._limits.wall_s
        left = self._end - time.monotonic()
        if left <= 0:
            raise TestFailed("timeout", "the tests together took too long")
        return min(self._limits.wall_s, left)

    def _run_script(self, test: Mapping[str, Any]) -> TestResult:
        self._subject.close()  # A worker runs one program at a time.
        result = run_script(self._worker, self._code, test["input"], replace(self._limits, wall_s=self._time()))
        if result.status != "ok":
            return TestResult(result.status, result.stderr[-MAX_DETAIL:])
        is_right = outputs_equal(test["output"], result.stdout, self._compare_output)
        return TestResult("ok") if is_right else TestResult("wrong", result.stdout[-MAX_DETAIL:])

    def _run_call(self, test: Mapping[str, Any]) -> TestResult:
        self._subject.prepare()
        args = [encode(value) for value in test["args"]]
        kwargs = {key: encode(value) for key, value in test.get("kwargs", {}).items()}
        name = test.get("entry_point", self._entry_point)
        reply = self._subject.call(name, args, kwargs, time.monotonic() + self._time())
        if "error" in reply:
            return exception_result(reply)
        is_right = matches(test["expected"], reply["value"], tuple_as_list=self._tuple_as_list)
        return TestResult("ok") if is_right else TestResult("wrong", repr(reply["value"])[:MAX_DETAIL])

    def _run_assert(self, test: Mapping[str, Any]) -> TestResult:
        self._suite.prepare()
        return self._suite.run(test["code"], time.monotonic() + self._time())


def _check_test(index: int, test: Any, entry_point: str | None) -> None:
    kind = test.get("type") if isinstance(test, Mapping) else None
    if kind not in TEST_FIELDS:
        raise ValueError(f"tests[{index}] must be a dict with 'type' one of {', '.join(TEST_FIELDS)}: {test!r:.200}")
    if missing := [field for field in TEST_FIELDS[kind] if field not in test]:
        raise ValueError(f"tests[{index}] of type {kind!r} lacks {', '.join(missing)}")
    if kind == "call":
        if not isinstance(test["args"], list | tuple):
            raise TypeError(f"tests[{index}]['args'] must be a list, not {type(test['args']).__name__}")
        if entry_point is None and "entry_point" not in test:
            raise ValueError(f"tests[{index}] is a call: pass entry_point, the name of the function to call")
        encode([test["expected"], list(test["args"]), test.get("kwargs")])  # Raises for what cannot cross the border.
    else:
        for field in TEST_FIELDS[kind]:
            check_text(f"tests[{index}][{field!r}]", test[field])
