"""A task's own test code, run beside the program under test and not in it."""

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from rewards.code.execution import start
from rewards.code.jail.limits import Limits
from rewards.code.pool import Worker
from rewards.code.process import ProcessEnded, SandboxedProcess
from rewards.code.results import TestResult
from rewards.code.subject import CPU_S, Subject, TestFailed


class AssertSuite:
    """Test code in a process of its own, whose calls of the program pass through here."""

    def __init__(self, worker: Worker, subject: Subject, limits: Limits, setup: str, entry_point: str | None):
        self._worker, self._subject = worker, subject
        self._limits = replace(limits, wall_s=max(CPU_S, limits.wall_s))
        self._job = {"mode": "tests", "setup": setup, "entry_points": [entry_point] if entry_point else []}
        self._stack = ExitStack()
        self._tester: SandboxedProcess | None = None
        self._calls = 0

    def prepare(self) -> None:
        """Starts the test's and the program's process, unless they run. Raises TestFailed."""
        self._subject.prepare()
        if self._tester is None:
            self._tester = self._stack.enter_context(self._worker.process("tests", self._limits))
            if not start(self._tester, self._job):
                raise self._fail("sandbox_error")
            self._load(time.monotonic() + self._limits.wall_s)

    def run(self, code: str, deadline: float) -> TestResult:
        """One test: source that raises nothing if the program is right. Raises TestFailed."""
        self._calls = 0
        self._tester.send({"code": code})
        try:
            return self._verdict(self._relay(self._tester, deadline))
        except ProcessEnded:
            if time.monotonic() >= deadline:
                raise self._fail("timeout", "the test did not end") from None
            # With a value in hand, the program may be the reason: memory or output that grows with the value.
            raise self._fail("crash" if self._calls else "test_error", "the test's process died") from None
        except TestFailed:
            self.close()  # The test still waits for its answer.
            raise

    def close(self) -> None:
        self._tester = None
        self._stack.close()

    def _load(self, deadline: float) -> None:
        try:
            loaded = self._tester.receive(deadline)
        except ProcessEnded:
            raise self._fail("test_error", "setup: it did not end") from None
        if not loaded["passed"]:
            raise self._fail("test_error", f"setup: {loaded['error']}")

    def _fail(self, status: str, detail: str = "") -> TestFailed:
        self.close()
        return TestFailed(status, detail)

    def _relay(self, tester: SandboxedProcess, deadline: float) -> dict[str, Any]:
        """Passes calls on until the test reports; its report."""
        while "call" in (message := tester.receive(deadline)):
            reply = self._subject.call(message["call"], message["args"], message["kwargs"], deadline)
            self._calls += 1
            tester.send({key: reply[key] for key in ("value", "error", "message") if key in reply})
        return message

    def _verdict(self, report: dict[str, Any]) -> TestResult:
        if report["passed"] and self._calls:
            return TestResult("ok")
        if report["passed"]:
            return TestResult("test_error", "the test passes without calling the program")
        # Before any call the program cannot be the reason.
        is_our_fault = report["unsupported"] or (not self._calls and not report["error"].startswith("AssertionError"))
        return TestResult("test_error" if is_our_fault else "wrong", report["error"])
