"""Running a candidate program: as a script, or as a module whose functions are called.

Nothing here is trusted once the program runs: it shares this process. It knows no expected output, and what it sends is
only ever compared by others.
"""

import atexit
import builtins
import sys
import threading
import traceback
import types
from typing import Any

from .channel import Channel
from .values import decode, encode

MAX_MESSAGE = 500


def run_script(job: dict[str, Any]) -> int:
    """Runs `job["code"]` as `__main__`, its threads and exit handlers included; the exit status."""
    module = _new_module("__main__")
    status = 0
    try:
        exec(compile(job["code"], "<program>", "exec", dont_inherit=True), module.__dict__)
    except SystemExit as stop:
        status = _exit_status(stop)
    except BaseException as error:
        _print_traceback(error)
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    return status


def serve_functions(channel: Channel, job: dict[str, Any]) -> int:
    """Loads `job["code"]`, then answers calls of what it defines until the trainer hangs up."""
    module = _new_module("solution")
    try:
        exec(compile(job["code"], "<program>", "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        _print_traceback(error)
        channel.send({"loaded": False, **_describe(error)})
        return 1
    channel.send({"loaded": True})
    while (call := channel.receive()) is not None:
        channel.send({"reply": call["call"], **_call(module, call)})
    return 0


def _call(module: types.ModuleType, call: dict[str, Any]) -> dict[str, Any]:
    try:
        # The name comes from the task: "f", or "Solution().f" for a method.
        function = eval(call["name"], module.__dict__)
        arguments = [decode(value) for value in call["args"]]
        keywords = {name: decode(value) for name, value in call["kwargs"].items()}
        return {"value": encode(function(*arguments, **keywords))}
    except BaseException as error:
        return _describe(error)


def _new_module(name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__builtins__ = builtins
    sys.modules[name] = module
    return module


def _describe(error: BaseException) -> dict[str, Any]:
    try:
        message = str(error)[:MAX_MESSAGE]
    except BaseException:  # The program's own exception class.
        message = ""
    return {"error": type(error).__name__, "message": message}


def _exit_status(stop: SystemExit) -> int:
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code & 0xFF
    print(stop.code, file=sys.stderr)
    return 1


def _print_traceback(error: BaseException) -> None:
    try:
        # Without the frame of this file.
        traceback.print_exception(type(error), error, error.__traceback__ and error.__traceback__.tb_next)
    except BaseException:
        pass  # The program replaced what printing needs; the exit status says enough.
