"""Running a task's own test code (asserts, `check(candidate)`) apart from the program under test.

The test code is the task author's; the program's functions are proxies here, which send their arguments out and get
plain values back. So no object of the program, with an `__eq__` of its own, ever takes part in an assert.
"""

import builtins
from collections.abc import Callable
from typing import Any

from .channel import Channel
from .values import decode, encode

CONTROL_FLOW = (StopIteration, StopAsyncIteration)
"""Exceptions that end a loop of the test quietly: a program that raises them must not shorten its own test."""


class UnsupportedTest(BaseException):
    """The test needs more than plain values of the program. Not an Exception: tests may catch those."""


class CandidateError(Exception):
    """Raised in the test for an exception of the program that is not a usual built-in one."""


class TestNamespace(dict):
    """Globals of the test code in which a name that neither it nor Python defines is a function of the program."""

    def __init__(self, call: Callable[..., Any]):
        super().__init__(__name__="tests", __builtins__=builtins)
        self._call = call

    def __missing__(self, name: str) -> "CandidateFunction":
        if hasattr(builtins, name) or (name.startswith("__") and name.endswith("__")):
            raise KeyError(name)
        return CandidateFunction(name, self._call)


class CandidateFunction:
    """Stands for a function of the program."""

    def __init__(self, name: str, call: Callable[..., Any]):
        self.__name__ = self.__qualname__ = name
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(self.__name__, args, kwargs)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        raise UnsupportedTest(f"the test uses {self.__name__}.{attribute}; only calls reach the program")


def serve_tests(channel: Channel, job: dict[str, Any]) -> int:
    """Runs `job["setup"]`, then the tests that the trainer sends, and reports on each."""
    calls = _Calls(channel)
    namespace = TestNamespace(calls)
    channel.send(_run(job["setup"], "<setup>", namespace))
    for name in job["entry_points"]:  # After the setup, whose stub has the same name.
        namespace[name.split("(")[0]] = CandidateFunction(name, calls)
    while (test := channel.receive()) is not None:
        channel.send(_run(test["code"], "<test>", namespace))
    return 0


def _run(code: str, filename: str, namespace: TestNamespace) -> dict[str, Any]:
    try:
        exec(compile(code, filename, "exec", dont_inherit=True), namespace)
    except UnsupportedTest as error:
        return {"passed": False, "unsupported": True, "error": str(error)}
    except BaseException as error:
        return {"passed": False, "unsupported": False, "error": f"{type(error).__name__}: {error}"[:500]}
    return {"passed": True}


class _Calls:
    """Sends a call to the trainer, which passes it on, and waits for the value."""

    def __init__(self, channel: Channel):
        self._channel = channel

    def __call__(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            plain_args = [encode(value) for value in args]
            plain_kwargs = {key: encode(value) for key, value in kwargs.items()}
        except TypeError as error:
            raise UnsupportedTest(f"an argument of {name}(): {error}") from None
        except ValueError as error:  # Too deep or too big, as only a value of the program can make it.
            raise CandidateError(f"an argument of {name}(): {error}") from None
        self._channel.send({"call": name, "args": plain_args, "kwargs": plain_kwargs})
        reply = self._channel.receive()
        if reply is None:
            raise SystemExit(1)
        if "error" in reply:
            raise _exception(str(reply["error"]), str(reply.get("message", "")))
        try:
            return decode(reply["value"])
        except (ValueError, RecursionError) as error:
            raise CandidateError(f"{name}() returned no plain value: {error}") from None


def _exception(name: str, message: str) -> Exception:
    kind = getattr(builtins, name, None)
    usual = isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, CONTROL_FLOW)
    if not usual or issubclass(kind, UnicodeError | BaseExceptionGroup):  # These take other arguments.
        return CandidateError(f"{name}: {message}")
    return kind(message)
