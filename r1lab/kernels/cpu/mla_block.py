"""torch.library op of the attention half of a block: the kernels of its parts as one node of autograd.

A node costs Python's and torch's time, as much as a product of a small policy, and what lies between two nodes is kept.
This one keeps its inputs, the low-rank queries, the latents and the weighted sums of latents (1.0 of 3.2 KB a token in
a layer of the embedded base); norms, queries and attended values are computed again in the backward.
"""

import torch
from torch import Tensor

from r1lab.kernels.cpu.library import KernelOp
from r1lab.kernels.cpu.linear import multiply, multiply_backward
from r1lab.kernels.cpu.mla_absorbed_attention import mla_absorbed_attention, mla_absorbed_attention_backward
from r1lab.kernels.cpu.rms_norm import rms_norm, rms_norm_backward


@KernelOp
def mla_block(
    x: Tensor,
    input_norm: Tensor,
    q_a: Tensor | None,
    q_norm: Tensor | None,
    q_b: Tensor,
    kv_a: Tensor,
    kv_norm: Tensor,
    kv_b: Tensor,
    o: Tensor,
    cos: Tensor,
    sin: Tensor,
    cu_seqlens: Tensor,
    prefix: Tensor,
    interleave: bool,
    scale: float,
    eps: float,
    q_eps: float,
    kv_eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(x + attention [T, D], queries before their norm [T, Q] or nothing, latents before theirs [T, C + R], weighted
    sums of latents [T, H, C], log sum exp of the scores [T, H])."""
    rank = kv_norm.shape[0]
    normed, _ = rms_norm.function(x, input_norm, eps)
    q_low = x.new_empty(0) if q_a is None else multiply(normed, q_a)
    q_in = normed if q_a is None else rms_norm.function(q_low, q_norm, q_eps)[0]
    q = multiply(q_in, q_b).unflatten(-1, (len(kv_b), -1))
    latent = multiply(normed, kv_a)
    kv, _ = rms_norm.function(latent[:, :rank], kv_norm, kv_eps)
    attended, context, lse = mla_absorbed_attention.function(
        q, kv, latent[:, rank:], kv_b, cos, sin, interleave, cu_seqlens, prefix, scale
    )
    return x + multiply(attended.flatten(1), o), q_low, latent, context, lse


@mla_block.register_fake
def _(x, input_norm, q_a, q_norm, q_b, kv_a, kv_norm, kv_b, o, cos, sin, cu_seqlens, prefix, *settings):
    num_tokens, (num_heads, _, rank) = x.shape[0], kv_b.shape
    q_low = x.new_empty(0) if q_a is None else x.new_empty(num_tokens, q_a.shape[0])
    latent, context = x.new_empty(num_tokens, kv_a.shape[0]), x.new_empty(num_tokens, num_heads, rank)
    return x.new_empty(x.shape), q_low, latent, context, x.new_empty(num_tokens, num_heads)


@KernelOp
def mla_block_backward(
    grad_y: Tensor,
    x: Tensor,
    input_norm: Tensor,
    q_a: Tensor | None,
    q_norm: Tensor | None,
    q_b: Tensor,
    kv_a: Tensor,
    kv_norm: Tensor,
    kv_b: Tensor,
    o: Tensor,
    cos: Tensor,
    sin: Tensor,
    cu_seqlens: Tensor,
    prefix: Tensor,
    interleave: bool,
    scale: float,
    eps: float,
    q_eps: float,
    kv_eps: float,
    q_low: Tensor,
    latent: Tensor,
    context: Tensor,
    lse: Tensor,
) -> list[Tensor]:
    """Gradients of x and the eight weights, in their order; empty for q_a and q_norm where there are none."""
    rank, value_dim = kv_norm.shape[0], o.shape[1] // len(kv_b)
    normed, inverse = rms_norm.function(x, input_norm, eps)
    q_in, q_inverse = (normed, None) if q_a is None else rms_norm.function(q_low, q_norm, q_eps)
    q = multiply(q_in, q_b).unflatten(-1, (len(kv_b), -1))
    kv, kv_inverse = rms_norm.function(latent[:, :rank], kv_norm, kv_eps)
    attended = multiply(context, kv_b[:, -value_dim:]).flatten(1)

    grad_attended, grad_o = multiply_backward(grad_y, attended, o)
    grad_q, grad_kv, grad_k_pe, grad_kv_b = mla_absorbed_attention_backward.function(
        grad_attended.unflatten(-1, (len(kv_b), -1)), q, kv, latent[:, rank:], kv_b, cos, sin, interleave, cu_seqlens,
        prefix, scale, context, lse,
    )  # fmt: skip
    grad_kv, grad_kv_norm = rms_norm_backward.function(grad_kv, latent[:, :rank], kv_norm, kv_inverse)
    grad_normed, grad_kv_a = multiply_backward(torch.cat([grad_kv, grad_k_pe], dim=1), normed, kv_a)
    grad_q_in, grad_q_b = multiply_backward(grad_q.flatten(1), q_in, q_b)
    grad_q_a, grad_q_norm = x.new_empty(0), x.new_empty(0)
    if q_a is not None:
        grad_q_low, grad_q_norm = rms_norm_backward.function(grad_q_in, q_low, q_norm, q_inverse)
        grad_q_in, grad_q_a = multiply_backward(grad_q_low, normed, q_a)
    grad_x, grad_input_norm = rms_norm_backward.function(grad_normed.add_(grad_q_in), x, input_norm, inverse)
    weights = [grad_input_norm, grad_q_a, grad_q_norm, grad_q_b, grad_kv_a, grad_kv_norm, grad_kv_b, grad_o]
    return [grad_x.add_(grad_y), *weights]


@mla_block_backward.register_fake
def _(grad_y, *inputs):
    return [inputs[0].new_empty(0 if x is None else x.shape) for x in inputs[:9]]


_NUM_TENSORS = 13
_NUM_SETTINGS = 5


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:_NUM_TENSORS], *output[1:])
    ctx.settings = inputs[_NUM_TENSORS:]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_y, *_):
    nothing = (None,) * (_NUM_TENSORS + _NUM_SETTINGS)
    if grad_y is None:
        return nothing
    saved = ctx.saved_tensors
    gradients = mla_block_backward(grad_y, *saved[:_NUM_TENSORS], *ctx.settings, *saved[_NUM_TENSORS:])
    needed = (grad if is_needed else None for grad, is_needed in zip(gradients, ctx.needs_input_grad))
    return *needed, *nothing[9:]


mla_block.register_autograd(_backward, setup_context=_setup_context)
