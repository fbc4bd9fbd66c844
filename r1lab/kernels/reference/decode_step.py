"""The decode step of a DeepSeek-V3 policy in plain PyTorch: the truth that `cpu/decode_step.cpp` is tested against.

One row = one token at one position of one sequence. A step embeds the rows' tokens, runs every layer with absorbed
multi-head latent attention over each row's own latent cache, and either stops (prefill) or samples the next token.

Shapes: M rows, D hidden, H heads, C kv_lora_rank, R qk_rope_head_dim, N qk_nope_head_dim, W v_head_dim, S positions,
E experts, K experts per token, F expert intermediate size, V vocabulary, L layers.
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from r1lab.kernels.reference.moe_experts import run_experts
from r1lab.kernels.reference.moe_gate import moe_gate
from r1lab.kernels.reference.quantize_tiles import TILE, dequantize_tiles, quantize_tiles
from r1lab.kernels.reference.rms_norm import rms_norm

STATUS_RUNNING, STATUS_STOP, STATUS_LENGTH, STATUS_NOT_FINITE = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """The numbers a decode step needs; names as in transformers' `DeepseekV3Config`."""

    vocab_size: int
    hidden_size: int
    num_heads: int
    q_lora_rank: int
    """0: queries are projected directly (`q_lora_rank=None`)."""
    kv_lora_rank: int
    qk_rope_head_dim: int
    qk_nope_head_dim: int
    v_head_dim: int
    num_experts: int
    num_experts_per_tok: int
    n_group: int
    topk_group: int
    norm_topk_prob: bool
    rope_interleave: bool
    rms_norm_eps: float
    q_norm_eps: float
    kv_norm_eps: float
    attention_scaling: float
    """Multiplies the attention scores: `(N + R) ** -0.5`, times YaRN's mscale squared."""
    routed_scaling_factor: float


@dataclass(slots=True)
class DecodeLayer:
    """Weights of one layer, [out, in] like `nn.Linear`; None = the layer has no such part."""

    input_norm: torch.Tensor
    q_a: torch.Tensor | None
    q_a_bias: torch.Tensor | None
    q_a_norm: torch.Tensor | None
    q_b: torch.Tensor
    """`q_b_proj`, or `q_proj` without a query LoRA; [H * (N + R), q_lora_rank or D]."""
    kv_a: torch.Tensor
    kv_a_bias: torch.Tensor | None
    kv_a_norm: torch.Tensor
    kv_b: torch.Tensor
    o: torch.Tensor
    o_bias: torch.Tensor | None
    mlp_norm: torch.Tensor
    mlp_gate: torch.Tensor | None
    """[F', D]: the dense MLP's gate projection, or that of the shared experts in a MoE layer."""
    mlp_up: torch.Tensor | None
    mlp_down: torch.Tensor | None
    router: torch.Tensor | None
    """[E, D]; None: a dense layer."""
    router_bias: torch.Tensor | None
    experts_gate_up: torch.Tensor | None
    """[E, 2F, D], the gate's F rows first."""
    experts_down: torch.Tensor | None
    """[E, D, F]."""
    fp8: bool = False
    """The layer's linear layers and experts take their inputs as rounded to E4M3, in 1x128 tiles (V3 technical report,
    section 3.3); their weights, and `kv_b`'s, are rounded already."""


@dataclass(slots=True)
class DecodeMTP:
    """Weights of the multi-token-prediction module, which drafts tokens (see `speculative_step.py`)."""

    enorm: torch.Tensor
    hnorm: torch.Tensor
    eh_proj: torch.Tensor
    """[D, 2D]: multiplies [normed embedding; normed state]."""
    layer: DecodeLayer
    norm: torch.Tensor


@dataclass(slots=True)
class DecodeWeights:
    """A whole policy, as the decode step reads it."""

    config: DecodeConfig
    embed: torch.Tensor
    layers: list[DecodeLayer]
    norm: torch.Tensor
    head: torch.Tensor
    cos: torch.Tensor
    """[S, R / 2] fp32: the rotary embedding's table, one angle per pair, its scaling included."""
    sin: torch.Tensor
    mtp: DecodeMTP | None = None
    """None: the decoder cannot draft."""


