"""The self-test: a program of ours tries, from inside, what the sandbox claims to refuse."""

import json
import os
import shutil
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rewards.code.fork_server import ForkServer
from rewards.code.jail.limits import MIB, Limits
from rewards.code.process import ProcessEnded
from rewards.code.results import SandboxUnavailable

TIMEOUT_S = 20.0
PROBE_LIMITS = Limits(wall_s=TIMEOUT_S, memory_bytes=512 * MIB, file_bytes=MIB, open_files=32, threads=16)

STRONG = (
    "reading files", "writing files", "changing files", "network", "new processes", "new programs", "signals",
    "memory of others", "memory limit", "file size limit", "open files limit",
)  # fmt: skip
"""What a backend must enforce to count as an isolating one."""

PROGRAM = r"""
import errno, json, os, socket, threading

def refused(attempt):
    try:
        attempt()
    except (OSError, MemoryError, RuntimeError) as error:
        return getattr(error, "errno", None) != errno.ENOENT or attempt in may_be_absent
    return False

def read_canary():
    open(canary).read()

def write_outside():
    open(canary + ".written", "w")

def change_canary():
    os.chmod(canary, 0o666)

def connect():
    socket.create_connection(("127.0.0.1", port), timeout=2)

def fork():
    if os.fork() == 0:
        os._exit(0)

def execute():
    os.execv("/nonexistent", ["nonexistent"])

def signal_parent():
    os.kill(os.getppid(), 0)

def read_parent():
    open(f"/proc/{os.getppid()}/mem", "rb").read(0)

def fill_memory():
    bytearray(1 << 30)

def write_big_file():
    with open("big", "wb") as file:
        file.write(bytes(2 << 20))

def open_many():
    files = [open("many%d" % i, "w") for i in range(64)]

def start_threads():
    go = threading.Event()
    try:
        for _ in range(40):
            threading.Thread(target=go.wait, daemon=True).start()
    finally:
        go.set()

may_be_absent = (read_canary, write_outside, change_canary, read_parent)
print(json.dumps({
    "reading files": refused(read_canary),
    "writing files": refused(write_outside),
    "changing files": refused(change_canary),
    "network": refused(connect),
    "new processes": refused(fork),
    "new programs": refused(execute),
    "signals": refused(signal_parent),
    "memory of others": refused(read_parent),
    "memory limit": refused(fill_memory),
    "file size limit": refused(write_big_file),
    "open files limit": refused(open_many),
    "thread limit": refused(start_threads),
}))
"""


@dataclass(frozen=True)
class SandboxReport:
    """What a backend enforces on this machine, each entry found by an attempt from inside."""

    backend: str
    enforced: dict[str, bool]
    landlock_abi: int
    start_s: float
    """Seconds from asking for a process to its end, the self-test included."""

    @property
    def missing(self) -> tuple[str, ...]:
        """What it lacks to be a security boundary."""
        return tuple(name for name in STRONG if not self.enforced.get(name))

    @property
    def is_strong(self) -> bool:
        return not self.missing

    def __str__(self) -> str:
        lines = [f"{self.backend}: {'isolating' if self.is_strong else 'NOT a security boundary'}"]
        lines += [f"  {'enforced' if works else 'NOT enforced':<13} {name}" for name, works in self.enforced.items()]
        return "\n".join(lines)


def probe(backend: str, server: ForkServer) -> SandboxReport:
    """Runs the self-test. Raises SandboxUnavailable when it does not come to an end."""
    directory = Path(tempfile.mkdtemp(prefix="rewards-probe-"))
    canary = directory / "canary"
    canary.write_text("untouched")
    os.chmod(directory, 0o755)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        try:
            setting = f"canary = {str(canary)!r}; port = {listener.getsockname()[1]}\n"
            started = time.monotonic()
            enforced = _attempt(backend, server, setting + PROGRAM)
            seconds = time.monotonic() - started
            # What the program says is checked from outside where that is possible.
            enforced["writing files"] &= not (directory / "canary.written").exists()
            enforced["changing files"] &= canary.stat().st_mode & 0o777 != 0o666
            enforced["network"] &= not _was_reached(listener)
        finally:
            shutil.rmtree(directory)
    return SandboxReport(backend, enforced, server.landlock_abi, seconds)


def _attempt(backend: str, server: ForkServer, code: str) -> dict[str, bool]:
    process = server.start(PROBE_LIMITS)
    try:
        deadline = time.monotonic() + TIMEOUT_S
        ready = process.receive(deadline)
        if not ready.get("ready"):
            raise SandboxUnavailable(f"{backend}: {ready.get('error')}")
        process.send({"mode": "script", "code": code})
        process.wait(deadline)
        result = process.result()
        return json.loads(result.stdout)
    except (ProcessEnded, ValueError) as error:
        result = process.result()
        raise SandboxUnavailable(f"{backend}: the self-test failed: {result.status} {result.stderr[-300:]}") from error
    finally:
        process.close()


def _was_reached(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True
