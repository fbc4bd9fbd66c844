"""A program under test as a set of functions, in a sandboxed process."""

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from rewards.code.execution import start
from rewards.code.jail.limits import Limits
from rewards.code.pool import Worker
from rewards.code.process import ProcessEnded, SandboxedProcess
from rewards.code.results import TestResult

CPU_S = 60.0
"""A process may live for all tests, so its CPU limit is not that of one."""


class TestFailed(Exception):
    """A test is decided before its end."""

    def __init__(self, status: str, detail: str = ""):
        self.result = TestResult(status, detail)


class Subject:
    """The program under test; loaded by the first call, and again after a crash."""

    def __init__(self, worker: Worker, code: str, limits: Limits):
        self._worker, self._code = worker, code
        self._limits = replace(limits, wall_s=max(CPU_S, limits.wall_s))
        self._stack = ExitStack()
        self._process: SandboxedProcess | None = None
        self._is_loaded = False
        self._load_failure: TestFailed | None = None
        self._calls = 0

    def prepare(self) -> SandboxedProcess:
        """Starts a process, unless there is one, and lets it load the program meanwhile. Raises TestFailed."""
        if self._load_failure is not None:
            raise self._load_failure
        if self._process is None:
            self._process = self._stack.enter_context(self._worker.process("program", self._limits))
            if not start(self._process, {"mode": "functions", "code": self._code}):
                raise self._fail("sandbox_error")
        return self._process

    def call(self, name: str, args: list[Any], kwargs: dict[str, Any], deadline: float) -> dict[str, Any]:
        """{"value": encoded} or {"error": type name, "message": text} of one call, both untrusted.

        Raises TestFailed when the program cannot be loaded, when its process ends, or answers anything else.
        """
        process = self.prepare()
        if not self._is_loaded:
            self._load(process, deadline)
        if process.has_unread():
            raise self._fail("bad_reply", "it wrote to the channel without being asked")
        self._calls += 1
        process.send({"call": self._calls, "name": name, "args": args, "kwargs": kwargs})
        reply = self._receive(process, deadline)
        if not isinstance(reply, dict) or reply.get("reply") != self._calls:
            raise self._fail("bad_reply", f"it answered {reply!r:.100}")
        if ("value" in reply) == isinstance(reply.get("error"), str):
            raise self._fail("bad_reply", "a reply with neither a value nor an error, or both")
        return reply

    def close(self) -> None:
        self._process, self._is_loaded = None, False
        self._stack.close()

    def _load(self, process: SandboxedProcess, deadline: float) -> None:
        try:
            reply = self._receive(process, deadline)
            if isinstance(reply, dict) and isinstance(reply.get("error"), str):
                failure = exception_result(reply)
                raise self._fail(failure.status, failure.detail)
            if reply != {"loaded": True}:
                raise self._fail("bad_reply", f"it answered {reply!r:.100}")
        except TestFailed as failure:
            self._load_failure = failure  # Loading again would only fail again.
            raise
        self._is_loaded = True

    def _receive(self, process: SandboxedProcess, deadline: float) -> Any:
        try:
            return process.receive(deadline)
        except ProcessEnded:
            result = process.result()
            # Ending is no answer, whatever the exit status.
            status = "crash" if result.status in ("ok", "exception") else result.status
            raise self._fail(status, result.stderr[-500:]) from None

    def _fail(self, status: str, detail: str = "") -> TestFailed:
        self.close()
        return TestFailed(status, detail)


def exception_result(reply: dict[str, Any]) -> TestResult:
    """The verdict on a program that answered with an exception."""
    status = "memory" if reply["error"] == "MemoryError" else "exception"
    return TestResult(status, f"{reply['error']}: {reply.get('message')}"[:500])
