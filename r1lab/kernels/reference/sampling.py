"""Choosing a token per row from logits, in plain PyTorch: the decode step's own rule, as an op.

B = rows, V = vocabulary.
"""

import numpy as np
import torch

from r1lab.kernels.reference import decode_step


def sampling(
    logits_BV: torch.Tensor,
    uniform_B: torch.Tensor,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    banned_V: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inverse-CDF sampling in token order: the first token whose cumulated probability exceeds uniform * total.

    The distribution is softmax(logits / temperature) without the banned tokens, cut to its top_k likeliest (0: all),
    then to the smallest set of likeliest tokens that holds top_p of what is left (Holtzman et al., 2020, section 3.1);
    a tie goes to the lower token id. temperature 0: the likeliest token, logps at temperature 1.

    logits_BV: [B, V]; uniform_B: float64 [B] in [0, 1); banned_V: bool [V]. Returns tokens int64 [B] and logps fp32
    [B], in nats, over the full vocabulary: neither the cuts nor the ban renormalise them.
    """
    if banned_V is None:
        banned_V = torch.zeros(logits_BV.shape[1], dtype=torch.bool, device=logits_BV.device)
    stop_V = torch.zeros_like(banned_V)
    rule = decode_step.DecodeSampling(temperature, top_p, top_k, banned_V, stop_V)
    return decode_step.sample_tokens(logits_BV, uniform_B, rule)


def random_uniform(stream_B: torch.Tensor, index_B: torch.Tensor) -> torch.Tensor:
    """Uniform numbers in [0, 1), float64 [B]: number `index` of `stream` (int64 [B]; the stream's bits as unsigned).

    A counter-based hash (splitmix64, Steele, Lea and Flood, 2014): a token's number depends on nothing else.
    """
    stream, index = stream_B.cpu().numpy().view(np.uint64), index_B.cpu().numpy()
    return torch.from_numpy(decode_step.random_uniform(stream, index)).to(stream_B.device)
