"""A linear layer in plain PyTorch, and one whose heads have weights of their own.

T = rows, H = heads, K = inputs, N = outputs.
"""

import torch
import torch.nn.functional as F


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., K], weight [N, K], bias [N] -> x weight^T + bias, [..., N]; or, head by head without bias,
    x [T, H, K], weight [H, N, K] -> [T, H, N]."""
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    return torch.einsum("thk,hnk->thn", x, weight)
