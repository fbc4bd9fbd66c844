"""Computing only real tokens: padding is cut out before the first layer and put back behind the last.

B rows of T columns hold N tokens. Attention lays them out again as Q sequences of L slots, L = the longest sequence.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(slots=True)
class Packing:
    """Where N packed tokens, kept as one row [1, N, ...], come from, and which sequence each belongs to."""

    source_N: torch.Tensor
    """int64 index of each token in the flattened [B * T] input."""
    slots_N: torch.Tensor
    """int64 index of each token in the flattened [Q * L] layout of attention, left-aligned and in order."""
    num_sequences: int
    """Q."""
    length: int
    """L."""
    cu_seqlens: torch.Tensor
    """int32 [Q + 1]: sequence q is tokens cu_seqlens[q] .. cu_seqlens[q + 1] - 1 of the N."""

    def take(self, x_BT: torch.Tensor) -> torch.Tensor:
        """[B, T, ...] -> [1, N, ...]."""
        return x_BT.flatten(0, 1).index_select(0, self.source_N).unsqueeze(0)

    def put_back(self, x_1N: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """[1, N, ...] -> [B, T, ...], shape = (B, T); zeros where padding was."""
        return _scatter(x_1N, self.source_N, shape)

    def to_sequences(self, x_1N: torch.Tensor) -> torch.Tensor:
        """[1, N, ...] -> [Q, L, ...], zeros behind the end of each sequence: plainly causal attention is right."""
        return _scatter(x_1N, self.slots_N, (self.num_sequences, self.length))

    def from_sequences(self, x_QL: torch.Tensor) -> torch.Tensor:
        """[Q, L, ...] -> [1, N, ...]."""
        return x_QL.flatten(0, 1).index_select(0, self.slots_N).unsqueeze(0)

    def sequence_mask(self) -> torch.Tensor:
        """[Q, L] bool, True on tokens."""
        mask = torch.zeros(self.num_sequences * self.length, dtype=torch.bool, device=self.slots_N.device)
        mask[self.slots_N] = True
        return mask.view(self.num_sequences, self.length)


def build_packing(
    attention_mask_BT: torch.Tensor | None, position_ids: torch.Tensor | None, shape: tuple[int, int]
) -> Packing | None:
    """The packing of a call without a cache, or None when every row is one unpadded sequence.

    attention_mask [B, T], shape = (B, T): 1 on tokens, 0 on padding, which may stand anywhere. Without it, position_ids
    [B, T] that do not count up by one start a new sequence, so sequences concatenated in a row are kept apart (as in
    transformers).
    Raises ValueError when attention_mask is not [B, T] or marks no token.
    """
    if attention_mask_BT is not None:
        if attention_mask_BT.shape != shape:
            raise ValueError(f"attention_mask has shape {tuple(attention_mask_BT.shape)}, expected {tuple(shape)}")
        return _from_mask(attention_mask_BT.bool())
    if position_ids is not None and position_ids.shape == shape:
        return _from_positions(position_ids)
    return None


def _from_mask(keep_BT: torch.Tensor) -> Packing | None:
    if keep_BT.all():
        return None
    lengths_B = keep_BT.sum(1)
    length = int(lengths_B.max())
    if length == 0:
        raise ValueError("attention_mask is 0 everywhere; give at least one token")
    slot_BT = keep_BT.cumsum(1) - 1
    first_slot_B1 = torch.arange(len(keep_BT), device=keep_BT.device).unsqueeze(1) * length
    source_N = keep_BT.flatten().nonzero().squeeze(1)
    slots_N = (slot_BT + first_slot_B1).flatten()[source_N]
    return Packing(source_N, slots_N, len(keep_BT), length, _cumulate(lengths_B))


def _from_positions(position_BT: torch.Tensor) -> Packing | None:
    restarts = position_BT.diff(dim=1) != 1
    if not restarts.any():
        return None
    starts_N = F.pad(restarts, (1, 0), value=True).flatten()
    source_N = torch.arange(starts_N.numel(), device=starts_N.device)
    sequence_N = starts_N.cumsum(0) - 1
    slot_N = source_N - source_N[starts_N][sequence_N]
    length = int(slot_N.max()) + 1
    cu_seqlens = _cumulate(torch.bincount(sequence_N))
    return Packing(source_N, sequence_N * length + slot_N, int(sequence_N[-1]) + 1, length, cu_seqlens)


def _cumulate(lengths: torch.Tensor) -> torch.Tensor:
    return F.pad(lengths.cumsum(0), (1, 0)).int()


def _scatter(x_1N: torch.Tensor, index_N: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    rest = x_1N.shape[2:]
    flat = x_1N.new_zeros(shape[0] * shape[1], *rest)
    return flat.index_copy_(0, index_N, x_1N.squeeze(0)).view(*shape, *rest)
