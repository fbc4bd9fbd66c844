"""A dense SwiGLU feed-forward in plain PyTorch (Shazeer, 2020, eq. 6, without biases).

D = hidden, F = intermediate.
"""

import torch
import torch.nn.functional as F


def swiglu(x: torch.Tensor, gate_FD: torch.Tensor, up_FD: torch.Tensor, down_DF: torch.Tensor) -> torch.Tensor:
    """x [..., D] -> (silu(x gate^T) * (x up^T)) down^T, [..., D]."""
    return F.linear(F.silu(F.linear(x, gate_FD)) * F.linear(x, up_FD), down_DF)
