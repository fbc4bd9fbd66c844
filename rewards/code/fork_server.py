"""The trainer's end of a fork server."""

import contextlib
import json
import os
import socket
import subprocess
import tempfile
from typing import Any

from rewards.code.backends import ENVIRONMENT, INNER_DIRECTORY, Backend
from rewards.code.jail.cleanup import remove_tree
from rewards.code.jail.limits import Limits
from rewards.code.process import SandboxedProcess
from rewards.code.results import SandboxUnavailable

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 3.0


class ForkServer:
    """A warm interpreter that starts one process at a time. Raises SandboxUnavailable when it cannot be started."""

    def __init__(self, backend: Backend):
        self._backend = backend
        self.runs = 0
        self.is_lost = False
        self._directory = None if backend.is_wrapped else tempfile.mkdtemp(prefix="rewards-code-")
        self._control, other_end = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                backend.command(other_end.fileno(), self._directory or INNER_DIRECTORY),
                pass_fds=[other_end.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=ENVIRONMENT,
                cwd="/",
                start_new_session=True,  # Ctrl-C is for the trainer.
            )
        except OSError as error:
            self._control.close()
            self._remove_directory()
            raise SandboxUnavailable(f"{backend.name}: {error}") from error
        finally:
            other_end.close()
        self.landlock_abi: int = self._wait_until_ready()["landlock_abi"]

    def _wait_until_ready(self) -> dict[str, Any]:
        self._control.settimeout(START_TIMEOUT_S)
        try:
            ready = self._control.recv(1 << 16)
        except OSError:
            ready = b""
        if not ready:
            self._process.kill()
            message = self._process.stderr.read().decode(errors="replace").strip()
            self.close()
            raise SandboxUnavailable(f"{self._backend.name} did not start: {message[-500:] or 'no message'}")
        self._control.settimeout(None)
        self._process.stderr.close()
        return json.loads(ready)["ready"]

    def start(self, limits: Limits, stdin: bytes = b"") -> SandboxedProcess:
        """Forks a locked-down process. Close it before starting the next."""
        self.runs += 1
        return SandboxedProcess(self._control, self._backend.name, limits, stdin)

    def close(self) -> None:
        """Ends the server and removes its directory. Idempotent."""
        self._control.close()  # It ends by itself then, its process first.
        self._process.stderr.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._remove_directory()

    def _remove_directory(self) -> None:
        if self._directory is not None:
            remove_tree(self._directory)

    def forget(self) -> None:
        """In a forked child: drops the copy of the connection, so that the server ends with its own trainer."""
        with contextlib.suppress(OSError):
            os.close(self._control.detach())
