"""Compiling the launches of Triton kernels for GPUs that are not here.

`record_launches` catches every `kernel[grid](...)` instead of running it: with tensors on PyTorch's "meta" device (a
shape, no memory) the real launch code runs at the real sizes. `compile_launch` then does for a given target what
Triton's launcher would do for the GPU present, and reads the machine code's resources.
"""

import contextlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True, slots=True)
class Launch:
    """One caught `kernel[grid](*args, **kwargs)`."""

    kernel: JITFunction
    args: tuple
    kwargs: dict

    @property
    def name(self) -> str:
        """op/kernel, as in "rms_norm/forward"."""
        return f"{self.kernel.module.rsplit('.', 1)[1]}/{self.kernel.__name__.strip('_').removesuffix('_kernel')}"


@dataclass(frozen=True, slots=True)
class Resources:
    """What the compiled kernel takes."""

    registers: int
    """32-bit registers a thread."""
    shared: int
    """Bytes of shared memory a program (thread block)."""
    spilled: int
    """Bytes of stack a thread: registers that did not fit live there, in local memory. 0 is what we want."""
    num_warps: int


@contextlib.contextmanager
def record_launches():
    """Yields the list that launches inside the block are appended to; none of them runs."""
    launches, run = [], JITFunction.run

    def record(self, *args, grid, warmup, **kwargs):
        launches.append(Launch(self, args, kwargs))

    JITFunction.run = record
    try:
        yield launches
    finally:
        JITFunction.run = run


def compile_launch(launch: Launch, capability: int) -> Resources:
    """Compile for compute capability 80, 90, 100, ...

    Raises triton's CompilationError or OutOfResources, RuntimeError from ptxas.
    """
    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    kernel, kwargs = launch.kernel, launch.kwargs | {"debug": False}
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(*launch.args, **kwargs)
    options, signature, constexprs, attributes = kernel._pack_args(backend, kwargs, bound, specialization, options)
    compiled = triton.compile(
        ASTSource(kernel, signature, constexprs, attributes), target=target, options=options.__dict__
    )
    registers, stack = _usage(compiled.asm["cubin"])
    return Resources(registers, compiled.metadata.shared, stack, compiled.metadata.num_warps)


def _usage(cubin: bytes) -> tuple[int, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{key}:(\d+)", text).group(1)) for key in ("REG", "STACK", "LOCAL"))
    return registers, max(stack, local)
