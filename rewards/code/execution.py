"""Running one program."""

import time
from dataclasses import replace
from typing import Any

from rewards.code.jail.limits import Limits
from rewards.code.pool import Worker, get_sandbox
from rewards.code.process import ProcessEnded, SandboxedProcess
from rewards.code.results import ExecutionResult

DEFAULT_TIMEOUT_S = 4.0
READY_TIMEOUT_S = 30.0


def run_program(
    code: str,
    stdin: str = "",
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    require: str = "auto",
    limits: Limits | None = None,
) -> ExecutionResult:
    """Runs Python source as a script, isolated, and gives back what it printed and how it ended.

    timeout_s: seconds of wall clock (CPU time is limited to one more). limits: the other resources; its `wall_s` is
    replaced. require: how strong the isolation must be, see `sandbox_report`.

    Whatever the program does is a status of the result. Raises SandboxUnavailable, TypeError for code or stdin that is
    no string, ValueError for a timeout that is not positive.
    """
    check_text("code", code)
    check_text("stdin", stdin)
    limits = limits_with_timeout(limits, timeout_s)
    with get_sandbox(require).worker() as worker:
        return run_script(worker, code, stdin, limits)


def run_script(worker: Worker, code: str, stdin: str, limits: Limits) -> ExecutionResult:
    """`run_program` on a worker that the caller holds."""
    with worker.process("program", limits, encode_text(stdin)) as process:
        if start(process, {"mode": "script", "code": code}):
            process.wait(time.monotonic() + limits.wall_s)
        return process.result()


def start(process: SandboxedProcess, job: dict[str, Any]) -> bool:
    """Hands a locked-down process its job. False when it did not get so far: then that is the sandbox's fault.

    The program's clock starts here, not with the fork.
    """
    try:
        ready = process.receive(time.monotonic() + READY_TIMEOUT_S)
    except ProcessEnded:
        ready = None
    if not ready or ready.get("ready") is not True:
        process.stop("sandbox_error")
        process.stop_reason = "sandbox_error"
        return False
    process.send(job)
    return True


def limits_with_timeout(limits: Limits | None, timeout_s: float) -> Limits:
    return replace(limits or Limits(), wall_s=timeout_s)


def check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {type(value).__name__}")


def encode_text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
