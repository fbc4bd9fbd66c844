"""Calling the shared library: tensors go as pointers, sizes as int64, scalars as double."""

import ctypes
import functools
from collections.abc import Callable

import torch
from torch.autograd.function import once_differentiable

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


class KernelOp:
    """A kernel as a torch.library op, `r1lab::<function's name>`, and as a plain function.

    Compilers, profilers, dispatch modes and tensor subclasses get the op. For all others its dispatch is left out: it
    takes a tenth of a millisecond a call, forward and backward each, as long as a small product.
    """

    def __init__(self, function: Callable):
        self.function = function
        self.op = torch.library.custom_op(f"r1lab::{function.__name__}", function, mutates_args=(), device_types="cpu")
        self._eager: type[torch.autograd.Function] | None = None
        functools.update_wrapper(self, function)

    def register_fake(self, function: Callable) -> Callable:
        """As the method of the same name of torch's `CustomOpDef`."""
        return self.op.register_fake(function)

    def register_autograd(self, backward: Callable, setup_context: Callable) -> None:
        """As the method of the same name of torch's `CustomOpDef`."""
        self.op.register_autograd(backward, setup_context=setup_context)
        function = self.function

        class Eager(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *inputs):
                output = function(*inputs)
                setup_context(ctx, inputs, output)
                return output

            @staticmethod
            @once_differentiable
            def backward(ctx, *gradients):
                return backward(ctx, *gradients)

        self._eager = Eager

    def __call__(self, *inputs):
        if _is_watched(inputs):
            return self.op(*inputs)
        if self._eager is None or not torch.is_grad_enabled():
            return self.function(*inputs)
        return self._eager.apply(*inputs)


def _is_watched(inputs: tuple) -> bool:
    """Whether somebody wants to see a call as an op."""
    if torch.compiler.is_compiling() or torch.autograd._profiler_enabled() or torch._C._len_torch_dispatch_stack():
        return True
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return any(isinstance(x, torch.Tensor) and type(x) not in _PLAIN for x in inputs)


_PLAIN = (torch.Tensor, torch.nn.Parameter)
