"""The fork server: a warm interpreter that forks one locked-down process per run.

It never sees a program, an input or an expected output: those travel between the trainer and the forked process. It
starts before any data reaches it, by exec, with an empty environment.

    control socket   trainer -> {"limits": {..}} with 4 descriptors (stdin, stdout, stderr, channel); {"kill": true}
                     here    -> {"ready": {..}} once; {"exit": wait status, "cpu_s", "memory_bytes", "disk_limit"} a run
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any, NoReturn

from . import candidate, privileges, tester
from .channel import Channel
from .cleanup import empty_directory, usage
from .limits import Limits
from .lockdown import Lock

WARM_MODULES = (
    "abc", "array", "bisect", "cmath", "collections", "contextlib", "copy", "ctypes", "dataclasses", "datetime",
    "decimal", "enum", "fractions", "functools", "hashlib", "heapq", "io", "itertools", "json", "math", "numbers",
    "operator", "queue", "random", "re", "statistics", "string", "textwrap", "threading", "time", "traceback", "types",
    "typing",
)  # fmt: skip
"""What programs import most: a fork shares it for nothing."""

DISK_CHECK_S = 0.02
CLEAN_UP_S = 1.0


def main() -> None:
    """Arguments: the control socket's descriptor, a directory of our own, "locked" or "plain"."""
    control = socket.socket(fileno=int(sys.argv[1]))
    directory, locked = sys.argv[2], sys.argv[3] == "locked"
    os.umask(0o077)
    for name in WARM_MODULES:
        importlib.import_module(name)
    privileges.adopt_orphans()
    lock = Lock.prepare(directory, use_kernel=locked)
    gc.disable()
    gc.freeze()
    _send(control, {"ready": {"landlock_abi": lock.landlock_abi}})
    _serve(control, directory, lock)
    with contextlib.suppress(OSError):  # A mount point under bubblewrap, which vanishes with this process.
        os.rmdir(directory)


def _serve(control: socket.socket, directory: str, lock: Lock) -> None:
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 4)
        if not message:
            return  # The trainer is gone.
        # A kill that came after its run had ended lies before the next request.
        request = json.loads(message.splitlines()[-1])
        if "kill" in request:
            continue
        if not _run(control, directory, lock, Limits(**request["limits"]), descriptors):
            return


def _run(control: socket.socket, directory: str, lock: Lock, limits: Limits, descriptors: list[int]) -> bool:
    """One process from fork to clean-up. False when the trainer went away meanwhile."""
    fork_server = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become_sandbox(descriptors, directory, lock, limits, fork_server)
    for descriptor in descriptors:
        os.close(descriptor)
    is_trainer_there, disk_limit = _wait(control, pid, directory, limits)
    _kill_group(pid)
    _, status, used = os.wait4(pid, 0)
    _kill_orphans()
    if is_trainer_there:
        memory = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        cpu_s = used.ru_utime + used.ru_stime
        _send(control, {"exit": status, "cpu_s": cpu_s, "memory_bytes": memory, "disk_limit": disk_limit})
    # After the answer: a hostile tree of directories takes seconds. The next process waits, and no clock runs yet.
    os.makedirs(directory, exist_ok=True)
    os.chmod(directory, 0o700)
    empty_directory(directory)
    return is_trainer_there


def _become_sandbox(descriptors: list[int], directory: str, lock: Lock, limits: Limits, fork_server: int) -> NoReturn:
    status = 1
    try:
        os.setsid()
        for target, descriptor in enumerate(descriptors):  # Ascending and above 2, so none is overwritten unread.
            os.dup2(descriptor, target)
        channel = Channel(socket.socket(fileno=3))
        os.chdir(directory)
        os.environ.update(HOME=directory, TMPDIR=directory)
        sys.argv = ["program.py"]
        try:
            lock.apply(limits, fork_server)
        except OSError as error:
            channel.send({"ready": False, "error": str(error)})
        else:
            gc.enable()
            channel.send({"ready": True})
            status = _do_job(channel)
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _do_job(channel: Channel) -> int:
    job = channel.receive()
    if job is None:
        return 0
    if job["mode"] == "script":
        return candidate.run_script(job)
    return {"functions": candidate.serve_functions, "tests": tester.serve_tests}[job["mode"]](channel, job)


def _wait(control: socket.socket, pid: int, directory: str, limits: Limits) -> tuple[bool, bool]:
    """Until the process ends, the trainer wants it killed, or its files exceed the limit.

    Gives (is the trainer still there, was it the disk limit).
    """
    try:
        ended = os.pidfd_open(pid)
    except (AttributeError, OSError):
        ended = None  # No such call here: look every so often instead.
    try:
        while True:
            tick = DISK_CHECK_S if ended is not None else 0.005
            ready, _, _ = select.select([control, *([] if ended is None else [ended])], [], [], tick)
            if control in ready:
                return bool(control.recv(1 << 16)), False
            if ready or (ended is None and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
                return True, False
            used_bytes, used_files = usage(directory, limits.disk_files)
            if used_bytes > limits.disk_bytes or used_files > limits.disk_files:
                return True, True
    finally:
        if ended is not None:
            os.close(ended)


def _kill_group(pid: int) -> None:
    for kill in (os.killpg, os.kill):  # The group does not exist before setsid.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def _kill_orphans() -> None:
    """Ends what a program of the plain backend left behind; the others cannot start processes."""
    deadline = time.monotonic() + CLEAN_UP_S
    while time.monotonic() < deadline:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            for child in _children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            time.sleep(0.001)


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


def _send(control: socket.socket, message: dict[str, Any]) -> None:
    control.sendall(json.dumps(message).encode() + b"\n")
