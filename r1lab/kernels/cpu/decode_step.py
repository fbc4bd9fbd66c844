"""The compiled decode step (`decode_step.cpp`) behind the same three methods as `ReferenceDecoder`."""

import ctypes
from ctypes import POINTER, c_double, c_float, c_int32, c_int64, c_void_p

import numpy as np
import torch

from r1lab.kernels import build
from r1lab.kernels.reference.decode_step import (
    STATUS_RUNNING,
    DecodeHistory,
    DecodeLayer,
    DecodeMTP,
    DecodeRequests,
    DecodeSampling,
    DecodeWeights,
    routing_store,
)

PANEL = 16
"""Outputs per packed weight panel; as in decode_step.cpp."""
MAX_DRAFTS = 7
"""Most drafts a cycle; the rows of a block are shared out among sequences and their drafts."""
LANES = 8
"""Positions that lie side by side in the cache; as in decode_step.cpp."""

_LAYER_TENSORS = (
    "input_norm", "qkv_a", "qkv_a_bias", "q_norm", "q_b", "kv_norm", "key_up", "value_up", "o", "o_bias", "mlp_norm",
    "mlp_gate_up", "mlp_down", "router", "router_bias", "experts_gate_up", "experts_down",
)  # fmt: skip


class _Layer(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in _LAYER_TENSORS] + [
        (name, c_int32) for name in ("mlp_size", "moe_size", "moe_number", "fp8")
    ]


class _Mtp(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("enorm", "hnorm", "eh_proj", "norm", "hidden", "tokens", "length")]


class _Model(ctypes.Structure):
    _fields_ = (
        [(name, c_int32) for name in (
            "num_layers", "vocab", "hidden", "heads", "q_rank", "kv_rank", "rope", "nope", "v_dim", "experts", "top_k",
            "n_group", "topk_group", "norm_topk_prob", "rope_interleave", "num_slots", "capacity", "num_moe_layers")]
        + [(name, c_float) for name in ("eps", "q_eps", "kv_eps", "attention_scaling", "routed_scaling")]
        + [(name, c_void_p) for name in ("embed", "norm", "head", "cos", "sin")]
        + [("layers", POINTER(_Layer)), ("cache", c_void_p), ("mtp", POINTER(_Mtp)), ("routing", c_void_p)]
    )  # fmt: skip


class _Sampling(ctypes.Structure):
    _fields_ = [
        ("top_p", c_double), ("temperature", c_float), ("top_k", c_int32), ("banned", c_void_p), ("stop", c_void_p),
    ]  # fmt: skip


class _Requests(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in (
        "slot", "token", "position", "stream", "limit", "count", "status", "token_ids", "logps", "drafted", "accepted",
    )] + [("row_stride", c_int64)]  # fmt: skip


def is_cpu_decoder_available() -> bool:
    """Whether the compiled library could be built (the first call builds it)."""
    return build.load_extension()


