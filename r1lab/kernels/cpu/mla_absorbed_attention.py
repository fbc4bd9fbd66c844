"""torch.library op of cpu/mla_absorbed_attention.cpp, with the products by W_k and W_v around it.

Saves what it was given, the weighted sums of latents, and one number a query and head; the latent queries are computed
again in the backward, and what is rotated is rotated again.
"""

import torch
from torch import Tensor

from r1lab.kernels.cpu.library import KernelOp, c_function
from r1lab.kernels.cpu.linear import multiply, multiply_backward


def _split_weight(kv_b: Tensor, nope_dim: int) -> tuple[Tensor, Tensor]:
    """What leads from q_nope to the latents [H, C, N], and from them to the values [H, W, C]."""
    return kv_b[:, :nope_dim].transpose(1, 2).contiguous(), kv_b[:, nope_dim:].contiguous()


def _with_contiguous_rows(*tensors: Tensor) -> list[Tensor]:
    return [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]


def _arguments(q_pe, kv, k_pe, cos, sin, interleave, cu_seqlens, prefix, scale) -> tuple:
    """In C's order, from q_pe on."""
    num_tokens, num_heads, rope_dim = q_pe.shape
    return (
        q_pe.data_ptr(), q_pe.stride(0), q_pe.stride(1), kv.data_ptr(), kv.stride(0), k_pe.data_ptr(), k_pe.stride(0),
        cos.data_ptr(), sin.data_ptr(), interleave, cu_seqlens.data_ptr(), prefix.data_ptr(), num_tokens,
        len(cu_seqlens) - 1, num_heads, kv.shape[1], rope_dim, scale,
    )  # fmt: skip


_SIGNATURE = "piipipippippiiiiid"


@KernelOp
def mla_absorbed_attention(
    q: Tensor,
    kv: Tensor,
    k_pe: Tensor,
    kv_b: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleave: bool,
    cu_seqlens: Tensor,
    prefix: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(output [T, H, W], weighted sums of latents [T, H, C], log sum exp of the scores [T, H])."""
    q, kv, k_pe = _with_contiguous_rows(q, kv, k_pe)
    cos, sin, cu_seqlens, prefix = (x.contiguous() for x in (cos, sin, cu_seqlens, prefix))
    nope_dim = q.shape[2] - k_pe.shape[1]
    w_k, w_v = _split_weight(kv_b, nope_dim)
    q_latent = multiply(q[..., :nope_dim], w_k)
    context, lse = torch.empty_like(q_latent), torch.empty(q.shape[:2], dtype=q.dtype)
    c_function("r1lab_mla_absorbed_attention", "p" + _SIGNATURE + "ppi")(
        q_latent.data_ptr(), *_arguments(q[..., nope_dim:], kv, k_pe, cos, sin, interleave, cu_seqlens, prefix, scale),
        context.data_ptr(), lse.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return multiply(context, w_v), context, lse


@mla_absorbed_attention.register_fake
def _(q, kv, k_pe, kv_b, cos, sin, interleave, cu_seqlens, prefix, scale):
    num_tokens, num_heads, head_dim = q.shape
    value_dim = kv_b.shape[1] - head_dim + k_pe.shape[1]
    shapes = (num_tokens, num_heads, value_dim), (num_tokens, num_heads, kv.shape[1]), (num_tokens, num_heads)
    return tuple(q.new_empty(shape) for shape in shapes)


@KernelOp
def mla_absorbed_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    kv: Tensor,
    k_pe: Tensor,
    kv_b: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleave: bool,
    cu_seqlens: Tensor,
    prefix: Tensor,
    scale: float,
    context: Tensor,
    lse: Tensor,
) -> list[Tensor]:
    """Gradients of q, kv, k_pe, kv_b."""
    q, kv, k_pe, grad_out = _with_contiguous_rows(q, kv, k_pe, grad_out.contiguous())
    cos, sin, cu_seqlens, prefix = (x.contiguous() for x in (cos, sin, cu_seqlens, prefix))
    nope_dim = q.shape[2] - k_pe.shape[1]
    q_nope, q_pe = q[..., :nope_dim], q[..., nope_dim:]
    w_k, w_v = _split_weight(kv_b, nope_dim)
    grad_context, grad_w_v = multiply_backward(grad_out, context, w_v)
    q_latent = multiply(q_nope, w_k)
    grad_latent, grad_q_pe = torch.empty_like(q_latent), torch.empty(q_pe.shape, dtype=q.dtype)
    grad_kv, grad_k_pe = torch.empty(kv.shape, dtype=q.dtype), torch.empty(k_pe.shape, dtype=q.dtype)
    c_function("r1lab_mla_absorbed_attention_backward", "pp" + _SIGNATURE + "ppppppi")(
        grad_context.data_ptr(), q_latent.data_ptr(),
        *_arguments(q_pe, kv, k_pe, cos, sin, interleave, cu_seqlens, prefix, scale), context.data_ptr(),
        lse.data_ptr(), grad_latent.data_ptr(), grad_q_pe.data_ptr(), grad_kv.data_ptr(), grad_k_pe.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    grad_q_nope, grad_w_k = multiply_backward(grad_latent, q_nope, w_k)
    grad_kv_b = torch.cat([grad_w_k.transpose(1, 2), grad_w_v], dim=1)
    return [torch.cat([grad_q_nope, grad_q_pe], dim=-1), grad_kv, grad_k_pe, grad_kv_b]


@mla_absorbed_attention_backward.register_fake
def _(grad_out, q, kv, k_pe, kv_b, cos, sin, interleave, cu_seqlens, prefix, scale, context, lse):
    return [x.new_empty(x.shape) for x in (q, kv, k_pe, kv_b)]


def _setup_context(ctx, inputs, output):
    *tensors, ctx.interleave, cu_seqlens, prefix, ctx.scale = inputs
    ctx.save_for_backward(*tensors, cu_seqlens, prefix, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_out, _grad_context, _grad_lse):
    if grad_out is None:
        return (None,) * 10
    *tensors, cu_seqlens, prefix, context, lse = ctx.saved_tensors
    gradients = mla_absorbed_attention_backward(
        grad_out, *tensors, ctx.interleave, cu_seqlens, prefix, ctx.scale, context, lse
    )
    return *gradients, *(None,) * 6


mla_absorbed_attention.register_autograd(_backward, setup_context=_setup_context)
