"""Dispatch and combine: tokens travel to the processes that hold their experts, and the sums travel back.

Dropless: every choice of the gate is served, however uneven the loads are. A token goes to a receiver once, even where
several of its experts live there; the receiver adds their outputs up, so that one row comes back. A receiver is a
process, or in a first hop across the network a whole node (DeepSeek-V3 report, section 3.2.2).

Suffixes: T = tokens of this process, P = pairs (token, expert), C = copies (token, receiver) sent, N = copies received,
D = hidden, W = members of the group. A pair's `slot` says which expert: slots are numbered through the receivers, so
many to each.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from r1lab.parallel.all_to_all import NATIVE, Route, Started, exchange_counts, start_all_to_all
from r1lab.parallel.payload import Payload


@dataclass(slots=True)
class Tokens:
    """Tokens and the experts that they ask for."""

    x_TD: torch.Tensor
    row_P: torch.Tensor
    """int64, the token of each pair."""
    slot_P: torch.Tensor
    """int64, the expert of each pair."""
    weight_P: torch.Tensor
    """fp32, differentiable."""


@dataclass(slots=True, frozen=True)
class Hop:
    """One all-to-all stage: to whom, and in which format."""

    group: dist.ProcessGroup
    slots_per_member: int
    dispatch_payload: Payload = NATIVE
    combine_payload: Payload = NATIVE
    name: str = "experts"
    """For error messages and traces."""


@dataclass(slots=True)
class Dispatch:
    """Tokens on their way to their experts."""

    hop: Hop
    num_tokens: int
    copied_row_C: torch.Tensor
    """int64, which token each copy is of, sorted by receiver and then by token."""
    route: Route
    rows: Started
    weights: Started
    codes: Started

    def finish(self) -> Tokens:
        """The copies [N, D] that this process received, with the pairs they ask of it; slots count from 0 here.

        Raises ExpertGroupError when the group is broken.
        """
        code_P = self.codes.finish().squeeze(1).long()
        row_P = (code_P & 1).cumsum(0) - 1
        weight_P = self.weights.finish().squeeze(1)
        return Tokens(self.rows.finish(), row_P, code_P >> 1, weight_P)

    def combine(self, y_ND: torch.Tensor) -> torch.Tensor:
        """Sends each copy's result back: y [N, D] -> the sums over a token's copies, [num_tokens, D].

        Raises ExpertGroupError when the group is broken.
        """
        route = self.route.back()
        route.name = f"combine, {self.hop.name}"
        returned = start_all_to_all(y_ND, route, self.hop.combine_payload, self.hop.dispatch_payload).finish()
        return y_ND.new_zeros(self.num_tokens, y_ND.shape[1]).index_add(0, self.copied_row_C, returned)


def start_dispatch(tokens: Tokens, hop: Hop) -> Dispatch:
    """Sends every token to the members of `hop.group` that hold its experts; compute what you like before `finish`.

    Every member must call it, tokens or none. Only the counts are waited for.
    Raises ExpertGroupError when the group is broken.
    """
    num_members, num_tokens = dist.get_world_size(hop.group), len(tokens.x_TD)
    member_P = tokens.slot_P // hop.slots_per_member
    # Pairs sorted by receiver, then by token; the pairs of one token at one receiver are neighbours: one copy.
    key_P, order_P = (member_P * num_tokens + tokens.row_P).sort(stable=True)
    is_first_P = torch.ones_like(key_P, dtype=torch.bool)
    is_first_P[1:] = key_P[1:] != key_P[:-1]
    copied_row_C = tokens.row_P[order_P][is_first_P]
    copied_member_C = member_P[order_P][is_first_P]
    counts_W2 = torch.stack([torch.bincount(x, minlength=num_members) for x in (copied_member_C, member_P)], dim=1)
    name = f"dispatch, {hop.name}"
    received_W2 = exchange_counts(counts_W2, hop.group, name)
    (sent, sent_pairs), (received, received_pairs) = counts_W2.T.tolist(), received_W2.T.tolist()
    route = Route(hop.group, sent, received, name)
    pair_route = Route(hop.group, sent_pairs, received_pairs, name)
    code_P = (tokens.slot_P % hop.slots_per_member)[order_P] * 2 + is_first_P
    return Dispatch(
        hop,
        num_tokens,
        copied_row_C,
        route,
        rows=start_all_to_all(
            tokens.x_TD.index_select(0, copied_row_C), route, hop.dispatch_payload, hop.combine_payload
        ),
        weights=start_all_to_all(tokens.weight_P.index_select(0, order_P).unsqueeze(1), pair_route),
        codes=start_all_to_all(code_P.to(_code_dtype(hop)).unsqueeze(1), pair_route),
    )


def _code_dtype(hop: Hop) -> torch.dtype:
    """The smallest integers that tell a member's slots, and whether a new copy begins."""
    for dtype in (torch.uint8, torch.int16):
        if 2 * hop.slots_per_member <= torch.iinfo(dtype).max + 1:
            return dtype
    return torch.int32
