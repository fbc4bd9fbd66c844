"""Rotary position embedding in plain PyTorch (Su et al., 2021, eq. 34; DeepSeek-V3's two layouts of a head).

T = tokens, H = heads, R = rotary dimensions of a head (even), P = R / 2 pairs.
"""

import torch


def rope(x_THR: torch.Tensor, cos_TP: torch.Tensor, sin_TP: torch.Tensor, interleave: bool) -> torch.Tensor:
    """Turn pair p of every head of token t by the angle (cos, sin)[t, p]: (a, b) -> (a cos - b sin, b cos + a sin).

    interleave: pairs are (x0, x1), (x2, x3), .. as DeepSeek stores them, else (x0, x_P), (x1, x_{P+1}), ..; both write
    the first members of all pairs, then the second ones, as transformers does: queries and keys agree on the order.
    x_THR: [T, H, R]; cos_TP, sin_TP: [T, P]. Returns [T, H, R] in x's dtype, computed in at least fp32.
    """
    dtype = torch.promote_types(x_THR.dtype, torch.float32)
    first, second = (x_THR[..., 0::2], x_THR[..., 1::2]) if interleave else x_THR.chunk(2, -1)
    first, second = first.to(dtype), second.to(dtype)
    cos, sin = cos_TP.to(dtype).unsqueeze(1), sin_TP.to(dtype).unsqueeze(1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x_THR.dtype)
