"""Choosing a token per row: temperature, top-k, top-p (Holtzman et al., 2020, section 3.1), inverse CDF.

    p = exp(logits / temperature - max);  cut to the top_k likeliest, then to the smallest likeliest set with top_p of
    the rest;  token = the first whose cumulated p exceeds uniform * total;  logp = logits / temperature - lse

Nothing is sorted. Both cuts are "p above a threshold, and of those at the threshold the first few": the bits of a
non-negative float order like an integer, so the threshold is found digit by digit from the top, five bits a pass over
the row, by counting (top-k) or adding up p (top-p) above 32 candidates at once. Without cuts a row is read twice.
One program does one row; its passes after the first come from the L2 cache.

The random numbers are a counter-based hash (splitmix64, Steele, Lea and Flood, 2014): bit for bit those of
`reference.decode_step.random_uniform`.

B = rows, V = vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1lab.kernels.gpu.launch import block, unit_stride

_TILE = 1024


@triton.jit
def _probs(row_ptr, banned_ptr, offsets, V, temperature, top, HAS_BANNED: tl.constexpr):
    """p relative to the largest, 0 where banned or outside, and its bits as an ordered integer."""
    mask = offsets < V
    if HAS_BANNED:
        mask = mask & (tl.load(banned_ptr + offsets, mask=mask, other=1) == 0)
    logits = tl.load(row_ptr + offsets, mask=mask, other=float("-inf")).to(tl.float32) / temperature
    probs = tl.where(mask, tl.exp(logits - top), 0.0)
    return probs, probs.to(tl.int32, bitcast=True)


@triton.jit
def _statistics(row_ptr, banned_ptr, V, temperature, HAS_BANNED: tl.constexpr, TILE: tl.constexpr):
    """Log-sum-exp over all tokens; the largest allowed logit and its first token."""
    top, total, allowed_top, best = -1e30, 0.0, float("-inf"), 0
    for first in range(0, V, TILE):
        offsets = first + tl.arange(0, TILE)
        mask = offsets < V
        logits = tl.load(row_ptr + offsets, mask=mask, other=float("-inf")).to(tl.float32) / temperature
        new_top = tl.maximum(top, tl.max(logits, axis=0))
        total = total * tl.exp(top - new_top) + tl.sum(tl.exp(logits - new_top), axis=0)
        top = new_top
        if HAS_BANNED:
            banned = tl.load(banned_ptr + offsets, mask=mask, other=1) != 0
            logits = tl.where(banned, float("-inf"), logits)
        tile_top = tl.max(logits, axis=0)
        tile_best = first + tl.argmax(logits, axis=0)
        best = tl.where(tile_top > allowed_top, tile_best, best)
        allowed_top = tl.maximum(allowed_top, tile_top)
    return top + tl.log(total), allowed_top, best


@triton.jit
def _threshold(
    row_ptr, banned_ptr, V, temperature, top, need, floor_key, floor_mass,
    BY_COUNT: tl.constexpr, HAS_BANNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The largest key such that the tokens with at least that key hold `need` (tokens, or mass).

    Only keys above floor_key are looked at; the rest counts as floor_mass at floor_key.
    """
    key = 0
    digits = tl.arange(0, 32)
    for shift in tl.static_range(25, -1, -5):  # p <= 1, whose bits are 0x3F800000: six digits of five bits
        candidates = key + (digits << shift)
        held = tl.where(candidates <= floor_key, floor_mass, 0.0).to(tl.float64)
        for first in range(0, V, TILE):
            offsets = first + tl.arange(0, TILE)
            probs, keys = _probs(row_ptr, banned_ptr, offsets, V, temperature, top, HAS_BANNED)
            amounts = probs
            if BY_COUNT:
                amounts = tl.where(offsets < V, 1.0, 0.0)
            amounts = tl.where(keys > floor_key, amounts, 0.0)
            held += tl.sum(tl.where(keys[:, None] >= candidates[None, :], amounts[:, None], 0.0), axis=0)
        digit = tl.maximum(tl.sum((held >= need).to(tl.int32), axis=0) - 1, 0)
        key += digit << shift
    return key


