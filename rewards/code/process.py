"""One sandboxed process, seen from the trainer."""

import json
import os
import select
import signal
import socket
import tempfile
import time
from dataclasses import asdict
from typing import Any

from rewards.code.jail.limits import Limits
from rewards.code.jail.values import MAX_DEPTH
from rewards.code.results import ExecutionResult

READ_SIZE = 1 << 16
MAX_NESTING = 4 * MAX_DEPTH  # A dict takes three levels of JSON.
GRACE_S = 5.0
"""How long a fork server may take to report the death of a process it was told to kill."""


class ProcessEnded(Exception):
    """The process is over: it exited, or was stopped for `SandboxedProcess.stop_reason`."""


class SandboxedProcess:
    """A process forked by a fork server, its output and the messages to and from it.

    Nothing it does can block or flood this side: every wait has a deadline, everything read a limit.
    """

    def __init__(self, control: socket.socket, backend: str, limits: Limits, stdin: bytes = b""):
        self._control, self._backend, self._limits = control, backend, limits
        self._started = time.monotonic()
        self._exit: dict[str, Any] | None = None
        self.stop_reason: str | None = None
        self.is_server_lost = False
        self._inbox, self._outbox = bytearray(), bytearray()
        self._output = {"stdout": bytearray(), "stderr": bytearray()}
        self._launch(stdin)

    def _launch(self, stdin: bytes) -> None:
        stdout, stdout_end = os.pipe()
        stderr, stderr_end = os.pipe()
        self._channel, channel_end = socket.socketpair()
        input_file = _input_file(stdin)
        self._pipes = {stdout: "stdout", stderr: "stderr"}
        for descriptor in self._pipes:
            os.set_blocking(descriptor, False)
        self._channel.setblocking(False)
        self._poller = select.poll()
        for descriptor in (self._control, self._channel, *self._pipes):
            self._poller.register(descriptor, select.POLLIN)
        request = json.dumps({"limits": asdict(self._limits)}).encode() + b"\n"
        ends = [input_file, stdout_end, stderr_end, channel_end.fileno()]
        try:
            socket.send_fds(self._control, [request], ends)
        except OSError:
            self._lose_server()
        finally:
            channel_end.close()
            for descriptor in ends[:3]:
                os.close(descriptor)

    def send(self, message: dict[str, Any]) -> None:
        """Queues a message; it leaves while `receive` or `wait` runs."""
        self._outbox += json.dumps(message).encode() + b"\n"
        if self._exit is None and self._channel.fileno() >= 0:
            self._poller.modify(self._channel, select.POLLIN | select.POLLOUT)

    def receive(self, deadline: float) -> Any:
        """The next message, untrusted: any JSON value, or None for a line that is not JSON or nested too deep.

        Raises ProcessEnded; at the deadline (on `time.monotonic`'s clock) after stopping the process.
        """
        while (end := self._inbox.find(b"\n")) < 0:
            if self._exit is not None or self.is_server_lost:
                raise ProcessEnded
            self._pump(deadline)
        line = bytes(self._inbox[:end])
        del self._inbox[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return None
        return None if _is_deeper(message, MAX_NESTING) else message

    def has_unread(self) -> bool:
        return bool(self._inbox)

    def wait(self, deadline: float) -> None:
        """Until the process has ended, which is made sure of at the deadline."""
        while self._exit is None and not self.is_server_lost:
            self._pump(deadline)

    def stop(self, reason: str) -> None:
        """Kills the process and waits for its end. The first reason given is kept."""
        if self._exit is not None or self.is_server_lost:
            return
        self.stop_reason = self.stop_reason or reason
        try:
            self._control.sendall(b'{"kill": true}\n')
        except OSError:
            return self._lose_server()
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        if poller.poll(GRACE_S * 1000):
            self._read_exit()
        else:
            self._lose_server()

    def close(self) -> None:
        """Stops the process if it still runs and frees everything. Idempotent."""
        self.stop("closed")
        for descriptor in self._pipes:
            os.close(descriptor)
        self._pipes = {}
        self._channel.close()

    def result(self) -> ExecutionResult:
        """How it ended; call after `wait` or `stop`."""
        record = self._exit or {"exit": 0, "cpu_s": 0.0, "memory_bytes": 0}
        stdout, stderr = (text.decode("utf-8", "replace") for text in self._output.values())
        code = os.waitstatus_to_exitcode(record["exit"]) if self._exit and not self.stop_reason else None
        return ExecutionResult(
            status=self.status(),
            stdout=stdout,
            stderr=stderr,
            exit_code=code if code is not None and code >= 0 else None,
            wall_s=time.monotonic() - self._started,
            cpu_s=record["cpu_s"],
            memory_bytes=record["memory_bytes"],
            backend=self._backend,
        )

    def status(self) -> str:
        if self._exit is None:
            return "sandbox_error"
        if self.stop_reason:
            return self.stop_reason
        if self._exit["disk_limit"]:
            return "disk_limit"
        code = os.waitstatus_to_exitcode(self._exit["exit"])
        if code == 0:
            return "ok"
        if code > 0:
            last_line = bytes(self._output["stderr"]).rstrip().rpartition(b"\n")[2]
            return "memory" if last_line.startswith(b"MemoryError") else "exception"
        is_out_of_cpu = code == -signal.SIGXCPU or self._exit["cpu_s"] >= self._limits.wall_s
        return "timeout" if is_out_of_cpu else "crash"

    def _pump(self, deadline: float) -> None:
        """Moves what can be moved, or waits for it until the deadline."""
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return self.stop("timeout")
        for descriptor, event in self._poller.poll(remaining * 1000 + 1):
            if descriptor in self._pipes:
                self._read_output(descriptor)
            elif descriptor == self._channel.fileno():
                self._exchange(event)
            else:
                self._read_exit()
            if self._exit is not None or self.is_server_lost:
                return

    def _read_output(self, descriptor: int) -> None:
        data = _read(descriptor)
        if data == b"":
            self._poller.unregister(descriptor)
        output = self._output[self._pipes[descriptor]]
        output += (data or b"")[: self._limits.output_bytes - len(output)]
        if data and len(output) >= self._limits.output_bytes:
            self.stop("output_limit")

    def _exchange(self, event: int) -> None:
        try:
            if event & select.POLLOUT:
                del self._outbox[: self._channel.send(self._outbox[: 1 << 18])]
                if not self._outbox:
                    self._poller.modify(self._channel, select.POLLIN)
            if event & ~select.POLLOUT:
                data = self._channel.recv(READ_SIZE)
                if not data:
                    self._poller.unregister(self._channel)
                self._inbox += data
        except BlockingIOError:
            return
        except OSError:  # The process closed its end.
            self._poller.unregister(self._channel)
        if len(self._inbox) > self._limits.output_bytes:
            self.stop("output_limit")

    def _read_exit(self) -> None:
        try:
            record = self._control.recv(READ_SIZE)
        except OSError:
            record = b""
        if not record:
            return self._lose_server()
        self._exit = json.loads(record)
        # What it wrote last.
        buffers = {descriptor: self._output[name] for descriptor, name in self._pipes.items()}
        for descriptor, buffer in {**buffers, self._channel.fileno(): self._inbox}.items():
            while (data := _read(descriptor)) and len(buffer) < self._limits.output_bytes:
                buffer += data[: self._limits.output_bytes - len(buffer)]
            if len(buffer) >= self._limits.output_bytes:
                self.stop_reason = self.stop_reason or "output_limit"

    def _lose_server(self) -> None:
        self.is_server_lost = True


def _is_deeper(value: Any, limit: int) -> bool:
    """Whether lists and dicts are nested beyond the limit, found without recursion."""
    level = [value]
    for _ in range(limit):
        level = [
            child
            for item in level
            if type(item) in (list, dict)
            for child in (item.values() if type(item) is dict else item)
        ]
        if not level:
            return False
    return True


def _read(descriptor: int) -> bytes | None:
    """None when nothing is there now, b"" when nothing will come."""
    try:
        return os.read(descriptor, READ_SIZE)
    except BlockingIOError:
        return None
    except ConnectionResetError:  # A socket whose other end was closed with something unread.
        return b""


def _input_file(data: bytes) -> int:
    """A descriptor to read `data` from. A file, because a pipe would need somebody to feed it."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("stdin", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
