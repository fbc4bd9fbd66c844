"""The public ops. Each call picks a backend: the compiled CPU kernel for fp32 tensors on the CPU, else the reference.

T = tokens, D = hidden, E = experts, F = expert intermediate, K = experts per token, V = vocabulary. All ops are
differentiable once (first derivatives), and go through torch.compile, DDP and FSDP as torch.library ops.
"""

import torch
from torch import Tensor

from r1lab.kernels import cpu, reference  # noqa: F401  importing `cpu` registers its ops
from r1lab.kernels.build import load_extension

__all__ = ["has_kernel", "mla_attention", "moe_experts", "moe_gate", "rms_norm", "token_logps"]


def has_kernel(*tensors: Tensor) -> bool:
    """Whether ops on these tensors run as a kernel, and not as the PyTorch reference."""
    return _use_cpu_kernel(*tensors)


def mla_attention(
    q_nope_THN: Tensor,
    q_pe_THR: Tensor,
    k_nope_THN: Tensor,
    k_pe_TR: Tensor,
    v_THW: Tensor,
    cu_seqlens_B1: Tensor,
    max_seqlen: int,
    scale: float,
) -> Tensor:
    """Causal attention over expanded MLA heads within each of several sequences (DeepSeek-V2 report, eq. 17-19).

    T = tokens of all sequences, H = heads, N, R = sizes of a key's two parts, W = a value's size, B = sequences.
    q_nope, k_nope: [T, H, N]; q_pe: [T, H, R]; k_pe: [T, R], shared by the heads; v: [T, H, W]; any strides.
    cu_seqlens: int32 [B + 1], from 0 to T, sequence b is rows cu_seqlens[b] .. cu_seqlens[b + 1] - 1; max_seqlen: the
    longest one's length. Returns [T, H, W].
    Raises ValueError on shapes or sequence bounds that do not fit.
    """
    _check_attention(q_nope_THN, q_pe_THR, k_nope_THN, k_pe_TR, v_THW, cu_seqlens_B1)
    tensors = (q_nope_THN, q_pe_THR, k_nope_THN, k_pe_TR, v_THW)
    if _use_cpu_kernel(*tensors):
        return torch.ops.r1lab.mla_attention(*tensors, cu_seqlens_B1, scale)[0]
    return reference.mla_attention(*tensors, cu_seqlens_B1, max_seqlen, scale)


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension (Zhang and Sennrich, 2019, eq. 4).

    x_TD: [..., D], any leading dimensions; weight_D: [D]. Returns the shape of x.
    Raises ValueError when the shapes do not fit.
    """
    if x_TD.dim() < 1 or weight_D.shape != x_TD.shape[-1:]:
        raise ValueError(f"weight_D has shape {tuple(weight_D.shape)}, x_TD {tuple(x_TD.shape)}: expected weight_D [D]")
    if _use_cpu_kernel(x_TD, weight_D) and x_TD.shape[-1] > 0:
        return torch.ops.r1lab.rms_norm(x_TD, weight_D, eps)[0]
    return reference.rms_norm(x_TD, weight_D, eps)


def moe_gate(
    logits_TE: Tensor,
    bias_E: Tensor,
    n_group: int,
    topk_group: int,
    top_k: int,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
) -> tuple[Tensor, Tensor]:
    """Choose and weigh K experts a token (DeepSeek-V3 report, equations 12-16; transformers' DeepseekV3TopkRouter).

    logits_TE: [T, E]; bias_E: [E], added to the scores for the choice only and given no gradient. The choice is made
    among the topk_group best of n_group equal groups. Returns topk_idx [T, K] int64, best first, and topk_weights
    [T, K], whose gradient flows to the logits.
    Raises ValueError on shapes or counts that do not fit.
    """
    _check_gate(logits_TE, bias_E, n_group, topk_group, top_k)
    args = (logits_TE, bias_E, n_group, topk_group, top_k, norm_topk_prob, routed_scaling_factor)
    if _use_cpu_kernel(logits_TE, bias_E):
        topk_weights_TK, topk_idx_TK = torch.ops.r1lab.moe_gate(*args)
        return topk_idx_TK, topk_weights_TK
    return reference.moe_gate(*args)


def moe_experts(
    x_TD: Tensor, topk_idx_TK: Tensor, topk_weights_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Weighted sum of each token's K SwiGLU experts (DeepSeek-V3 report, equation 12, without the shared experts).

    x_TD: [T, D]; topk_idx_TK: [T, K] int64 in 0..E-1; topk_weights_TK: [T, K]; gate_up_E2FD: [E, 2F, D], an expert's
    first F rows are gate, the last F up; down_EDF: [E, D, F]. Returns y [T, D].
    Raises ValueError on shapes, dtypes or expert numbers that do not fit.
    """
    _check_experts(x_TD, topk_idx_TK, topk_weights_TK, gate_up_E2FD, down_EDF)
    floats = (x_TD, topk_weights_TK, gate_up_E2FD, down_EDF)
    if _use_cpu_kernel(*floats):
        keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in floats)
        return torch.ops.r1lab.moe_experts(x_TD, topk_idx_TK, topk_weights_TK, gate_up_E2FD, down_EDF, keep)[0]
    _check_range("topk_idx_TK", topk_idx_TK, gate_up_E2FD.shape[0])
    return reference.moe_experts(x_TD, topk_idx_TK, topk_weights_TK, gate_up_E2FD, down_EDF)


