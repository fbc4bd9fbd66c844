"""Programs that tests start, and that do not outlive them."""

import contextlib
import os
import signal
import socket
import subprocess

import pytest


def run_program(command: list, timeout: float = 300, **options) -> subprocess.CompletedProcess:
    """`subprocess.run` with the output as text; past the time limit (seconds) the test fails and shows that output.

    The whole process group is killed then: a launcher's workers would hold the pipes open, and reading them until
    their end, as `subprocess.run` does, would never finish.
    """
    process = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_group(process)
        out, err = process.communicate(timeout=60)
        pytest.fail(f"not finished after {timeout} s: {process.args}\n{out[-2000:]}\n{err[-4000:]}")
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def kill_group(process: subprocess.Popen) -> None:
    """Kills a process started in a new session, and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
