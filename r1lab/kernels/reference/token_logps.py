"""Log-probabilities of given tokens and the entropy of their distributions, in plain PyTorch.

T = tokens, D = hidden, V = vocabulary.
"""

import torch


def token_logps(
    hidden_TD: torch.Tensor, head_VD: torch.Tensor, targets_T: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """p = softmax(hidden @ head.T / temperature): log p[target] and H(p) = -sum p log p, both in nats.

    hidden_TD: [T, D]; head_VD: [V, D]; targets_T: [T] int64. Returns logps [T] and entropy [T] in at least fp32;
    entropy carries no gradient. Materialises the [T, V] logits.
    """
    logits_TV = hidden_TD @ head_VD.t()
    logits_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32)) / temperature
    logps_TV = logits_TV.log_softmax(-1)
    with torch.no_grad():
        # A token of probability 0 adds 0, not 0 * -inf.
        entropy_T = -(logps_TV.exp() * logps_TV.clamp_min(torch.finfo(logps_TV.dtype).min)).sum(-1)
    return logps_TV.gather(1, targets_T.unsqueeze(1)).squeeze(1), entropy_T