@triton.jit
def _above(row_ptr, banned_ptr, V, temperature, top, key, HAS_BANNED: tl.constexpr, TILE: tl.constexpr):
    """Mass above a key, number of tokens above it, number of tokens at it."""
    mass, count, ties = tl.zeros([1], tl.float64), tl.zeros([1], tl.int32), tl.zeros([1], tl.int32)
    for first in range(0, V, TILE):
        offsets = first + tl.arange(0, TILE)
        probs, keys = _probs(row_ptr, banned_ptr, offsets, V, temperature, top, HAS_BANNED)
        mass += tl.sum(tl.where(keys > key, probs, 0.0), axis=0)
        count += tl.sum((keys > key).to(tl.int32), axis=0)
        ties += tl.sum(((keys == key) & (offsets < V)).to(tl.int32), axis=0)
    return tl.sum(mass, axis=0), tl.sum(count, axis=0), tl.sum(ties, axis=0)


@triton.jit
def _pick(
    row_ptr, banned_ptr, V, temperature, top, key, num_ties, target, HAS_BANNED: tl.constexpr, TILE: tl.constexpr
):
    """The first kept token whose cumulated mass exceeds target; rounding may leave none, then the last kept one."""
    mass, ties = tl.zeros([1], tl.float64), tl.zeros([1], tl.int32)
    first_hit, last_kept = V, 0
    for first in range(0, V, TILE):
        offsets = first + tl.arange(0, TILE)
        probs, keys = _probs(row_ptr, banned_ptr, offsets, V, temperature, top, HAS_BANNED)
        is_tie = (keys == key).to(tl.int32)
        is_kept = (keys > key) | ((is_tie == 1) & (ties + tl.cumsum(is_tie, axis=0) <= num_ties))
        kept = tl.where(is_kept, probs, 0.0)
        is_kept = is_kept & (kept > 0.0)
        is_hit = is_kept & (mass + tl.cumsum(kept, axis=0).to(tl.float64) > target)
        first_hit = tl.minimum(first_hit, tl.min(tl.where(is_hit, offsets, V), axis=0))
        last_kept = tl.maximum(last_kept, tl.max(tl.where(is_kept, offsets, 0), axis=0))
        mass += tl.sum(kept, axis=0)
        ties += tl.sum(is_tie, axis=0)
    return tl.minimum(first_hit, last_kept)


