"""The latent key/value cache of MLA: what a token costs is kv_lora_rank + qk_rope_head_dim numbers a layer.

B rows, T new tokens, S tokens cached so far (new ones included), R = kv_lora_rank, P = qk_rope_head_dim.
"""

import torch

GROWTH = 64
"""Room for this many more tokens is made when a layer's storage is full, so that decoding copies it rarely."""


class LatentCache:
    """Per layer the compressed latent and the shared rotary key (DeepSeek-V2 report, section 2.1.2).

    It has the methods transformers' `generate` calls on a cache, so it can be passed as `past_key_values`.
    """

    is_compileable = False
    is_croppable = True

    def __init__(self) -> None:
        self._kv: list[torch.Tensor] = []  # [B, capacity, R]; only the first `_lengths[layer]` tokens are meaningful
        self._pe: list[torch.Tensor] = []  # [B, capacity, P]
        self._lengths: list[int] = []

    def __len__(self) -> int:
        """Number of layers held."""
        return len(self._lengths)

    @property
    def kv_cache(self) -> list[torch.Tensor]:
        """One [B, S, R] view per layer: the normed compressed latents."""
        return [kv[:, :length] for kv, length in zip(self._kv, self._lengths)]

    @property
    def pe_cache(self) -> list[torch.Tensor]:
        """One [B, S, P] view per layer: the rotated keys shared by all heads."""
        return [pe[:, :length] for pe, length in zip(self._pe, self._lengths)]

    @property
    def batch_size(self) -> int:
        """Number of rows B; 0 while the cache is empty."""
        return self._kv[0].shape[0] if self._kv else 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens cached in a layer; 0 while the layer is empty."""
        return self._lengths[layer_idx] if layer_idx < len(self._lengths) else 0

    def update(self, kv_BTR: torch.Tensor, pe_BTP: torch.Tensor, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Append T tokens to a layer.

        Returns (kv [B, S, R], pe [B, S, P]): views of everything cached, valid until the next call.
        Raises ValueError when layers are filled out of order or the number of rows differs from what is cached.
        """
        if layer_idx > len(self._lengths):
            raise ValueError(f"layer {layer_idx} comes before layer {len(self._lengths)}; fill the layers in order")
        if layer_idx == len(self._lengths):
            self._kv.append(kv_BTR)
            self._pe.append(pe_BTP)
            self._lengths.append(kv_BTR.shape[1])
            return kv_BTR, pe_BTP
        if kv_BTR.shape[0] != self._kv[layer_idx].shape[0]:
            raise ValueError(
                f"{kv_BTR.shape[0]} rows given, {self._kv[layer_idx].shape[0]} cached; use fork() or select() first"
            )
        start = self._lengths[layer_idx]
        end = start + kv_BTR.shape[1]
        self._kv[layer_idx] = _append(self._kv[layer_idx], kv_BTR, start)
        self._pe[layer_idx] = _append(self._pe[layer_idx], pe_BTP, start)
        self._lengths[layer_idx] = end
        return self._kv[layer_idx][:, :end], self._pe[layer_idx][:, :end]

    def fork(self, n: int) -> "LatentCache":
        """A new cache with each row repeated n times in place: rows 0, 0, .., 1, 1, .. (B -> B * n)."""
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        return self._map(lambda x: x.repeat_interleave(n, dim=0))

    def select(self, rows: torch.Tensor | list[int]) -> "LatentCache":
        """A new cache of the given rows: int64 indices (repeats allowed) or a bool mask over the B rows."""
        rows = torch.as_tensor(rows)
        if rows.dtype == torch.bool:
            rows = rows.nonzero().squeeze(1)
        return self._map(lambda x: x.index_select(0, rows.to(device=x.device, dtype=torch.int64)))

    def crop(self, max_length: int) -> None:
        """Keep the first `max_length` tokens of every layer; a negative number drops that many from the end."""
        for layer_idx, length in enumerate(self._lengths):
            keep = max_length if max_length >= 0 else length + max_length
            self._lengths[layer_idx] = max(0, min(length, keep))

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Beam search: row i becomes what row beam_idx[i] was."""
        self._replace(self.select(beam_idx))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """`fork` in place, under transformers' name."""
        self._replace(self.fork(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """`select` in place, under transformers' name."""
        self._replace(self.select(indices))

    def reset(self) -> None:
        """Forget everything."""
        self._replace(LatentCache())

    def _map(self, fn) -> "LatentCache":
        other = LatentCache()
        other._kv = [fn(x) for x in self.kv_cache]
        other._pe = [fn(x) for x in self.pe_cache]
        other._lengths = list(self._lengths)
        return other

    def _replace(self, other: "LatentCache") -> None:
        self._kv, self._pe, self._lengths = other._kv, other._pe, other._lengths


def _append(stored_BCx: torch.Tensor, new_BTx: torch.Tensor, start: int) -> torch.Tensor:
    if new_BTx.requires_grad or stored_BCx.requires_grad:
        # Earlier steps saved views of the storage for backward: writing into it would corrupt their gradients.
        return torch.cat([stored_BCx[:, :start], new_BTx], dim=1)
    end = start + new_BTx.shape[1]
    if end > stored_BCx.shape[1]:
        grown = stored_BCx.new_empty(stored_BCx.shape[0], end + GROWTH, stored_BCx.shape[2])
        grown[:, :start] = stored_BCx[:, :start]
        stored_BCx = grown
    stored_BCx[:, start:end] = new_BTx
    return stored_BCx
