"""Does a program's answer equal the expected one? Decided here, in the trainer, on data and never on its objects."""

import json
import math
from collections.abc import Sequence
from typing import Any

from rewards.code.jail.values import encode

REL_TOLERANCE, ABS_TOLERANCE = 1e-9, 1e-6

OUTPUT_MODES = ("lines", "tokens", "floats")


def outputs_equal(expected: str, output: str, mode: str = "lines") -> bool:
    """Whether printed text is the expected one.

    - "lines": the same lines, white space at their ends and empty lines at the end ignored
    - "tokens": the same words, whatever the white space between them
    - "floats": as "tokens", where an expected decimal number also allows a relative 1e-9 or absolute 1e-6
    """
    if mode == "lines":
        return _lines(expected) == _lines(output)
    wanted, tokens = expected.split(), output.split()
    if mode == "tokens" or len(wanted) != len(tokens):
        return wanted == tokens
    return all(a == b or _floats_equal(a, b) for a, b in zip(wanted, tokens, strict=True))


def matches(expected: Any, data: Any, *, tuple_as_list: bool = False) -> bool:
    """Whether `data`, a value as `jail.values.encode` writes it, is the expected value. Any data is allowed.

    Types count: True is not 1, a tuple no list (unless tuple_as_list, for expectations that came from JSON, which has
    no tuples). An expected float allows a relative 1e-9 or absolute 1e-6, but NaN equals only NaN and infinity only
    itself. An expected int may come as a float of the same value. The order of dicts and sets does not count.

    The data is never made into sets or dicts: a program could choose elements whose hashes collide.
    """
    if expected is None or isinstance(expected, bool):
        return data is expected
    if isinstance(expected, str):
        return type(data) is str and data == expected
    if isinstance(expected, int | float):
        return _numbers_equal(expected, _number(data))
    if isinstance(expected, complex):
        parts = _content(data, "c")
        return len(parts) == 2 and all(
            _numbers_equal(want, _number(part)) for want, part in zip((expected.real, expected.imag), parts)
        )
    if isinstance(expected, bytes | bytearray):
        return type(data) is dict and data == {"b": expected.hex()}
    if isinstance(expected, list | tuple):
        return _sequences_match(expected, data, tuple_as_list)
    if isinstance(expected, set | frozenset):
        tag = "s" if isinstance(expected, set) else "fs"
        found = {_canonical(item) for item in _content(data, tag)}
        return _is_tagged(data, tag) and found == {_canonical(encode(item)) for item in expected}
    return _dicts_match(expected, data, tuple_as_list)


def _sequences_match(expected: Sequence[Any], data: Any, tuple_as_list: bool) -> bool:
    if type(data) is list:
        items, is_list = data, True
    elif _is_tagged(data, "t"):
        items, is_list = _content(data, "t"), False
    else:
        return False
    if len(items) != len(expected) or not (tuple_as_list or is_list == isinstance(expected, list)):
        return False
    return all(matches(want, item, tuple_as_list=tuple_as_list) for want, item in zip(expected, items, strict=True))


def _dicts_match(expected: dict[Any, Any], data: Any, tuple_as_list: bool) -> bool:
    pairs = _content(data, "d")
    if not _is_tagged(data, "d") or len(pairs) != len(expected):
        return False
    wanted = {_canonical(encode(key)): value for key, value in expected.items()}
    for pair in pairs:
        if type(pair) is not list or len(pair) != 2 or (key := _canonical(pair[0])) not in wanted:
            return False
        if not matches(wanted.pop(key), pair[1], tuple_as_list=tuple_as_list):
            return False
    return not wanted


def _numbers_equal(expected: int | float, value: int | float | None) -> bool:
    if value is None:
        return False
    if isinstance(expected, int):
        return value == expected  # Exact, between int and float as well.
    if math.isnan(expected):
        return isinstance(value, float) and math.isnan(value)
    try:
        return math.isclose(expected, value, rel_tol=REL_TOLERANCE, abs_tol=ABS_TOLERANCE)
    except OverflowError:  # An int beyond every float.
        return False


def _number(data: Any) -> int | float | None:
    if type(data) in (int, float):
        return data
    if _is_tagged(data, "f"):
        return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}.get(str(data["f"]))
    if _is_tagged(data, "i") and type(data["i"]) is str:
        try:
            return int(data["i"], 16)
        except ValueError:
            return None
    return None


def _is_tagged(data: Any, tag: str) -> bool:
    return type(data) is dict and len(data) == 1 and tag in data


def _content(data: Any, tag: str) -> list[Any]:
    """The list under a tag; empty when the data is something else."""
    content = data[tag] if _is_tagged(data, tag) else None
    return content if type(content) is list else []


def _canonical(data: Any) -> str:
    """A text that is equal for equal keys and elements: 1.0 is 1 there, as in Python, but True is not."""
    if type(data) is float and data.is_integer():
        data = int(data)
    return json.dumps(data, sort_keys=True)


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _floats_equal(expected: str, token: str) -> bool:
    if "_" in expected or "_" in token or not ("." in expected or "e" in expected.lower()):
        return False
    try:
        return _numbers_equal(float(expected), float(token))
    except ValueError:
        return False
