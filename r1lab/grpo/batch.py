"""Rollout groups -> micro-batches of rows: padded, longest first, or group by group, so that a prompt is read once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from r1lab.types import Completion, Prompt, Rollout, RolloutGroup, TrainBatch


@dataclass(frozen=True, slots=True)
class BatchTotals:
    """What the losses of the micro-batches are divided by: counted over all rows, the skipped ones too."""

    num_tokens: int
    """Trained tokens (`policy_loss(num_items_in_batch=...)`)."""
    num_rows: int
    """Completions (`policy_loss(num_rows=...)`)."""


def build_batches(
    groups: Sequence[RolloutGroup],
    *,
    pad_token_id: int,
    max_tokens_per_batch: int,
    skip_zero_advantage: bool = True,
    mask_truncated_completions: bool = False,
    share_prompts: bool = False,
    replay_routing: bool = False,
) -> tuple[list[TrainBatch], BatchTotals]:
    """Rows `prompt + completion`, longest first, in micro-batches of at most `max_tokens_per_batch` padded tokens.

    A row longer than that makes a micro-batch of its own. Same groups, same batches: ties keep the order of `groups`.
    share_prompts, for a policy that computes neither padding nor a shared prompt twice: rows stay in the order of
    `groups`, `shared_lengths` says where a prompt repeats, and the limit counts the tokens that are computed.
    skip_zero_advantage leaves out the rows that cannot move the policy: advantage 0, or no trained token. Their
    gradient is exactly 0 under every loss without a KL or entropy term, so pass False with beta != 0.
    mask_truncated_completions trains no token of a completion cut at its length limit (DAPO, arXiv:2503.14476,
    section 3.4); such tokens are not counted in the totals, their rows are.
    replay_routing puts the experts that were recorded while sampling into `TrainBatch.routing`.

    The list may be empty, and its length may differ between the processes of a distributed run.
    Raises ValueError for an empty prompt, a completion whose logps (or routing, where asked for) do not match its
    tokens, or a bad token limit.
    """
    if max_tokens_per_batch < 1:
        raise ValueError(f"max_tokens_per_batch={max_tokens_per_batch}; pass a positive number of tokens")
    rows = [
        _row(group.prompt, number, rollout, mask_truncated_completions, replay_routing)
        for number, group in enumerate(groups)
        for rollout in group.rollouts
    ]
    totals = BatchTotals(num_tokens=sum(row.num_trained for row in rows), num_rows=len(rows))
    if skip_zero_advantage:
        rows = [row for row in rows if row.has_gradient]
    if share_prompts:
        chunks = _even_chunks_of_groups(rows, max_tokens_per_batch)
    else:
        chunks = _chunks(sorted(rows, key=lambda row: len(row.token_ids), reverse=True), max_tokens_per_batch)
    return [_pad(chunk, pad_token_id, share_prompts) for chunk in chunks], totals


@dataclass(frozen=True, slots=True)
class _Row:
    token_ids: list[int]
    group: int
    prompt_length: int
    rollout_logps: list[float]
    advantage: float
    num_trained: int
    has_gradient: bool
    rollout: Rollout
    routing: torch.Tensor | None
    """[tokens - 1, MoE layers, K]: of all tokens but the last."""


def has_gradient(rollout: Rollout, mask_truncated_completions: bool) -> bool:
    """Whether a rollout can move the policy under a loss without a KL or entropy term."""
    return rollout.advantage != 0.0 and _num_trained(rollout.completion, mask_truncated_completions) > 0


def _num_trained(completion: Completion, mask_truncated: bool) -> int:
    is_masked = mask_truncated and completion.finish_reason == "length"
    return 0 if is_masked else len(completion.token_ids)


def _row(prompt: Prompt, group: int, rollout: Rollout, mask_truncated: bool, replay_routing: bool) -> _Row:
    completion = rollout.completion
    _check(prompt, completion)
    return _Row(
        token_ids=prompt.token_ids + completion.token_ids,
        group=group,
        prompt_length=len(prompt.token_ids),
        rollout_logps=completion.logps,
        advantage=rollout.advantage,
        num_trained=_num_trained(completion, mask_truncated),
        has_gradient=has_gradient(rollout, mask_truncated),
        rollout=rollout,
        routing=_routing(prompt, completion) if replay_routing else None,
    )


def _routing(prompt: Prompt, completion: Completion) -> torch.Tensor:
    parts = completion.prompt_routing, completion.routing
    if any(part is None for part in parts):
        raise ValueError(
            "router_replay=True: a completion came without the experts that it was sampled with; sample with "
            "RolloutEngine and SamplingParams(record_routing=True), or leave router_replay off"
        )
    lengths, expected = [len(part) for part in parts], [len(prompt.token_ids) - 1, len(completion.token_ids)]
    if lengths != expected:
        raise ValueError(f"prompt_routing, routing: of {lengths} tokens, expected {expected}; record one per token")
    return torch.cat(parts)


def _check(prompt: Prompt, completion: Completion) -> None:
    if not prompt.token_ids:
        raise ValueError("a prompt has no tokens, so nothing predicts its first completion token; add a BOS token")
    if len(completion.logps) != len(completion.token_ids):
        raise ValueError(f"{len(completion.logps)} logps for {len(completion.token_ids)} tokens; record one per token")


def _chunks(rows: list[_Row], max_tokens: int) -> list[list[_Row]]:
    """Rows come longest first, so the first row of a chunk is as long as the chunk is wide."""
    chunks: list[list[_Row]] = []
    for row in rows:
        if chunks and (len(chunks[-1]) + 1) * len(chunks[-1][0].token_ids) <= max_tokens:
            chunks[-1].append(row)
        else:
            chunks.append([row])
    return chunks


def _chunks_of_groups(rows: list[_Row], max_tokens: int) -> list[list[_Row]]:
    """A group that does not fit goes on in the next chunk, where its prompt is computed again."""
    chunks: list[list[_Row]] = []
    room = 0
    for row in rows:
        is_shared = bool(chunks) and chunks[-1][-1].group == row.group
        size = len(row.token_ids) - (row.prompt_length if is_shared else 0)
        if not chunks or size > room:
            chunks.append([])
            room, size = max_tokens, len(row.token_ids)
        chunks[-1].append(row)
        room -= size
    return chunks


def _even_chunks_of_groups(rows: list[_Row], max_tokens: int) -> list[list[_Row]]:
    """As many chunks as it takes, all about as large: memory is the largest one's, and what is allocated for one fits
    the next."""
    chunks = _chunks_of_groups(rows, max_tokens)
    if len(chunks) < 2:
        return chunks
    mean = -(-sum(_num_computed(chunk) for chunk in chunks) // len(chunks))
    # A chunk leaves less than a row of its limit unused.
    even = _chunks_of_groups(rows, min(max_tokens, mean + max(len(row.token_ids) for row in rows)))
    return sorted(even if len(even) == len(chunks) else chunks, key=_num_computed, reverse=True)


def _num_computed(chunk: list[_Row]) -> int:
    return sum(len(row.token_ids) for row in chunk) - int(_shared_lengths(chunk).sum())


def _shared_lengths(rows: list[_Row]) -> torch.Tensor:
    above = [None, *(row.group for row in rows[:-1])]
    return torch.tensor([row.prompt_length if row.group == group else 0 for row, group in zip(rows, above)])


def _pad_routing(rows: list[_Row], width: int) -> torch.Tensor | None:
    if rows[0].routing is None:
        return None
    routing = torch.full((len(rows), width, *rows[0].routing.shape[1:]), -1, dtype=torch.int16)
    for i, row in enumerate(rows):
        routing[i, : len(row.routing)] = row.routing
    return routing


def _pad(rows: list[_Row], pad_token_id: int, share_prompts: bool) -> TrainBatch:
    size, width = len(rows), max(len(row.token_ids) for row in rows)
    input_ids = torch.full((size, width), pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros(size, width, dtype=torch.int64)
    completion_mask = torch.zeros(size, width - 1, dtype=torch.bool)
    rollout_logps = torch.zeros(size, width - 1)
    for i, row in enumerate(rows):
        input_ids[i, : len(row.token_ids)] = torch.tensor(row.token_ids)
        attention_mask[i, : len(row.token_ids)] = 1
        if row.num_trained:
            sampled = slice(row.prompt_length - 1, len(row.token_ids) - 1)
            completion_mask[i, sampled] = True
            rollout_logps[i, sampled] = torch.tensor(row.rollout_logps)
    advantages = torch.tensor([row.advantage for row in rows], dtype=torch.float32)
    return TrainBatch(
        input_ids,
        attention_mask,
        completion_mask,
        advantages,
        rollout_logps,
        shared_lengths=_shared_lengths(rows) if share_prompts else None,
        routing=_pad_routing(rows, width),
        rollouts=[row.rollout for row in rows],
    )
