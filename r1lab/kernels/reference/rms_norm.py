"""RMSNorm in plain PyTorch (Zhang and Sennrich, 2019, eq. 4; DeepSeek-V3 uses it before every block)."""

import torch


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """y = weight * x / sqrt(mean(x^2) + eps), over the last dimension; statistics in at least fp32.

    x_TD: [..., D]; weight_D: [D]; returns the shape of x.
    """
    x_fp32 = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
    scale = torch.rsqrt(x_fp32.pow(2).mean(-1, keepdim=True) + eps)
    return weight_D * (x_fp32 * scale).to(x_TD.dtype)
