"""Plain values as JSON. What cannot be written down exactly does not cross the border of a sandbox.

JSON has no tuples, sets, bytes or complex numbers, and loses NaN and big integers: these are objects with one key.

    int beyond 64 bits {"i": "hex"}     inf, nan {"f": "nan"}     complex {"c": [real, imag]}     bytes {"b": "hex"}
    tuple {"t": [..]}     set {"s": [..]}     frozenset {"fs": [..]}     dict {"d": [[key, value], ..]}
"""

import math
from typing import Any

MAX_DEPTH = 60
MAX_INT_BITS = 1 << 16


def encode(value: Any, depth: int = 0) -> Any:
    """A JSON-ready form of a value of built-in types. Subclasses (Counter, namedtuple, IntEnum) become their base.

    Raises TypeError for any other type, ValueError for nesting beyond 60 and integers beyond 65,536 bits.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return _encode_int(int.__index__(value))
    if isinstance(value, float):
        value = float.__float__(value)
        return value if math.isfinite(value) else {"f": repr(value)}
    if isinstance(value, complex):
        return {"c": [encode(value.real), encode(value.imag)]}
    if isinstance(value, bytes | bytearray):
        return {"b": bytes(value).hex()}
    if isinstance(value, dict):
        return {"d": [[encode(k, depth + 1), encode(v, depth + 1)] for k, v in dict.items(value)]}
    if isinstance(value, list):
        return [encode(item, depth + 1) for item in list.__iter__(value)]
    for kind, tag in ((tuple, "t"), (set, "s"), (frozenset, "fs")):
        if isinstance(value, kind):
            return {tag: [encode(item, depth + 1) for item in kind.__iter__(value)]}
    raise TypeError(f"a value of type {type(value).__name__} cannot leave the sandbox; use built-in types")


def decode(data: Any, depth: int = 0) -> Any:
    """The value that `encode` wrote: only exact built-in types. Raises ValueError for anything else."""
    if depth > 2 * MAX_DEPTH:
        raise ValueError("nested too deep")
    if data is None or type(data) in (bool, str, int, float):
        return data
    if type(data) is list:
        return [decode(item, depth + 1) for item in data]
    if type(data) is not dict or len(data) != 1:
        raise ValueError("not an encoded value")
    (tag, content), *_ = data.items()
    try:
        return _DECODERS[tag](content, depth + 1)
    except (KeyError, TypeError, OverflowError, AttributeError) as error:
        raise ValueError(f"not an encoded value: {tag!r}") from error


def _encode_int(value: int) -> Any:
    if value.bit_length() > MAX_INT_BITS:
        raise ValueError(f"an integer of more than {MAX_INT_BITS} bits")
    return value if value.bit_length() < 64 else {"i": hex(value)}


def _decode_int(content: str, _: int) -> int:
    if len(content) > MAX_INT_BITS // 4 + 3:
        raise ValueError("an integer that is too long")
    return int(content, 16)


def _items(content: Any, depth: int) -> list[Any]:
    if type(content) is not list:
        raise ValueError("not a list of encoded values")
    return [decode(item, depth) for item in content]


def _decode_complex(content: Any, depth: int) -> complex:
    real, imag = _items(content, depth)
    return complex(real, imag)


def _decode_dict(content: Any, depth: int) -> dict[Any, Any]:
    return dict((key, value) for key, value in (_items(pair, depth) for pair in content))


_DECODERS = {
    "i": _decode_int,
    "f": lambda content, _: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[content],
    "t": lambda content, depth: tuple(_items(content, depth)),
    "s": lambda content, depth: set(_items(content, depth)),
    "fs": lambda content, depth: frozenset(_items(content, depth)),
    "d": _decode_dict,
    "b": lambda content, _: bytes.fromhex(content),
    "c": _decode_complex,
}
