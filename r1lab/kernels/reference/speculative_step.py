"""Speculative decoding with the multi-token-prediction module, in plain PyTorch: the truth of `cpu/speculative_step.h`.

One cycle drafts up to K tokens a request with the module, feeds them behind the token that was due, and samples from
the policy at each of those positions for as long as the drafts turn out right (Leviathan et al., 2023,
arXiv:2211.17192).

A draft and the token that the policy samples in its place are chosen with the *same* random number, each by inverse
CDF from its own distribution, and a draft is accepted when the two agree. So what is recorded is always the policy's
own sample: token for token, and on the compiled decoder bit for bit, what decoding without drafts gives, at any
temperature and under top-k, top-p and bans. Rejection sampling would give the same distribution and accept more often
(`acceptance` below has both), but then completions would depend on when the engine drafts, which depends on the batch.
"""

import numpy as np
import torch
import torch.nn.functional as F

from r1lab.kernels.reference.decode_step import (
    STATUS_RUNNING,
    DecodeRequests,
    DecodeSampling,
    ReferenceDecoder,
    random_uniform,
    record_tokens,
    sample_tokens,
)
from r1lab.kernels.reference.rms_norm import rms_norm


def decode_speculative(
    decoder: ReferenceDecoder,
    requests: DecodeRequests,
    active: np.ndarray,
    num_cycles: int,
    sampling: DecodeSampling,
    num_drafts: int,
) -> None:
    """`ReferenceDecoder.decode` with drafts: `num_cycles` cycles, each of 1 to num_drafts + 1 tokens a request."""
    for _ in range(num_cycles):
        active = active[requests.status[active] == STATUS_RUNNING]
        if not len(active):
            return
        count_A, token_AK = _propose(decoder, requests, active, sampling, num_drafts)
        _verify(decoder, requests, active, sampling, count_A, token_AK)


def acceptance(
    logits_MV: torch.Tensor, draft_logits_MV: torch.Tensor, temperature: float = 1.0, by_rejection: bool = False
) -> torch.Tensor:
    """How likely a draft is accepted, [M]: how much of [0, 1) both CDFs map to the same token; temperature 0: whether
    the likeliest tokens agree. by_rejection: of rejection sampling, the sum over tokens of min(p, q)."""
    if temperature == 0:
        return (logits_MV.argmax(-1) == draft_logits_MV.argmax(-1)).float()
    if by_rejection:
        probs = [(x.double() / temperature).softmax(-1) for x in (logits_MV, draft_logits_MV)]
        return torch.minimum(*probs).sum(-1).float()
    ends = [(x.double() / temperature).softmax(-1).cumsum(-1) for x in (logits_MV, draft_logits_MV)]
    starts = [F.pad(end[:, :-1], (1, 0)) for end in ends]
    return (torch.minimum(*ends) - torch.maximum(*starts)).clamp(min=0).sum(-1).float()


def _propose(decoder, requests, active, sampling, num_drafts) -> tuple[np.ndarray, np.ndarray]:
    """(how many drafts [A], the drafts [A, K]); none beyond a request's limit, nor before anything was fed."""
    position, slot = requests.position[active].astype(np.int64), requests.slot[active]
    count_A = np.minimum(num_drafts, requests.limit[active] - requests.count[active] - 1)
    count_A = np.where(position > 0, count_A, 0)
    token_AK = np.zeros((len(active), num_drafts), np.int32)
    rows = np.flatnonzero(count_A > 0)
    if not len(rows):
        return count_A, token_AK
    _catch_up(decoder, slot[rows], position[rows])
    token_R, hidden_RD = requests.token[active], None
    for j in range(num_drafts):
        keep = count_A[rows] > j
        hidden_RD = decoder.history.states(slot[rows], position[rows] - 1) if j == 0 else hidden_RD[keep]
        rows = rows[keep]
        if not len(rows):
            break
        hidden_RD = mtp_forward(decoder, slot[rows], position[rows] - 1 + j, hidden_RD, token_R[rows])
        logits_RV = F.linear(hidden_RD, decoder.weights.head)
        uniform = random_uniform(requests.stream[active[rows]], requests.count[active[rows]] + j)
        token_AK[rows, j] = sample_tokens(logits_RV.nan_to_num(), uniform, sampling)[0].cpu().numpy()
        token_R = token_AK[:, j]
    return count_A, token_AK


def _catch_up(decoder, slot_R: np.ndarray, position_R: np.ndarray) -> None:
    """Fills the module's cache up to the last position whose next token was fed."""
    history = decoder.history
    spans = [np.arange(int(history.length[s]), p - 1) for s, p in zip(slot_R, position_R)]
    position_M, slot_M = np.concatenate(spans), np.repeat(slot_R, [len(span) for span in spans])
    if len(position_M):
        next_M = history.tokens[torch.as_tensor(slot_M).long(), torch.as_tensor(position_M) + 1]
        mtp_forward(decoder, slot_M, position_M, history.states(slot_M, position_M), next_M)
    history.length[torch.as_tensor(slot_R).long()] = torch.as_tensor(position_R, dtype=torch.int32)


def mtp_forward(decoder: ReferenceDecoder, slot_M, position_M, hidden_MD, token_M) -> torch.Tensor:
    """DeepSeek-V3, eq. 21-23: from the states of tokens at `position` and the tokens behind them, [M, D] -> normed
    states [M, D] whose logits speak about the token after those. Fills the module's cache at `position`."""
    mtp, config = decoder.weights.mtp, decoder.weights.config
    device = hidden_MD.device
    slot_M, position_M, token_M = (
        torch.as_tensor(x, dtype=torch.long, device=device) for x in (slot_M, position_M, token_M)
    )
    embeds_MD = rms_norm(decoder.weights.embed[token_M], mtp.enorm, config.rms_norm_eps)
    states_MD = rms_norm(hidden_MD, mtp.hnorm, config.rms_norm_eps)
    x_MD = F.linear(torch.cat([embeds_MD, states_MD], -1), mtp.eh_proj)
    x_MD = decoder.run_layer(x_MD, len(decoder.weights.layers), slot_M, position_M)
    return rms_norm(x_MD, mtp.norm, config.rms_norm_eps)


def _verify(decoder, requests, active, sampling, count_A, token_AK) -> None:
    """Feeds the due tokens and the drafts behind them, and samples at each position until a draft was wrong."""
    slot, position = requests.slot[active], requests.position[active]
    rows = np.repeat(np.arange(len(active)), count_A + 1)
    first_A = np.cumsum(count_A + 1) - count_A - 1
    offset = np.arange(len(rows)) - first_A[rows]
    fed_AK = np.concatenate([requests.token[active][:, None], token_AK], 1)
    logits_MV = decoder.logits(slot[rows], fed_AK[rows, offset], position[rows] + offset)
    requests.drafted[active] += count_A
    alive, stop_V = np.arange(len(active)), sampling.stop_V.cpu().numpy()
    for j in range(token_AK.shape[1] + 1):
        which = active[alive]
        uniform = random_uniform(requests.stream[which], requests.count[which])
        token_M, logp_M = sample_tokens(logits_MV[first_A[alive] + j], uniform, sampling)
        record_tokens(requests, which, token_M.cpu().numpy(), logp_M.cpu().numpy(), stop_V)
        if j == token_AK.shape[1]:
            return
        is_right = (count_A[alive] > j) & (token_M.cpu().numpy() == token_AK[alive, j])
        requests.accepted[which] += is_right
        alive = alive[is_right & (requests.status[which] == STATUS_RUNNING)]
        if not len(alive):
            return