class CpuDecoder:
    """Latent caches for `num_slots` sequences of up to `capacity` tokens, and the compiled step. fp32 weights on the
    CPU, which are packed here (one pass over them); later changes of the policy need a new decoder.

    The cache lies as [layers, slots, capacity / 8, kv_lora_rank + qk_rope_head_dim, 8], so that eight positions are one
    vector in scores and in sums over positions alike.
    """

    def __init__(
        self,
        weights: DecodeWeights,
        num_slots: int,
        capacity: int,
        num_threads: int | None = None,
        record_routing: bool = False,
    ):
        """record_routing: as in `ReferenceDecoder`."""
        if weights.embed.dtype != torch.float32 or weights.embed.device.type != "cpu":
            raise ValueError(
                f"CpuDecoder needs fp32 weights on the CPU, got {weights.embed.dtype} on {weights.embed.device}; "
                "use ReferenceDecoder"
            )
        self.config = config = weights.config
        self.num_threads = num_threads or torch.get_num_threads()
        self._library = build.extension()
        self._tensors: list[torch.Tensor] = []  # keeps what C points at alive
        num_blocks = -(-capacity // LANES)
        latent = config.kv_lora_rank + config.qk_rope_head_dim
        # Zeroed: a half-filled block is read whole, and 0 * NaN is not 0.
        layers = weights.layers + ([] if weights.mtp is None else [weights.mtp.layer])
        self.cache = torch.zeros(len(layers), num_slots, num_blocks, latent, LANES)
        self.history = None if weights.mtp is None else DecodeHistory(weights, num_slots, num_blocks * LANES)
        self.routing = routing_store(weights, num_slots, num_blocks * LANES) if record_routing else None
        moe_numbers = np.cumsum([0, *(layer.router is not None for layer in layers)]).tolist()
        self._layers = (_Layer * len(layers))(*map(self._pack_layer, layers, moe_numbers))
        self._model = _Model(
            len(weights.layers), config.vocab_size, config.hidden_size, config.num_heads, config.q_lora_rank,
            config.kv_lora_rank, config.qk_rope_head_dim, config.qk_nope_head_dim, config.v_head_dim,
            config.num_experts, config.num_experts_per_tok, config.n_group, config.topk_group, config.norm_topk_prob,
            config.rope_interleave, num_slots, num_blocks * LANES, moe_numbers[len(weights.layers)],
            config.rms_norm_eps, config.q_norm_eps, config.kv_norm_eps, config.attention_scaling,
            config.routed_scaling_factor, self._keep(weights.embed), self._keep(weights.norm),
            self._keep(_pack(weights.head)), self._keep(weights.cos), self._keep(weights.sin), self._layers,
            self.cache.data_ptr(), self._pack_mtp(weights.mtp), self._keep(self.routing),
        )  # fmt: skip

    def prefill(self, slot_M: np.ndarray, token_M: np.ndarray, position_M: np.ndarray) -> torch.Tensor:
        """Run rows through the layers, filling the caches; rows of one slot adjacent and in order of position, starting
        where its cache ends. Returns the final normed hidden states [M, D]."""
        hidden_MD = torch.empty(len(slot_M), self.config.hidden_size)
        self._forward(slot_M, token_M, position_M, hidden_MD.data_ptr(), None)
        return hidden_MD

    def logits(self, slot_M: np.ndarray, token_M: np.ndarray, position_M: np.ndarray) -> torch.Tensor:
        """`prefill`, then the head: logits [M, V] of each row's next token."""
        logits_MV = torch.empty(len(slot_M), self.config.vocab_size)
        self._forward(slot_M, token_M, position_M, None, logits_MV.data_ptr())
        return logits_MV

    def fork(self, source: int, slots: list[int], length: int) -> None:
        """Copy the first `length` tokens of slot `source` to other slots."""
        num_blocks = -(-length // LANES)
        self.cache[:, slots, :num_blocks] = self.cache[:, source, None, :num_blocks]
        if self.history is not None:
            self.history.fork(source, slots, length)

    def decode(
        self,
        requests: DecodeRequests,
        active: np.ndarray,
        num_steps: int,
        sampling: DecodeSampling,
        num_drafts: int = 0,
    ) -> None:
        """Sample `num_steps` times for each of the `active` requests (indices), in place: one token, or with drafts of
        the multi-token-prediction module 1 to num_drafts + 1 tokens (`speculative_step.h`). A request whose status
        leaves STATUS_RUNNING takes no further part."""
        if not 0 <= num_drafts <= MAX_DRAFTS or (num_drafts and self.history is None):
            raise ValueError(f"num_drafts={num_drafts}: 0..{MAX_DRAFTS}, above 0 with a module's weights (with_mtp)")
        active = np.ascontiguousarray(active[requests.status[active] == STATUS_RUNNING], np.int32)
        how = _Sampling(
            sampling.top_p, sampling.temperature, sampling.top_k,
            sampling.banned_V.data_ptr() if sampling.banned_V.any() else None, sampling.stop_V.data_ptr(),
        )  # fmt: skip
        self._library.r1_decode(
            ctypes.byref(self._model), ctypes.byref(how), ctypes.byref(_request_pointers(requests)),
            c_void_p(active.ctypes.data), c_int32(len(active)), c_int32(num_steps), c_int32(num_drafts),
            c_int32(self.num_threads),
        )  # fmt: skip

    def _forward(self, slot_M, token_M, position_M, hidden: int | None, logits: int | None) -> None:
        rows = [np.ascontiguousarray(row, np.int32) for row in (slot_M, token_M, position_M)]
        self._library.r1_forward(
            ctypes.byref(self._model), *(c_void_p(row.ctypes.data) for row in rows), c_int32(len(rows[0])),
            c_void_p(hidden), c_void_p(logits), c_int32(self.num_threads),
        )  # fmt: skip

    def _keep(self, tensor: torch.Tensor | None) -> int | None:
        if tensor is None:
            return None
        self._tensors.append(tensor.detach().contiguous())
        return self._tensors[-1].data_ptr()

    def _pack_mtp(self, mtp: DecodeMTP | None):
        if mtp is None:
            return None
        history = self.history
        tensors = (mtp.enorm, mtp.hnorm, _pack(mtp.eh_proj), mtp.norm, history.hidden, history.tokens, history.length)
        return POINTER(_Mtp)(_Mtp(*(self._keep(tensor) for tensor in tensors)))

    def _pack_layer(self, layer: DecodeLayer, moe_number: int) -> _Layer:
        config = self.config
        first, first_bias = (layer.q_b, None) if layer.q_a is None else (layer.q_a, layer.q_a_bias)
        sizes = (config.qk_nope_head_dim, config.v_head_dim)
        key_HNC, value_HWC = layer.kv_b.unflatten(0, (config.num_heads, -1)).split(sizes, 1)
        packed = {
            "input_norm": layer.input_norm,
            "qkv_a": _pack(first, layer.kv_a),
            "qkv_a_bias": _pack_bias([first_bias, layer.kv_a_bias], [len(first), len(layer.kv_a)]),
            "q_norm": layer.q_a_norm,
            "q_b": None if layer.q_a is None else _pack(layer.q_b),
            "kv_norm": layer.kv_a_norm,
            "key_up": _pack(key_HNC.transpose(1, 2)),
            "value_up": _pack(value_HWC),
            "o": _pack(layer.o),
            "o_bias": _pack_bias([layer.o_bias], [len(layer.o)]),
            "mlp_norm": layer.mlp_norm,
            "mlp_gate_up": None if layer.mlp_gate is None else _pack(layer.mlp_gate, layer.mlp_up),
            "mlp_down": None if layer.mlp_gate is None else _pack(layer.mlp_down),
            "router": None if layer.router is None else _pack(layer.router),
            "router_bias": None if layer.router is None else layer.router_bias,
            "experts_gate_up": None if layer.router is None else _pack(layer.experts_gate_up),
            "experts_down": None if layer.router is None else _pack(layer.experts_down),
        }
        pointers = [self._keep(packed[name]) for name in _LAYER_TENSORS]
        mlp_size = 0 if layer.mlp_gate is None else layer.mlp_gate.shape[0]
        moe_size = 0 if layer.router is None else layer.experts_down.shape[-1]
        return _Layer(*pointers, mlp_size, moe_size, moe_number, layer.fp8)


def _pack(*parts: torch.Tensor) -> torch.Tensor:
    """Concatenated, [.., out, in] or [out, in] -> [.., ceil(out / 16), in, 16], missing outputs 0."""
    parts_COI = [part if part.dim() == 3 else part[None] for part in parts]
    count, _, num_in = parts_COI[0].shape
    num_total = sum(part.shape[1] for part in parts_COI)
    allocate = torch.zeros if num_total % PANEL else torch.empty
    panels = allocate(count, -(-num_total // PANEL), num_in, PANEL)
    first = 0
    for part in parts_COI:
        build.extension().r1_pack(
            c_void_p(part.data_ptr()), *map(c_int64, part.stride()), *map(c_int32, (count, part.shape[1], num_in)),
            c_int32(first), c_int32(num_total), c_void_p(panels.data_ptr()),
        )  # fmt: skip
        first += part.shape[1]
    return panels


def _pack_bias(biases: list[torch.Tensor | None], sizes: list[int]) -> torch.Tensor | None:
    """Concatenate biases (None = zeros) and pad to whole panels; None when all are."""
    if all(bias is None for bias in biases):
        return None
    bias = torch.cat([torch.zeros(size) if bias is None else bias for bias, size in zip(biases, sizes)])
    return torch.nn.functional.pad(bias, (0, -len(bias) % PANEL))


def _request_pointers(requests: DecodeRequests) -> _Requests:
    dtypes = {"stream": np.uint64, "logps": np.float32}
    for name, _ in _Requests._fields_[:-1]:
        array = getattr(requests, name)
        if array.dtype != dtypes.get(name, np.int32) or not array.flags.c_contiguous:
            raise ValueError(f"requests.{name} must be a contiguous {dtypes.get(name, np.int32).__name__} array")
    arrays = [getattr(requests, name).ctypes.data for name, _ in _Requests._fields_[:-1]]
    return _Requests(*arrays, requests.token_ids.shape[1])
