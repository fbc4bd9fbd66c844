"""Computing only what is needed: padding is cut out before the first layer, and a prefix that rows share is kept once.

B rows of T columns hold N tokens to compute. Without kernels, attention lays them out again as B rows of L slots, L =
the longest row; a shared prefix then stands in every row that has it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(slots=True)
class Packing:
    """Where N packed tokens, kept as one row [1, N, ...], come from, and which of them each token sees."""

    source_N: torch.Tensor
    """int64 index of each token in the flattened [B * T] input."""
    number_BT: torch.Tensor
    """int64 [B, T]: which of the N tokens stands at each place of the input; -1 on padding."""
    slots_N: torch.Tensor
    """int64 index of each token in the flattened [Q * L] layout of attention, left-aligned and in order."""
    number_QL: torch.Tensor
    """int64 [Q, L]: which of the N tokens stands in each slot of attention's layout; -1 behind the end of a row."""
    cu_seqlens: torch.Tensor
    """int32 [S + 1]: segment s is tokens cu_seqlens[s] .. cu_seqlens[s + 1] - 1 of the N."""
    prefix_S: torch.Tensor | None
    """int32 [S]: the segment that comes before segment s in its row, -1 for none; None: nothing is shared."""
    weight_N: torch.Tensor | None
    """int64: in how many rows each token stands; None: in one each."""

    @property
    def length(self) -> int:
        """L."""
        return self.number_QL.shape[1]

    def take(self, x_BT: torch.Tensor) -> torch.Tensor:
        """[B, T, ...] -> [1, N, ...]."""
        return x_BT.flatten(0, 1).index_select(0, self.source_N).unsqueeze(0)

    def put_back(self, x_1N: torch.Tensor) -> torch.Tensor:
        """[1, N, ...] -> [B, T, ...]; zeros where padding was."""
        return _lay_out(x_1N, self.number_BT)

    def pick(self, x_1N: torch.Tensor, at_BT: torch.Tensor) -> torch.Tensor:
        """[1, N, ...] -> [number of True, ...]: what stands where at [B, T] is True, none of it padding."""
        return x_1N.squeeze(0).index_select(0, self.number_BT[at_BT])

    def to_sequences(self, x_1N: torch.Tensor) -> torch.Tensor:
        """[1, N, ...] -> [Q, L, ...], zeros behind the end of each row: plainly causal attention is right."""
        return _lay_out(x_1N, self.number_QL)

    def from_sequences(self, x_QL: torch.Tensor) -> torch.Tensor:
        """[Q, L, ...] -> [1, N, ...]; of a shared token the first row's copy."""
        return x_QL.flatten(0, 1).index_select(0, self.slots_N).unsqueeze(0)

    def sequence_mask(self) -> torch.Tensor:
        """[Q, L] bool, True on tokens."""
        return self.number_QL >= 0


def build_packing(
    attention_mask_BT: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    shape: tuple[int, int],
    shared_B: torch.Tensor | None = None,
) -> Packing | None:
    """The packing of a call without a cache, or None when every row is one unpadded sequence of its own.

    attention_mask [B, T], shape = (B, T): 1 on tokens, 0 on padding, which may stand anywhere. Without it, position_ids
    [B, T] that do not count up by one start a new sequence, so sequences concatenated in a row are kept apart (as in
    transformers). shared [B], int64: how many first tokens a row has in common with the row above it, 0 for none; they
    are computed once. Rows of a run (0, p, p, ...) share the same p tokens.
    Raises ValueError when attention_mask is not [B, T] or marks no token, and when shared does not fit.
    """
    if attention_mask_BT is not None and attention_mask_BT.shape != shape:
        raise ValueError(f"attention_mask has shape {tuple(attention_mask_BT.shape)}, expected {tuple(shape)}")
    if shared_B is not None and shared_B.any():
        device = shared_B.device
        keep = torch.ones(shape, dtype=torch.bool, device=device) if attention_mask_BT is None else attention_mask_BT
        return _from_mask(keep.bool(), shared_B)
    if attention_mask_BT is not None:
        keep_BT = attention_mask_BT.bool()
        return None if keep_BT.all() else _from_mask(keep_BT, None)
    if position_ids is not None and position_ids.shape == shape:
        return _from_positions(position_ids)
    return None