@dataclass(slots=True)
class DecodeRequests:
    """The sequences being sampled, one entry each; NumPy arrays that a step updates in place."""

    slot: np.ndarray
    """int32: which cache slot holds the sequence."""
    token: np.ndarray
    """int32: the token to feed next."""
    position: np.ndarray
    """int32: the position of `token`."""
    stream: np.ndarray
    """uint64: the request's random stream (`random_stream`)."""
    limit: np.ndarray
    """int32: the most tokens to sample."""
    count: np.ndarray
    """int32: tokens sampled so far."""
    status: np.ndarray
    """int32: a `STATUS_*`."""
    token_ids: np.ndarray
    """int32 [requests, max limit]."""
    logps: np.ndarray
    """float32 [requests, max limit]."""
    drafted: np.ndarray
    """int32: tokens drafted so far."""
    accepted: np.ndarray
    """int32: how many of those were what was then sampled."""


@dataclass(frozen=True, slots=True)
class DecodeSampling:
    """How a step chooses tokens; see `sample_tokens`."""

    temperature: float
    top_p: float
    top_k: int
    banned_V: torch.Tensor
    """[V] bool."""
    stop_V: torch.Tensor
    """[V] bool: tokens that end a sequence."""


# -- random numbers: a counter-based hash, so that a token's number depends on nothing but its stream and index --------


def _splitmix64(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014), on uint64 arrays."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def random_stream(*parts: int | np.ndarray) -> np.ndarray:
    """64-bit stream ids (uint64) from integers such as (seed, prompt index, completion index), broadcast together."""
    stream = np.zeros(1, np.uint64)
    for part in parts:
        part = part % 2**64 if isinstance(part, int) else part
        stream = _splitmix64(stream ^ np.asarray(part).astype(np.uint64))
    return stream


def random_uniform(stream: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1) of `index` (any integers) within `stream` (uint64); float64, 53 random bits."""
    bits = _splitmix64(_splitmix64(np.asarray(stream, np.uint64)) ^ np.asarray(index).astype(np.uint64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


# -- the choice of a token --------------------------------------------------------------------------------------------


def sample_tokens(logits_MV, uniform_M, sampling: DecodeSampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose a token per row; returns (token ids [M] int64, logps [M] float32).

    The logp is log softmax(logits / temperature) over the full vocabulary. The choice is made by inverse CDF, in
    token order, over that distribution without the banned tokens, cut to its `top_k` likeliest, then to the smallest
    set of likeliest tokens that holds `top_p` of what is left (a tie goes to the lower token id). Temperature 0 is
    greedy and records logps at temperature 1.
    """
    greedy = sampling.temperature == 0
    scaled_MV = logits_MV.float() / (1.0 if greedy else sampling.temperature)
    logps_MV = scaled_MV.log_softmax(-1)
    allowed_MV = logps_MV.masked_fill(sampling.banned_V, -math.inf)
    if greedy:
        tokens_M = allowed_MV.argmax(-1)
    else:
        probs_MV = (allowed_MV - allowed_MV.amax(-1, keepdim=True)).exp().double()
        kept_MV = _truncate(probs_MV, sampling.top_k, sampling.top_p)
        cdf_MV = kept_MV.cumsum(-1)
        target_M1 = torch.as_tensor(uniform_M, dtype=torch.float64, device=cdf_MV.device)[:, None] * cdf_MV[:, -1:]
        # The first token whose CDF exceeds the target; rounding may leave none, then it is the last possible token.
        last_M = (kept_MV.shape[-1] - 1) - (kept_MV > 0).flip(-1).int().argmax(-1)
        tokens_M = torch.minimum(torch.searchsorted(cdf_MV, target_M1, right=True)[:, 0], last_M)
    return tokens_M, logps_MV.gather(-1, tokens_M[:, None])[:, 0]


