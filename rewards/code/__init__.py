"""Running programs that a model wrote, and scoring them by their tests.

    from rewards.code import code_reward, run_program, run_tests, sandbox_report

A program runs in a process of its own that can neither read the user's files nor write outside a directory that is
deleted afterwards, has no network, starts no processes, and is limited in time, memory and output. It never says that
it passed: it returns plain values, which are compared where it cannot reach (`rewards.code.compare`, or the task's own
asserts in another process). `print(sandbox_report())` shows what is enforced on this machine.
"""

from rewards.code.execution import run_program
from rewards.code.extract import extract_code
from rewards.code.jail.limits import Limits
from rewards.code.pool import close_sandboxes, sandbox_report
from rewards.code.results import ExecutionResult, SandboxUnavailable, TestReport, TestResult
from rewards.code.reward import code_reward
from rewards.code.testing import run_tests

__all__ = [
    "ExecutionResult",
    "Limits",
    "SandboxUnavailable",
    "TestReport",
    "TestResult",
    "close_sandboxes",
    "code_reward",
    "extract_code",
    "run_program",
    "run_tests",
    "sandbox_report",
]
