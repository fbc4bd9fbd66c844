"""The DeepSeek-V3 gate in plain PyTorch (V3 technical report, arXiv:2412.19437, section 2.1.2, equations 12 to 16).

T = tokens, E = experts, K = experts per token.
"""

import torch


def moe_gate(
    logits_TE: torch.Tensor,
    bias_E: torch.Tensor,
    n_group: int,
    topk_group: int,
    top_k: int,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose K experts a token and weigh them.

    eq. 15: s = sigmoid(logits). eq. 16: the choice is made on s + bias, the weights on s alone: the bias balances the
    load and stays out of the gradient. Experts sit in n_group equal groups; only the topk_group groups with the
    largest sum of their two best biased scores may be chosen from (section 2.1.2, "node-limited routing").
    eq. 13: weights are normalised over the chosen ones (norm_topk_prob), then times routed_scaling_factor.

    logits_TE: [T, E]; bias_E: [E]. Returns topk_idx [T, K] int64 (best first; equal scores: lower index first) and
    topk_weights [T, K] in at least fp32, differentiable in the logits.
    """
    scores_TE = logits_TE.to(torch.promote_types(logits_TE.dtype, torch.float32)).sigmoid()
    with torch.no_grad():
        choice_TE = scores_TE + bias_E
        if topk_group < n_group:
            choice_TE = _keep_best_groups(choice_TE, n_group, topk_group)
        topk_idx_TK = _stable_topk(choice_TE, top_k)
    return topk_idx_TK, _weigh(scores_TE, topk_idx_TK, norm_topk_prob, routed_scaling_factor)


def moe_gate_weights(
    logits_TE: torch.Tensor, topk_idx_TK: torch.Tensor, norm_topk_prob: bool, routed_scaling_factor: float
) -> torch.Tensor:
    """Weigh experts that something else chose, as `moe_gate` weighs its own: equations 13 and 15 of the V3 report.

    logits_TE: [T, E]; topk_idx_TK: [T, K] int64. Returns [T, K] in at least fp32, differentiable in the logits.
    """
    scores_TE = logits_TE.to(torch.promote_types(logits_TE.dtype, torch.float32)).sigmoid()
    return _weigh(scores_TE, topk_idx_TK, norm_topk_prob, routed_scaling_factor)


def _weigh(scores_TE: torch.Tensor, topk_idx_TK: torch.Tensor, norm_topk_prob: bool, factor: float) -> torch.Tensor:
    topk_weights_TK = scores_TE.gather(1, topk_idx_TK)
    if norm_topk_prob:
        topk_weights_TK = topk_weights_TK / (topk_weights_TK.sum(-1, keepdim=True) + 1e-20)
    return topk_weights_TK * factor


def _stable_topk(scores: torch.Tensor, k: int) -> torch.Tensor:
    # torch.topk leaves the winner among equal scores open; a stable sort makes every backend agree.
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :k]


def _keep_best_groups(choice_TE: torch.Tensor, n_group: int, topk_group: int) -> torch.Tensor:
    num_tokens, num_experts = choice_TE.shape
    group_size = num_experts // n_group
    grouped = choice_TE.view(num_tokens, n_group, group_size)
    group_scores = grouped.topk(min(2, group_size), dim=-1).values.sum(-1)
    is_kept = torch.zeros_like(group_scores, dtype=torch.bool)
    is_kept.scatter_(1, _stable_topk(group_scores, topk_group), True)
    return grouped.masked_fill(~is_kept.unsqueeze(-1), float("-inf")).view(num_tokens, num_experts)
