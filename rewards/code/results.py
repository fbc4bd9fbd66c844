"""What running a program gives back."""

from dataclasses import dataclass, field


class SandboxUnavailable(RuntimeError):
    """This machine cannot give the isolation asked for; the message says what was tried."""


@dataclass(frozen=True)
class ExecutionResult:
    """One run of a program.

    status is one of

    - `ok`: it ended by itself with exit status 0
    - `exception`: an uncaught exception, or another exit status
    - `timeout`, `memory`, `output_limit`, `disk_limit`: it exceeded that limit and was killed
    - `crash`: it died of a signal
    - `sandbox_error`: our fault, not the program's; says nothing about it
    """

    status: str
    stdout: str
    stderr: str
    exit_code: int | None
    """None when the program did not end by itself."""
    wall_s: float
    cpu_s: float
    memory_bytes: int
    backend: str


@dataclass(frozen=True)
class TestResult:
    """One test: the statuses of `ExecutionResult`, and

    - `wrong`: the program answered something else
    - `bad_reply`: it returned no plain value, or tampered with the channel
    - `not_run`: an earlier test ended the whole (see `run_tests`)
    - `test_error`: the test itself is broken or needs what the sandbox cannot give; says nothing about the program
    """

    __test__ = False  # Not a class of tests, whatever pytest thinks.

    status: str
    detail: str = ""

    @property
    def is_passed(self) -> bool:
        return self.status == "ok"


@dataclass(frozen=True)
class TestReport:
    """All tests of one program. `status` is `ok` when every test passed, else that of the first that did not."""

    __test__ = False

    results: tuple[TestResult, ...]
    wall_s: float
    backend: str
    passed: int = field(init=False)
    total: int = field(init=False)
    status: str = field(init=False)

    def __post_init__(self):
        failed = [result.status for result in self.results if not result.is_passed]
        object.__setattr__(self, "total", len(self.results))
        object.__setattr__(self, "passed", len(self.results) - len(failed))
        object.__setattr__(self, "status", failed[0] if failed else "ok")

    @property
    def is_conclusive(self) -> bool:
        """False when our side failed, so that the program deserves neither a good nor a bad score."""
        return self.status not in ("sandbox_error", "test_error")
