"""Where and how often the sandbox works: threads, event loops, forks, spawned processes, many runs; what it reports."""

import asyncio
import multiprocessing
import os
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import rewards
from rewards import load_reward
from rewards.code import SandboxUnavailable, close_sandboxes, pool, run_program, run_tests, sandbox_report
from rewards.code.backends import BACKENDS

ROOT = Path(rewards.__file__).parents[1]


def squared(number: int, backend: str) -> str:
    return run_program("print(int(input()) ** 2)", str(number), timeout_s=30, require=backend).stdout.strip()


def children() -> list[int]:
    """Processes that this one started, bubblewrap's included."""
    command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(os.getpid())]
    listing = subprocess.run(command, capture_output=True, text=True)
    return [int(line.split()[0]) for line in listing.stdout.splitlines() if "jail.zygote" in line]


def server_directories() -> set[str]:
    return {name for name in os.listdir(tempfile.gettempdir()) if name.startswith("rewards-code-")}


def test_threads(backend):
    with ThreadPoolExecutor(6) as executor:
        assert list(executor.map(lambda n: squared(n, backend), range(12))) == [str(n * n) for n in range(12)]


def test_asyncio(backend):
    async def run():
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(None, squared, n, backend) for n in range(4)))

    assert asyncio.run(run()) == ["0", "1", "4", "9"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes(method, backend):
    """Forked after the parent has used it, and with an import of their own."""
    assert squared(2, backend) == "4"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks where there are threads.
        with multiprocessing.get_context(method).Pool(2) as workers:
            assert workers.starmap(squared, [(3, backend), (4, backend)]) == ["9", "16"]
    assert squared(5, backend) == "25"


def test_a_thread_that_ends_takes_nothing_with_it(backend):
    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(squared, 3, backend).result() == "9"
    assert squared(4, backend) == "16"


def test_many_runs_leave_nothing(backend):
    run_program("", require=backend)
    before = len(os.listdir("/proc/self/fd")), len(children())
    for number in range(60):
        code = f"import os; os.mkdir('d{number}'); print({number}); os._exit({number % 3})"
        assert run_program(code, timeout_s=30, require=backend).stdout in ("", f"{number}\n")
    assert (len(os.listdir("/proc/self/fd")), len(children())) == before


def test_closing_leaves_nothing(backend):
    close_sandboxes()
    before = server_directories()
    assert squared(3, backend) == "9" and children()
    close_sandboxes()
    close_sandboxes()
    assert children() == [] and server_directories() <= before
    assert squared(3, backend) == "9"


@pytest.mark.parametrize("end", ["", "os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_nothing_outlives_the_trainer(end, backend):
    before = server_directories()
    script = f"""
        import os
        from rewards.code import pool, run_program
        run_program("", timeout_s=30, require={backend!r})
        print(pool.get_sandbox({backend!r})._idle[0]._servers["program"]._process.pid, flush=True)
        {end}
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert run.stdout, run.stderr
    server = Path("/proc") / run.stdout.strip()
    deadline = time.monotonic() + 30
    while (server.exists() or server_directories() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not server.exists() and server_directories() <= before


def test_a_lost_fork_server_is_replaced(backend):
    assert squared(3, backend) == "9"
    for worker in pool.get_sandbox(backend)._all:
        for server in worker._servers.values():
            server._process.kill()
            server._control.shutdown(2)
    assert squared(3, backend) == "9"


def test_the_report_says_what_is_enforced(backend):
    report = sandbox_report(backend)
    assert report.is_strong and report.missing == () and report.backend == backend
    assert "network" in report.enforced and "isolating" in str(report)


def test_plain_is_no_boundary_and_says_so(monkeypatch):
    """As on a system without Landlock and bubblewrap."""
    monkeypatch.setattr(pool, "_sandboxes", {})
    monkeypatch.setattr(pool, "_reports", {"bwrap": "there is none", "landlock": "there is none"})
    with pytest.raises(SandboxUnavailable, match="bwrap: there is none; landlock: there is none"):
        run_program("print(1)", require="strong")
    with pytest.raises(SandboxUnavailable, match="bwrap: there is none"):
        load_reward("code", require="strong")  # before training starts, not at its first step
    with pytest.raises(SandboxUnavailable, match="landlock: there is none"):
        run_program("print(1)", require="landlock")
    with pytest.warns(RuntimeWarning, match="without a security boundary"):
        result = run_program("print(1)", timeout_s=30)
    assert (result.stdout, result.backend) == ("1\n", "plain")
    report = sandbox_report()
    assert not report.is_strong and "network" in report.missing and "NOT a security boundary" in str(report)
    with pytest.raises(SandboxUnavailable, match="plain: not enforced: .*network"):
        run_program("print(1)", require="strong")
    test = {"type": "call", "args": [3], "expected": 10, "entry_point": "f"}
    assert run_tests("def f(n):\n    return n * n + 1\n", [test], require="plain", timeout_s=30).passed == 1
    close_sandboxes()


def test_a_backend_that_cannot_start_is_reported(monkeypatch):
    monkeypatch.setattr(pool, "_sandboxes", {})
    monkeypatch.setattr(pool, "_reports", {})
    monkeypatch.setattr("rewards.code.backends.interpreter", lambda: "/nonexistent/python")
    with pytest.raises(SandboxUnavailable, match="plain: .*No such file"):
        sandbox_report("plain")
    assert not server_directories() - server_directories()


def test_strongest_first():
    assert list(BACKENDS) == ["bwrap", "landlock", "plain"]
