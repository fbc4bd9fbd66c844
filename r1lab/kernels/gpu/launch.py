"""What the launches share: tile sizes, the precision of matrix products, row layouts."""

import contextlib

import torch
import triton
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the kernels take; every sum and every softmax runs in fp32, whatever the input."""


_forced_capability: int | None = None


@contextlib.contextmanager
def tiles_for(capability: int):
    """Inside, tiles are chosen for this compute capability (80, 90, ..), whatever GPU is here."""
    global _forced_capability
    before, _forced_capability = _forced_capability, capability
    try:
        yield
    finally:
        _forced_capability = before


def capability() -> int:
    """The compute capability to choose tiles for: 80 = A100, 90 = H100, 100 = B200; 90 where there is no GPU."""
    if _forced_capability is not None:
        return _forced_capability
    if not torch.cuda.is_available():
        return 90
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def has_large_tiles() -> bool:
    """Whether matrix tiles live in shared memory and there is enough of it (227 KiB): H100, B200 and their kind.

    A100s hold the operands in registers; GeForce cards, Blackwell's included, have 99 KiB.
    """
    return 90 <= capability() < 120


def block(size: int, least: int = 1) -> int:
    """The tile width for `size` columns: the next power of two, at least `least` (16 for tensor cores)."""
    return max(least, triton.next_power_of_2(size))


def warps(elements: int, per_thread: int = 16, most: int = 16) -> int:
    """Warps for a tile of `elements`, `per_thread` each; a power of two in 1..`most`."""
    return min(most, max(1, triton.next_power_of_2(elements) // (32 * per_thread)))


def dot_precision() -> str:
    """How fp32 factors are multiplied: exactly, unless the user allowed TF32 (torch.set_float32_matmul_precision).

    TF32 has 10 bits of mantissa: rollout and training logps would agree to 1e-3 at best.
    """
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def unit_stride(tensor: Tensor) -> Tensor:
    """The tensor itself where its last dimension is contiguous, so that slices are read in place; else a copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def rows_of(tensor: Tensor) -> Tensor:
    """[..., D] as [N, D] with contiguous rows; a view where the strides allow it."""
    return unit_stride(tensor.reshape(-1, tensor.shape[-1]))
