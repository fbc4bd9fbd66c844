"""Calling the shared library: tensors go as pointers, sizes as int64, scalars as double."""

import ctypes
import functools

import torch

from r1lab.kernels.build import extension

_C_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "d": ctypes.c_double}


@functools.cache
def c_function(name: str, signature: str, returns_int: bool = False):
    """The C function `name`. `signature` has one letter per argument: p pointer, i int64, d double."""
    library = extension()
    if library is None:
        raise RuntimeError(f"{name}: the CPU kernels are not available; call r1lab.kernels.ops, which falls back")
    function = getattr(library, name)
    function.argtypes = [_C_TYPES[letter] for letter in signature]
    function.restype = ctypes.c_int64 if returns_int else None
    return function


def pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