def token_logps(hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log p[target] and entropy, in nats, of p = softmax(hidden @ head.T / temperature).

    hidden_TD: [T, D]; head_VD: [V, D]; targets_T: [T] int64 in 0..V-1; temperature > 0. Returns logps [T] and
    entropy [T]; entropy carries no gradient. The CPU kernel never holds more than a few rows of logits.
    Raises ValueError on shapes, dtypes, targets or a temperature that do not fit.
    """
    _check_logps(hidden_TD, head_VD, targets_T, temperature)
    if _use_cpu_kernel(hidden_TD, head_VD):
        logps, entropy, _ = torch.ops.r1lab.token_logps(hidden_TD, head_VD, targets_T, temperature)
        return logps, entropy
    _check_range("targets_T", targets_T, head_VD.shape[0])
    return reference.token_logps(hidden_TD, head_VD, targets_T, temperature)


@torch.compiler.assume_constant_result
def _is_extension_loaded() -> bool:
    return load_extension()


def _use_cpu_kernel(*tensors: Tensor) -> bool:
    for tensor in tensors:
        if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
            return False
    return _is_extension_loaded()


def _check_range(name: str, values: Tensor, end: int) -> None:
    if values.numel() == 0 or values.device.type != "cpu":  # on an accelerator the indexing itself asserts
        return
    low, high = (value.item() for value in values.aminmax())
    if low < 0 or high >= end:
        raise ValueError(f"{name} holds {low if low < 0 else high}; expected 0..{end - 1}")


def _check_attention(
    q_nope_THN: Tensor, q_pe_THR: Tensor, k_nope_THN: Tensor, k_pe_TR: Tensor, v_THW: Tensor, cu_seqlens_B1: Tensor
) -> None:
    T, H, N = q_nope_THN.shape
    R, W = q_pe_THR.shape[-1], v_THW.shape[-1]
    expected = {
        "q_pe_THR": (q_pe_THR, (T, H, R)), "k_nope_THN": (k_nope_THN, (T, H, N)), "k_pe_TR": (k_pe_TR, (T, R)),
        "v_THW": (v_THW, (T, H, W)),
    }  # fmt: skip
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            given = tuple(q_nope_THN.shape)
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}: expected {shape} beside q_nope_THN {given}")
    if cu_seqlens_B1.dtype != torch.int32 or cu_seqlens_B1.dim() != 1:
        raise ValueError(f"cu_seqlens_B1 is {cu_seqlens_B1.dtype} {tuple(cu_seqlens_B1.shape)}: expected int32 [B + 1]")
    if cu_seqlens_B1.device.type == "cpu":
        bounds = cu_seqlens_B1.tolist()
        if not bounds or bounds[0] != 0 or bounds[-1] != T or sorted(bounds) != bounds:
            raise ValueError(f"cu_seqlens_B1 goes {bounds[:3]} ... {bounds[-2:]}: expected 0, rising to T={T}")


def _check_gate(logits_TE: Tensor, bias_E: Tensor, n_group: int, topk_group: int, top_k: int) -> None:
    if logits_TE.dim() != 2 or bias_E.shape != logits_TE.shape[1:]:
        raise ValueError(
            f"logits_TE has shape {tuple(logits_TE.shape)}, bias_E {tuple(bias_E.shape)}: expected [T, E] and [E]"
        )
    num_experts = logits_TE.shape[1]
    if n_group < 1 or num_experts % n_group:
        raise ValueError(f"n_group={n_group} does not divide the {num_experts} experts into equal groups")
    if not 1 <= topk_group <= n_group:
        raise ValueError(f"topk_group={topk_group}: expected 1..n_group={n_group}")
    most = topk_group * (num_experts // n_group)
    if not 1 <= top_k <= most:
        raise ValueError(f"top_k={top_k}: expected 1..{most}, the experts in topk_group={topk_group} groups")


def _check_experts(
    x_TD: Tensor, topk_idx_TK: Tensor, topk_weights_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> None:
    if x_TD.dim() != 2:
        raise ValueError(f"x_TD has shape {tuple(x_TD.shape)}: expected [T, D]; flatten the leading dimensions")
    if topk_idx_TK.dim() != 2 or topk_idx_TK.shape[0] != x_TD.shape[0] or topk_idx_TK.shape[1] < 1:
        raise ValueError(
            f"topk_idx_TK has shape {tuple(topk_idx_TK.shape)}: expected [T, K], T={x_TD.shape[0]}, K >= 1"
        )
    if topk_weights_TK.shape != topk_idx_TK.shape:
        raise ValueError(
            f"topk_weights_TK has shape {tuple(topk_weights_TK.shape)}, topk_idx_TK {tuple(topk_idx_TK.shape)}: "
            "expected the same"
        )
    if topk_idx_TK.dtype != torch.int64:
        raise ValueError(f"topk_idx_TK is {topk_idx_TK.dtype}: expected torch.int64")
    if down_EDF.dim() != 3 or down_EDF.shape[1] != x_TD.shape[1]:
        raise ValueError(f"down_EDF has shape {tuple(down_EDF.shape)}: expected [E, D, F], D={x_TD.shape[1]}")
    num_experts, hidden_size, intermediate_size = down_EDF.shape
    expected = (num_experts, 2 * intermediate_size, hidden_size)
    if gate_up_E2FD.shape != expected:
        raise ValueError(f"gate_up_E2FD has shape {tuple(gate_up_E2FD.shape)}: expected {expected}, from down_EDF")
    if not x_TD.dtype == gate_up_E2FD.dtype == down_EDF.dtype:
        raise ValueError(
            f"x_TD is {x_TD.dtype}, gate_up_E2FD {gate_up_E2FD.dtype}, down_EDF {down_EDF.dtype}: expected the same"
        )


def _check_logps(hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor, temperature: float) -> None:
    if hidden_TD.dim() != 2 or head_VD.dim() != 2 or hidden_TD.shape[1] != head_VD.shape[1]:
        raise ValueError(
            f"hidden_TD has shape {tuple(hidden_TD.shape)}, head_VD {tuple(head_VD.shape)}: expected [T, D] and [V, D]"
        )
    if targets_T.shape != hidden_TD.shape[:1]:
        raise ValueError(f"targets_T has shape {tuple(targets_T.shape)}: expected [T], T={hidden_TD.shape[0]}")
    if targets_T.dtype != torch.int64:
        raise ValueError(f"targets_T is {targets_T.dtype}: expected torch.int64")
    if hidden_TD.dtype != head_VD.dtype:
        raise ValueError(f"hidden_TD is {hidden_TD.dtype}, head_VD {head_VD.dtype}: expected the same")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: expected more than 0; greedy decoding has no log-probabilities")