def _truncate(probs_MV: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Zero what top-k, then top-p, leave out of unnormalised probabilities."""
    if top_k <= 0 and top_p >= 1:
        return probs_MV
    sorted_MV, order_MV = probs_MV.sort(dim=-1, descending=True, stable=True)
    if 0 < top_k < probs_MV.shape[-1]:
        sorted_MV[:, top_k:] = 0
    if top_p < 1:
        before_MV = sorted_MV.cumsum(-1) - sorted_MV
        sorted_MV = sorted_MV.masked_fill(before_MV >= top_p * sorted_MV.sum(-1, keepdim=True), 0)
    return torch.zeros_like(probs_MV).scatter(-1, order_MV, sorted_MV)


# -- the network ------------------------------------------------------------------------------------------------------


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleave: bool) -> torch.Tensor:
    """Rotary embedding of the last dimension; interleaved pairs come out as halves, as transformers lays them out."""
    first, second = (x[..., 0::2], x[..., 1::2]) if interleave else x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def _rounded(x_MK: torch.Tensor, layer: DecodeLayer) -> torch.Tensor:
    """What a product of the layer makes of its input."""
    if not layer.fp8:
        return x_MK
    return dequantize_tiles(*quantize_tiles(x_MK, 1, power_of_two=True), 1).to(x_MK.dtype)


def _swiglu(x_MD: torch.Tensor, gate_FD, up_FD, down_DF, layer: DecodeLayer) -> torch.Tensor:
    """x comes rounded."""
    return F.linear(_rounded(F.silu(F.linear(x_MD, gate_FD)) * F.linear(x_MD, up_FD), layer), down_DF)


def _feed_forward(
    x_MD: torch.Tensor, layer: DecodeLayer, config: DecodeConfig
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """([M, D], the experts chosen [M, K]; None: a dense layer)."""
    y_MD, rounded_MD, topk_idx_MK = torch.zeros_like(x_MD), _rounded(x_MD, layer), None
    if layer.router is not None:
        topk_idx_MK, topk_weights_MK = moe_gate(
            F.linear(x_MD.float(), layer.router.float()),
            layer.router_bias,
            config.n_group,
            config.topk_group,
            config.num_experts_per_tok,
            config.norm_topk_prob,
            config.routed_scaling_factor,
        )
        experts = [(*gate_up.chunk(2), down) for gate_up, down in zip(layer.experts_gate_up, layer.experts_down)]
        swiglu = partial(_swiglu, layer=layer)
        y_MD = run_experts(rounded_MD, topk_idx_MK, topk_weights_MK, experts, swiglu)
    if layer.mlp_gate is not None:
        y_MD = y_MD + _swiglu(rounded_MD, layer.mlp_gate, layer.mlp_up, layer.mlp_down, layer)
    return y_MD, topk_idx_MK


class _PlainStore:
    """What is cached, [layers, slots, capacity, C], in the dtype of `like`."""

    def __init__(self, like: torch.Tensor, num_layers: int, num_slots: int, capacity: int, width: int):
        self.tensors = [like.new_zeros(num_layers, num_slots, capacity, width)]

    def write(self, layer: int, slot_M: torch.Tensor, position_M: torch.Tensor, x_MC: torch.Tensor) -> None:
        self.tensors[0][layer, slot_M, position_M] = x_MC

    def read(self, layer: int, slot_M: torch.Tensor, length: int) -> torch.Tensor:
        """[M, length, C]."""
        return self.tensors[0][layer, slot_M, :length]


class _E4M3Store:
    """The same in E4M3, as bytes, with the scales of 1x128 tiles, [layers, slots, capacity, ceil(C / 128)] fp32."""

    def __init__(self, like: torch.Tensor, num_layers: int, num_slots: int, capacity: int, width: int):
        shape = (num_layers, num_slots, capacity)
        codes = like.new_zeros(*shape, width, dtype=torch.uint8)  # E4M3 tensors cannot be indexed everywhere
        self.tensors = [codes, like.new_ones(*shape, -(-width // TILE), dtype=torch.float32)]
        self.dtype = like.dtype

    def write(self, layer: int, slot_M: torch.Tensor, position_M: torch.Tensor, x_MC: torch.Tensor) -> None:
        q_MC, scale_MG = quantize_tiles(x_MC, 1, power_of_two=True)  # exact for what an FP8 layer has rounded already
        for tensor, value in zip(self.tensors, (q_MC.view(torch.uint8), scale_MG), strict=True):
            tensor[layer, slot_M, position_M] = value

    def read(self, layer: int, slot_M: torch.Tensor, length: int) -> torch.Tensor:
        """[M, length, C]."""
        codes, scale = (tensor[layer, slot_M, :length].flatten(0, 1) for tensor in self.tensors)
        numbers = dequantize_tiles(codes.view(torch.float8_e4m3fn), scale, 1)
        return numbers.view(len(slot_M), length, -1).to(self.dtype)


class DecodeHistory:
    """What the multi-token-prediction module reads: the tokens fed so far and their final states, slot by slot."""

    def __init__(self, weights: DecodeWeights, num_slots: int, capacity: int):
        self.hidden = weights.embed.new_zeros(num_slots, capacity, weights.config.hidden_size)
        self.tokens = torch.zeros(num_slots, capacity, dtype=torch.int32, device=weights.embed.device)
        self.length = torch.zeros(num_slots, dtype=torch.int32)
        """For how many positions the module's own cache is filled."""

    def record(self, slot_M, position_M, token_M, hidden_MD) -> None:
        """Keeps what was fed; a position 0 starts a slot anew."""
        self.hidden[slot_M, position_M], self.tokens[slot_M, position_M] = hidden_MD, token_M.int()
        self.length[slot_M[position_M == 0].cpu()] = 0

    def states(self, slot_M: np.ndarray, position_M: np.ndarray) -> torch.Tensor:
        """[M, D]."""
        return self.hidden[torch.as_tensor(slot_M).long(), torch.as_tensor(position_M).long()]

    def fork(self, source: int, slots: list[int], length: int) -> None:
        """Copies the first `length` tokens of slot `source` to other slots."""
        for tensor in (self.hidden, self.tokens):
            tensor[slots, :length] = tensor[source, :length].clone()
        self.length[slots] = self.length[source].clamp(max=length)


def routing_store(weights: DecodeWeights, num_slots: int, capacity: int) -> torch.Tensor:
    """Where a decoder notes the experts it chooses: int16 [slots, capacity, MoE layers, K], best first. As in the
    caches, a token fed at a position takes the place of what was fed there before, a rejected draft for one. The block
    of the multi-token-prediction module is not among the layers.

    Raises ValueError for weights without experts.
    """
    num_layers = sum(layer.router is not None for layer in weights.layers)
    if not num_layers:
        raise ValueError("record_routing=True: the policy has no MoE layers, so there is no routing; leave it False")
    shape = (num_slots, capacity, num_layers, weights.config.num_experts_per_tok)
    return torch.full(shape, -1, dtype=torch.int16, device=weights.embed.device)


class ReferenceDecoder:
    """Latent caches for `num_slots` sequences of up to `capacity` tokens, and the step that reads and extends them.

    `prefill`, `fork` and `decode` are the three things the rollout engine does; `CpuDecoder` has the same three.
    """

    def __init__(
        self,
        weights: DecodeWeights,
        num_slots: int,
        capacity: int,
        num_threads: int | None = None,
        cache_dtype: str = "auto",
        record_routing: bool = False,
    ):
        """cache_dtype: "auto", the weights' own, or "fp8": latents in E4M3 with a scale for each 128 of a token's
        numbers (rotary keys, which carry the positions, stay high). record_routing: keep the experts chosen for each
        token in `routing` (`routing_store`); else that is None."""
        config = weights.config
        self.layers = weights.layers + ([] if weights.mtp is None else [weights.mtp.layer])
        shape = (len(self.layers), num_slots, capacity)
        self.weights = weights
        self.history = None if weights.mtp is None else DecodeHistory(weights, num_slots, capacity)
        self.kv_cache = (_E4M3Store if cache_dtype == "fp8" else _PlainStore)(
            weights.embed, *shape, config.kv_lora_rank
        )
        self.pe_cache = _PlainStore(weights.embed, *shape, config.qk_rope_head_dim)
        self.routing = routing_store(weights, num_slots, capacity) if record_routing else None

    @property
    def cache_bytes(self) -> int:
        """Bytes that the caches of all slots take, scales included."""
        tensors = (*self.kv_cache.tensors, *self.pe_cache.tensors)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def prefill(self, slot_M: np.ndarray, token_M: np.ndarray, position_M: np.ndarray) -> torch.Tensor:
        """Run rows through the layers, filling the caches; rows of one slot in order of position, starting where its
        cache ends. Returns the final normed hidden states [M, D]."""
        slot_M, token_M, position_M = (
            torch.as_tensor(a, dtype=torch.long, device=self.weights.embed.device)
            for a in (slot_M, token_M, position_M)
        )
        config = self.weights.config
        x_MD = self.weights.embed[token_M]
        for index in range(len(self.weights.layers)):
            x_MD = self.run_layer(x_MD, index, slot_M, position_M)
        hidden_MD = rms_norm(x_MD, self.weights.norm, config.rms_norm_eps)
        if self.history is not None:
            self.history.record(slot_M, position_M, token_M, hidden_MD)
        return hidden_MD

    def run_layer(self, x_MD: torch.Tensor, index: int, slot_M: torch.Tensor, position_M: torch.Tensor) -> torch.Tensor:
        """One layer, [M, D] -> [M, D]; fills its cache. The multi-token-prediction module's block is the last."""
        layer, config = self.layers[index], self.weights.config
        normed_MD = rms_norm(x_MD, layer.input_norm, config.rms_norm_eps)
        x_MD = x_MD + self._attention(normed_MD, index, slot_M, position_M)
        y_MD, topk_idx_MK = _feed_forward(rms_norm(x_MD, layer.mlp_norm, config.rms_norm_eps), layer, config)
        if self.routing is not None and topk_idx_MK is not None and index < len(self.weights.layers):
            number = sum(each.router is not None for each in self.layers[:index])
            self.routing[slot_M, position_M, number] = topk_idx_MK.to(torch.int16)
        return x_MD + y_MD

    def fork(self, source: int, slots: list[int], length: int) -> None:
        """Copy the first `length` tokens of slot `source` to other slots."""
        for cache in (*self.kv_cache.tensors, *self.pe_cache.tensors):
            cache[:, slots, :length] = cache[:, source, None, :length]
        if self.history is not None:
            self.history.fork(source, slots, length)

    def logits(self, slot_M: np.ndarray, token_M: np.ndarray, position_M: np.ndarray) -> torch.Tensor:
        """`prefill`, then the head: logits [M, V] of each row's next token."""
        return F.linear(self.prefill(slot_M, token_M, position_M), self.weights.head)

    def decode(
        self,
        requests: DecodeRequests,
        active: np.ndarray,
        num_steps: int,
        sampling: DecodeSampling,
        num_drafts: int = 0,
    ) -> None:
        """Sample `num_steps` times for each of the `active` requests (indices), in place: one token, or with drafts of
        the multi-token-prediction module 1 to num_drafts + 1 tokens (`speculative_step.py`). A request whose status
        leaves STATUS_RUNNING takes no further part."""
        if num_drafts:
            from r1lab.kernels.reference.speculative_step import decode_speculative  # it builds on this module

            decode_speculative(self, requests, active, num_steps, sampling, num_drafts)
            return
        for _ in range(num_steps):
            active = active[requests.status[active] == STATUS_RUNNING]
            if not len(active):
                return
            logits_MV = self.logits(requests.slot[active], requests.token[active], requests.position[active])
            uniform_M = random_uniform(requests.stream[active], requests.count[active])
            token_M, logp_M = sample_tokens(logits_MV, uniform_M, sampling)
            record_tokens(requests, active, token_M.cpu().numpy(), logp_M.cpu().numpy(), sampling.stop_V.cpu().numpy())

    def _attention(self, x_MD: torch.Tensor, index: int, slot_M, position_M) -> torch.Tensor:
        """Absorbed MLA: queries go into latent space (through the key half of kv_b), attend to the latents
        themselves, and the result comes back through the value half (DeepSeek-V2, section 2.1 and appendix C)."""
        config, layer = self.weights.config, self.layers[index]
        cos = self.weights.cos[position_M].to(x_MD.dtype)
        sin = self.weights.sin[position_M].to(x_MD.dtype)
        x_MD = _rounded(x_MD, layer)
        if layer.q_a is not None:
            low_MQ = rms_norm(F.linear(x_MD, layer.q_a, layer.q_a_bias), layer.q_a_norm, config.q_norm_eps)
            q = F.linear(_rounded(low_MQ, layer), layer.q_b)
        else:
            q = F.linear(x_MD, layer.q_b)
        sizes = (config.qk_nope_head_dim, config.qk_rope_head_dim)
        q_nope_MHN, q_pe_MHR = q.unflatten(-1, (config.num_heads, -1)).split(sizes, -1)
        q_pe_MHR = _rotate(q_pe_MHR, cos[:, None], sin[:, None], config.rope_interleave)
        kv_MC, pe_MR = F.linear(x_MD, layer.kv_a, layer.kv_a_bias).split((config.kv_lora_rank, sizes[1]), -1)
        latent_MC = rms_norm(kv_MC, layer.kv_a_norm, config.kv_norm_eps)
        self.kv_cache.write(index, slot_M, position_M, _rounded(latent_MC, layer))  # it is what kv_b takes
        self.pe_cache.write(index, slot_M, position_M, _rotate(pe_MR, cos, sin, config.rope_interleave))

        key_HNC, value_HWC = layer.kv_b.unflatten(0, (config.num_heads, -1)).split((sizes[0], config.v_head_dim), 1)
        length = int(position_M.max()) + 1
        kv_MSC, pe_MSR = (cache.read(index, slot_M, length) for cache in (self.kv_cache, self.pe_cache))
        q_MHC = torch.einsum("mhn,hnc->mhc", q_nope_MHN, key_HNC)
        scores_MHS = torch.einsum("mhc,msc->mhs", q_MHC, kv_MSC) + torch.einsum("mhr,msr->mhs", q_pe_MHR, pe_MSR)
        future_MS = torch.arange(length, device=x_MD.device) > position_M[:, None]
        scores_MHS = (scores_MHS * config.attention_scaling).masked_fill(future_MS[:, None], -math.inf)
        probs_MHS = scores_MHS.softmax(-1, dtype=torch.float32).to(x_MD.dtype)
        context_MHC = torch.einsum("mhs,msc->mhc", probs_MHS, kv_MSC)
        attended_MO = torch.einsum("mhc,hwc->mhw", context_MHC, value_HWC).flatten(1)
        return F.linear(_rounded(attended_MO, layer), layer.o, layer.o_bias)


def record_tokens(requests: DecodeRequests, active, token_M, logp_M, stop_V) -> None:
    """Append the sampled tokens and decide who is done."""
    finite = np.isfinite(logp_M)
    requests.status[active[~finite]] = STATUS_NOT_FINITE
    active, token_M, logp_M = active[finite], token_M[finite], logp_M[finite]
    count = requests.count[active]
    requests.token_ids[active, count], requests.logps[active, count] = token_M, logp_M
    requests.token[active] = token_M
    requests.position[active] += 1
    requests.count[active] += 1
    full = requests.count[active] >= requests.limit[active]
    requests.status[active] = np.where(stop_V[token_M], STATUS_STOP, np.where(full, STATUS_LENGTH, STATUS_RUNNING))
