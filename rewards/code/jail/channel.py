"""Messages between the trainer and a sandboxed process: one JSON object a line."""

import json
import socket
from typing import Any


class Channel:
    """The sandboxed side: blocking, and ended by the other side."""

    def __init__(self, connection: socket.socket):
        # Bound now, because the program may replace these functions.
        self._dumps, self._loads = json.dumps, json.loads
        self._send = connection.sendall
        self._lines = connection.makefile("rb")

    def send(self, message: dict[str, Any]) -> None:
        self._send(self._dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """The next message; None when the trainer hung up."""
        line = self._lines.readline()
        return self._loads(line) if line else None
