"""The parent's side of the sympy worker: started when first needed, killed when late, replaced, counted.

No signal handler and no timer: a thread reads the replies, and whoever waits for one waits as long as it may. So it
works in any thread, under asyncio, and in forked or spawned processes (a fork starts with no workers of its own).
"""

import atexit
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

from rewards.math.exact import Deadline, OutOfTime
from rewards.math.nodes import Node
from rewards.math.symbolic import encode

MAX_WORKERS = max(1, min(4, (os.cpu_count() or 2) // 2))
AFTER_STARTUP_S = 0.5
"""Left at least to the check that had to wait for its worker to start (about a second, once per process)."""
MAX_REQUESTS = 2000
"""After which a worker is replaced: sympy's caches only grow."""


class WorkerError(RuntimeError):
    """No reply for a reason that says nothing about the answer: all workers are busy, or one does not start."""


class Worker:
    """One process that holds sympy."""

    def __init__(self):
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rewards.math.symbolic"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,
        )
        self.replies: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.is_ready = False
        self.num_requests = 0
        threading.Thread(target=self._read_replies, daemon=True, name="sympy worker replies").start()

    def _read_replies(self) -> None:
        for line in self.process.stdout:
            self.replies.put(line)
        self.replies.put(None)

    def _reply(self, deadline: Deadline) -> dict | None:
        """The next reply, or None when the process has ended. Raises queue.Empty at the deadline."""
        line = self.replies.get(timeout=max(deadline.left(), 0.001))
        return None if line is None else json.loads(line)

    def wait_until_ready(self, deadline: Deadline) -> None:
        """Raises WorkerError when it is not ready by then; it may go on starting for the next question."""
        try:
            self.is_ready = self._reply(deadline) is not None
        except queue.Empty:
            raise WorkerError("the sympy worker is still starting") from None
        if not self.is_ready:
            raise WorkerError("the sympy worker could not start")

    def ask(self, request: dict, deadline: Deadline) -> bool | None:
        """True, False or None; None also when the process dies of the question. Raises OutOfTime."""
        self.num_requests += 1
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            reply = self._reply(deadline)
        except queue.Empty:
            raise OutOfTime from None
        except BrokenPipeError:
            return None
        return reply["equal"] if reply else None

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """Ends the process, if need be, and collects it."""
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


class WorkerPool:
    """Up to MAX_WORKERS workers, each used by one caller at a time."""

    def __init__(self):
        self.slots = threading.BoundedSemaphore(MAX_WORKERS)
        self.idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        self.counts: Counter[str] = Counter()

    def same(self, task: str, gold: Node, answer: Node, deadline: Deadline) -> bool | None:
        """What sympy says: equal, different, or None. Raises OutOfTime (the worker is killed) and WorkerError."""
        if not self.slots.acquire(timeout=max(deadline.left(), 0)):
            raise WorkerError("all sympy workers are busy")
        try:
            return self._ask(self._take(), {"task": task, "gold": encode(gold), "answer": encode(answer)}, deadline)
        finally:
            self.slots.release()

    def _take(self) -> Worker:
        while True:
            try:
                worker = self.idle.get_nowait()
            except queue.Empty:
                self.counts["started"] += 1
                return Worker()
            if worker.is_alive():
                return worker
            worker.kill()

    def _ask(self, worker: Worker, request: dict, deadline: Deadline) -> bool | None:
        keep = False
        try:
            if not worker.is_ready:
                worker.wait_until_ready(deadline)
                deadline = Deadline(max(deadline.left(), AFTER_STARTUP_S))
            equal = worker.ask(request, deadline)
            keep = worker.is_alive() and worker.num_requests < MAX_REQUESTS
            return equal
        except OutOfTime:
            self.counts["timeouts"] += 1
            raise
        except WorkerError:
            keep = not worker.is_ready and worker.is_alive()
            self.counts["errors"] += 1
            raise
        finally:
            if keep:
                self.idle.put(worker)
            else:
                worker.kill()
                self.counts["killed"] += 1

    def close(self) -> None:
        """Ends the idle workers."""
        while not self.idle.empty():
            self.idle.get_nowait().kill()


_pool = WorkerPool()


def pool() -> WorkerPool:
    """This process's workers."""
    return _pool


def _start_afresh() -> None:
    global _pool
    _pool = WorkerPool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)
atexit.register(lambda: _pool.close())
