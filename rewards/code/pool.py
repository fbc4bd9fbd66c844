"""The fork servers of this process: started when first needed, shared by its threads, not inherited by its children."""

import atexit
import contextlib
import os
import threading
import warnings
from collections.abc import Iterator

from rewards.code.backends import BACKENDS, Backend
from rewards.code.fork_server import ForkServer
from rewards.code.jail.limits import Limits
from rewards.code.probe import SandboxReport, probe
from rewards.code.process import SandboxedProcess
from rewards.code.results import SandboxUnavailable

MAX_WORKERS = 8
RUNS_PER_SERVER = 5000
REQUIREMENTS = ("auto", "strong", *BACKENDS)


class Worker:
    """Two fork servers: one for programs, one for test code. Apart, so that neither ever held the other's data."""

    def __init__(self, backend: Backend):
        self._backend = backend
        self._servers: dict[str, ForkServer] = {}

    @contextlib.contextmanager
    def process(self, role: str, limits: Limits, stdin: bytes = b"") -> Iterator[SandboxedProcess]:
        """A process of the server for this role ("program" or "tests"), closed in the end."""
        server = self._server(role)
        process = server.start(limits, stdin)
        if process.is_server_lost:  # It died since the last run: that is not this program's doing.
            process.close()
            self._drop(role)
            server = self._server(role)
            process = server.start(limits, stdin)
        try:
            yield process
        finally:
            process.close()
            if process.is_server_lost or server.runs >= RUNS_PER_SERVER:
                self._drop(role)

    def close(self) -> None:
        for role in list(self._servers):
            self._drop(role)

    def forget(self) -> None:
        for server in self._servers.values():
            server.forget()

    def _server(self, role: str) -> ForkServer:
        if role not in self._servers:
            self._servers[role] = ForkServer(self._backend)
        return self._servers[role]

    def _drop(self, role: str) -> None:
        self._servers.pop(role).close()


class Sandbox:
    """Workers of one backend. At most `size` run at once; further threads wait."""

    def __init__(self, backend: Backend, report: SandboxReport, size: int):
        self.backend, self.report, self.size = backend, report, size
        self._idle: list[Worker] = []
        self._all: list[Worker] = []
        self._free = threading.BoundedSemaphore(size)

    @contextlib.contextmanager
    def worker(self) -> Iterator[Worker]:
        with self._free:
            try:
                worker = self._idle.pop()  # The last one used is the warmest. List operations are atomic.
            except IndexError:
                worker = Worker(self.backend)
                self._all.append(worker)
            try:
                yield worker
            finally:
                self._idle.append(worker)

    def close(self) -> None:
        for worker in self._all:
            worker.close()

    def forget(self) -> None:
        for worker in self._all:
            worker.forget()


_sandboxes: dict[str, Sandbox] = {}
_reports: dict[str, SandboxReport | str] = {}
_lock = threading.Lock()


def get_sandbox(require: str = "auto") -> Sandbox:
    """This process's sandbox of the required strength, started if need be.

    require: "strong" is the best backend whose self-test found every isolation in force; "auto" is the same, or, with
    a warning, the plain one; a backend's name is that backend and no other.
    Raises ValueError for any other word, SandboxUnavailable when the machine cannot do it.
    """
    if require not in REQUIREMENTS:
        raise ValueError(f"require={require!r}; use one of {', '.join(REQUIREMENTS)}")
    with _lock:
        if require in BACKENDS:
            return _open(BACKENDS[require], must_be_strong=False)
        for backend in BACKENDS.values():
            with contextlib.suppress(SandboxUnavailable):
                return _open(backend, must_be_strong=True)
        tried = "; ".join(f"{name}: {_why(outcome)}" for name, outcome in _reports.items())
        if require == "strong":
            raise SandboxUnavailable(f"no backend isolates programs on this machine ({tried})")
        is_new = "plain" not in _sandboxes
        sandbox = _open(BACKENDS["plain"], must_be_strong=False)
        if is_new:
            warnings.warn(
                f"programs run without a security boundary on this machine ({tried}); they can read your files and use"
                " the network. Pass require='strong' to refuse that",
                RuntimeWarning,
                stacklevel=3,
            )
        return sandbox


def sandbox_report(require: str = "auto") -> SandboxReport:
    """What the sandbox that `require` selects enforces here, as found by trying; see `get_sandbox`.

    Call it before a long job: it raises SandboxUnavailable where the first program would.
    """
    return get_sandbox(require).report


def close_sandboxes() -> None:
    """Ends every fork server of this process; the next program starts new ones. No program may be running."""
    with _lock:
        for sandbox in _sandboxes.values():
            sandbox.close()
        _sandboxes.clear()


def _open(backend: Backend, must_be_strong: bool) -> Sandbox:
    if backend.name in _sandboxes:
        sandbox = _sandboxes[backend.name]
        if must_be_strong and not sandbox.report.is_strong:
            raise SandboxUnavailable(backend.name)
        return sandbox
    if backend.name not in _reports:
        _reports[backend.name] = _examine(backend)
    report = _reports[backend.name]
    if isinstance(report, str) or (must_be_strong and not report.is_strong):
        raise SandboxUnavailable(f"{backend.name}: {_why(report)}")
    _sandboxes[backend.name] = Sandbox(backend, report, min(MAX_WORKERS, _cores()))
    return _sandboxes[backend.name]


def _examine(backend: Backend) -> SandboxReport | str:
    """The self-test's report, or why the backend cannot run at all."""
    if missing := backend.missing():
        return missing
    try:
        server = ForkServer(backend)
    except SandboxUnavailable as error:
        return str(error)
    try:
        return probe(backend.name, server)
    except SandboxUnavailable as error:
        return str(error)
    finally:
        server.close()


def _why(outcome: SandboxReport | str) -> str:
    if isinstance(outcome, str):
        return outcome
    return "not enforced: " + ", ".join(outcome.missing) if outcome.missing else "works"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _forget_after_fork() -> None:
    """The child of a fork starts its own servers; the parent's stay the parent's."""
    global _lock
    _lock = threading.Lock()  # Some other thread may have held it.
    for sandbox in _sandboxes.values():
        sandbox.forget()
    _sandboxes.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
atexit.register(close_sandboxes)