def _from_mask(keep_BT: torch.Tensor, shared_B: torch.Tensor | None) -> Packing:
    lengths = keep_BT.sum(1).tolist()
    length = max(lengths)
    if length == 0:
        raise ValueError("attention_mask is 0 everywhere; give at least one token")
    runs = _runs(lengths, [0] * len(lengths) if shared_B is None else shared_B.tolist())
    slot_BT = keep_BT.cumsum(1) - 1
    is_own_BT = keep_BT if shared_B is None else keep_BT & (slot_BT >= shared_B[:, None])
    source_N = is_own_BT.flatten().nonzero().squeeze(1)
    first_slot_B1 = torch.arange(len(keep_BT), device=keep_BT.device).unsqueeze(1) * length
    slots_N = (slot_BT + first_slot_B1).flatten()[source_N]
    number_QL = torch.full((len(keep_BT), length), -1, device=keep_BT.device)
    number_QL.view(-1)[slots_N] = torch.arange(len(slots_N), device=keep_BT.device)
    prefix_S = weight_N = None
    if shared_B is not None:
        leader_B = torch.tensor([leader for leader, _ in runs], device=keep_BT.device)
        is_shared_QL = torch.arange(length, device=keep_BT.device) < shared_B[:, None]
        number_QL = torch.where(is_shared_QL, number_QL[leader_B], number_QL)
        weight_N = torch.bincount(number_QL[number_QL >= 0], minlength=len(slots_N))
    number_BT = number_QL.gather(1, slot_BT.clamp(min=0)).masked_fill(~keep_BT, -1)
    bounds, prefixes = _segments(lengths, runs)
    if shared_B is not None:
        prefix_S = torch.tensor(prefixes, dtype=torch.int32, device=keep_BT.device)
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device=keep_BT.device)
    return Packing(source_N, number_BT, slots_N, number_QL, cu_seqlens, prefix_S, weight_N)


def _runs(lengths: list[int], shared: list[int]) -> list[tuple[int, int]]:
    """(the row that computes its first tokens, how many of those are shared by others too), for every row."""
    runs: list[tuple[int, int]] = []
    for row, count in enumerate(shared):
        if count == 0:
            runs.append((row, 0))
            continue
        leader, before = runs[-1] if runs else (row, count)
        if leader == row or before not in (0, count) or not 0 < count <= min(lengths[row], lengths[leader]):
            raise ValueError(
                f"shared[{row}]={count} does not fit: the rows above share {before} tokens, this one has "
                f"{lengths[row]}; give 0 to the first row of a run, then one number up to the shortest row's length"
            )
        runs[leader] = (leader, count)
        runs.append((leader, count))
    return runs


def _segments(lengths: list[int], runs: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """(bounds, prefix of each segment): a run's shared tokens first, then what each of its rows has of its own."""
    bounds, prefixes = [0], []
    prefix = -1
    for row, (leader, count) in enumerate(runs):
        if leader == row:
            prefix = -1
            if count:
                prefix = len(prefixes)
                prefixes.append(-1)
                bounds.append(bounds[-1] + count)
        prefixes.append(prefix)
        bounds.append(bounds[-1] + lengths[row] - count)
    return bounds, prefixes


def _from_positions(position_BT: torch.Tensor) -> Packing | None:
    restarts = position_BT.diff(dim=1) != 1
    if not restarts.any():
        return None
    starts_N = F.pad(restarts, (1, 0), value=True).flatten()
    source_N = torch.arange(starts_N.numel(), device=starts_N.device)
    sequence_N = starts_N.cumsum(0) - 1
    slot_N = source_N - source_N[starts_N][sequence_N]
    length = int(slot_N.max()) + 1
    slots_N = sequence_N * length + slot_N
    number_QL = torch.full((int(sequence_N[-1]) + 1, length), -1, device=starts_N.device)
    number_QL.view(-1)[slots_N] = source_N
    cu_seqlens = F.pad(torch.bincount(sequence_N).cumsum(0), (1, 0)).int()
    return Packing(source_N, source_N.view(position_BT.shape), slots_N, number_QL, cu_seqlens, None, None)


def _lay_out(x_1N: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """[1, N, ...] -> number.shape + [...]; zeros where the number is -1."""
    x_N = x_1N.squeeze(0)
    with_zeros = torch.cat([x_N, x_N.new_zeros(1, *x_N.shape[1:])])
    return with_zeros.index_select(0, number.flatten().remainder(len(with_zeros))).unflatten(0, number.shape)