@triton.jit
def _sampling_kernel(
    logits_ptr, uniform_ptr, banned_ptr, tokens_ptr, logps_ptr, stride, V, temperature, top_k, top_p,
    GREEDY: tl.constexpr, HAS_TOP_K: tl.constexpr, HAS_TOP_P: tl.constexpr, HAS_BANNED: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride
    lse, top, token = _statistics(row_ptr, banned_ptr, V, temperature, HAS_BANNED, TILE)
    if not GREEDY:
        key, num_ties, at_key = -1, 0, 0.0  # no cut: every key is above
        if HAS_TOP_K:
            key = _threshold(row_ptr, banned_ptr, V, temperature, top, top_k, -1, 0.0, True, HAS_BANNED, TILE)
        mass, count, _ = _above(row_ptr, banned_ptr, V, temperature, top, key, HAS_BANNED, TILE)
        if HAS_TOP_K:
            num_ties = top_k - count
            at_key = key.to(tl.float32, bitcast=True)
        if HAS_TOP_P:
            need, floor_mass = top_p * (mass + num_ties * at_key), num_ties * at_key
            floor_key = key
            key = _threshold(
                row_ptr, banned_ptr, V, temperature, top, need, floor_key, floor_mass, False, HAS_BANNED, TILE
            )
            mass, count, ties = _above(row_ptr, banned_ptr, V, temperature, top, key, HAS_BANNED, TILE)
            ties = tl.where(key == floor_key, num_ties, ties)
            at_key = key.to(tl.float32, bitcast=True)
            # Of the tokens at the threshold, those before which less than `need` has been gathered.
            wanted = tl.ceil((need - mass) / tl.maximum(at_key, 1e-38)).to(tl.int32)
            num_ties = tl.minimum(tl.maximum(wanted, 1), ties)
        target = tl.load(uniform_ptr + row).to(tl.float64) * (mass + num_ties * at_key)
        token = _pick(row_ptr, banned_ptr, V, temperature, top, key, num_ties, target, HAS_BANNED, TILE)
    tl.store(tokens_ptr + row, token.to(tl.int64))
    tl.store(logps_ptr + row, tl.load(row_ptr + token).to(tl.float32) / temperature - lse)


@triton.jit
def _splitmix64(x):
    x += 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _uniform_kernel(stream_ptr, index_ptr, out_ptr, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    stream = tl.load(stream_ptr + offsets, mask=mask, other=0).to(tl.uint64, bitcast=True)
    index = tl.load(index_ptr + offsets, mask=mask, other=0).to(tl.uint64, bitcast=True)
    bits = _splitmix64(_splitmix64(stream) ^ index) >> 11
    tl.store(out_ptr + offsets, bits.to(tl.float64) * (1.0 / (1 << 53)), mask=mask)


def draw(
    logits_BV: Tensor, uniform_B: Tensor, temperature: float, top_k: int, top_p: float, banned_V: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Launch: tokens int64 and logps fp32, both [B]."""
    logits_BV, uniform_B = unit_stride(logits_BV), uniform_B.contiguous()
    B, V = logits_BV.shape
    tokens_B = torch.empty(B, dtype=torch.int64, device=logits_BV.device)
    logps_B = torch.empty(B, dtype=torch.float32, device=logits_BV.device)
    if B:
        banned = uniform_B if banned_V is None else banned_V.contiguous().view(torch.uint8)  # None: never read
        _sampling_kernel[(B,)](
            logits_BV, uniform_B, banned, tokens_B, logps_B, logits_BV.stride(0), V, temperature or 1.0, top_k, top_p,
            GREEDY=temperature == 0, HAS_TOP_K=0 < top_k < V, HAS_TOP_P=top_p < 1, HAS_BANNED=banned_V is not None,
            TILE=min(_TILE, block(V)), num_warps=8,
        )  # fmt: skip
    return tokens_B, logps_B


def uniform(stream_B: Tensor, index_B: Tensor) -> Tensor:
    """Launch: float64 [B]."""
    out = torch.empty(stream_B.shape, dtype=torch.float64, device=stream_B.device)
    if out.numel():
        _uniform_kernel[(triton.cdiv(out.numel(), 256),)](
            stream_B.contiguous(), index_B.contiguous(), out, out.numel(), BLOCK=256
        )
    return out


_op = torch.library.custom_op("r1lab_gpu::sampling", draw, mutates_args=())
_uniform_op = torch.library.custom_op("r1lab_gpu::random_uniform", uniform, mutates_args=())


@_op.register_fake
def _(logits, uniform, temperature, top_k, top_p, banned):
    B = logits.shape[0]
    return logits.new_empty(B, dtype=torch.int64), logits.new_empty(B, dtype=torch.float32)


@_uniform_op.register_fake
def _(stream, index):
    return stream.new_empty(stream.shape, dtype=torch.float64)


def sampling(
    logits_BV: Tensor,
    uniform_B: Tensor,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    banned_V: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `ops.sampling`, for logits in `launch.DTYPES`.

    Sums run in fp32 inside a tile and fp64 across tiles: a token whose cumulated probability meets the threshold or the
    uniform number within about 1e-7 may be decided the other way than in the reference.
    """
    return _op(logits_BV, uniform_B, float(temperature), top_k, float(top_p), banned_V)


def random_uniform(stream_B: Tensor, index_B: Tensor) -> Tensor:
    """As `ops.random_uniform`: the reference's bits."""
    return _uniform_op(stream_B, index_B)
