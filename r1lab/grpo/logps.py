"""Log-probabilities of the sampled tokens under a policy, computed only where a token was sampled."""

import inspect

import torch
import torch.nn.functional as F
from torch import nn

from r1lab.kernels import ops
from r1lab.kernels.reference.speculative_step import acceptance
from r1lab.model import check_replayable, mtp_hidden_states
from r1lab.types import TrainBatch


class LogpsModel(nn.Module):
    """A policy whose forward answers the trainer's question; the module to hand to `accelerator.prepare`.

    DDP and FSDP act on the `forward` of the module they wrap, so the whole computation has to lie inside one.
    `policy` is a causal LM: ours (anything with `hidden_states` and `lm_head`), or any `AutoModelForCausalLM`.
    with_drafts: of a policy of ours with a multi-token-prediction module, ask the module too.
    """

    def __init__(self, policy: nn.Module, with_drafts: bool = False):
        super().__init__()
        self.policy, self.with_drafts = policy, with_drafts
        # DDP looks these up on the module that it wraps.
        ignored = getattr(policy, "_ddp_params_and_buffers_to_ignore", ())
        self._ddp_params_and_buffers_to_ignore = [f"policy.{name}" for name in ignored]
        # And accelerate these: the layers that FSDP shards apart, all of which it wants to find.
        present = {type(module).__name__ for module in policy.modules()}
        self._no_split_modules = [name for name in getattr(policy, "_no_split_modules", None) or () if name in present]

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        completion_mask: torch.Tensor | None,
        temperature: float = 1.0,
        shared_lengths: torch.Tensor | None = None,
        routing: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """ids, mask [B, T], completion_mask [B, T - 1] bool -> (logps, entropy), each [B, T - 1] float32, in nats; with
        drafts also (draft_logps, acceptance), see `draft_logps`; with routing, last, also flips [B, T - 1] float32.

        Column t speaks about token t + 1; both are 0 where completion_mask is False. Entropy carries no gradient.
        shared_lengths [B]: as in `TrainBatch`; a policy of ours computes those tokens once, any other ignores them.
        completion_mask None, for a policy of ours: the tokens pass through its layers, which count the experts' load in
        training mode; returns ().
        routing: as in `TrainBatch`, for a policy of ours, which computes with those experts. Flips: the share of the
        MoE layers that would have chosen another set of experts for the token that column t reads last.
        Raises ValueError for a temperature that is not positive, a completion_mask of another shape, or routing that
        the policy cannot replay.
        """
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}; log-probabilities need a positive one")
        if routing is not None:
            check_replayable(self.policy)
        inputs = input_ids, attention_mask, shared_lengths, routing
        if completion_mask is None:
            self._hidden(*inputs)
            return ()
        if completion_mask.shape != (input_ids.shape[0], input_ids.shape[1] - 1):
            raise ValueError(
                f"completion_mask is {list(completion_mask.shape)}; pass [B, T - 1] for ids {list(input_ids.shape)}"
            )
        targets, extras = input_ids[:, 1:][completion_mask], ()
        if callable(getattr(self.policy, "hidden_states", None)):
            hidden, extras = self._completion_hidden(inputs, completion_mask, temperature)
            logps, entropy = ops.token_logps(hidden, self.policy.lm_head.weight, targets, temperature)
        else:
            logits = self._completion_logits(input_ids, attention_mask, completion_mask)
            logps, entropy = _from_logits(logits, targets, temperature)
        return _scatter(completion_mask, logps), _scatter(completion_mask, entropy), *extras

    def _completion_hidden(self, inputs, completion_mask, temperature) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """([number of trained tokens, D], what forward returns beside logps and entropy)."""
        extras: tuple[torch.Tensor, ...] = ()
        if self.with_drafts:
            hidden_BTD, flips_BT = self._hidden(*inputs)
            hidden = hidden_BTD[:, :-1][completion_mask]
            input_ids, attention_mask, shared_lengths, _ = inputs
            extras = draft_logps(
                self.policy, hidden_BTD, input_ids, attention_mask, completion_mask, temperature, shared_lengths
            )
        else:
            hidden, flips_BT = self._hidden(*inputs, at_BT=F.pad(completion_mask, (0, 1)))
        if flips_BT is not None:
            extras += (flips_BT[:, :-1].masked_fill(~completion_mask, 0.0),)
        return hidden, extras

    def _hidden(
        self, input_ids, attention_mask, shared_lengths, routing, at_BT=None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(hidden states [B, T, D], or [number of True in at, D]; flips [B, T], None without routing)."""
        if routing is not None:
            return self.policy.hidden_states(
                input_ids, attention_mask, shared_B=shared_lengths, at_BT=at_BT, routing_BTLK=routing
            )
        if shares_prompts(self.policy):
            return self.policy.hidden_states(input_ids, attention_mask, shared_B=shared_lengths, at_BT=at_BT), None
        hidden_BTD = self.policy.hidden_states(input_ids, attention_mask)
        return hidden_BTD if at_BT is None else hidden_BTD[at_BT], None

    def _completion_logits(self, input_ids, attention_mask, completion_mask) -> torch.Tensor:
        """[number of trained tokens, V]; the columns before the first completion never meet the head."""
        columns = completion_mask.any(0).nonzero()
        first = int(columns[0]) if len(columns) else completion_mask.shape[1]
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if "logits_to_keep" in inspect.signature(unwrap(self.policy).forward).parameters:
            inputs["logits_to_keep"] = input_ids.shape[1] - first
        else:
            first = 0
        logits = self.policy(**inputs, use_cache=False).logits
        return logits[:, :-1][completion_mask[:, first:]]


def draft_logps(
    policy: nn.Module,
    hidden_BTD: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    completion_mask: torch.Tensor,
    temperature: float,
    shared_lengths: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(logps, acceptance) of the multi-token-prediction module, each [B, T - 1] float32, laid out like the policy's.

    logps: of the sampled tokens, one token ahead of the policy (column t reads states up to token t - 1 and token t).
    Their gradient reaches the module alone: the policy is trained by its own loss only. acceptance: how likely a draft
    of the module would have been accepted there; no gradient. Both are 0 where completion_mask is False, and in column
    0, which nothing precedes.
    """
    states, _ = mtp_hidden_states(
        policy, hidden_BTD.detach(), input_ids, attention_mask, shared_B=shared_lengths, detach=True
    )
    mask = completion_mask.clone()
    mask[:, 0] = False
    head, states = policy.lm_head.weight.detach(), states[:, :-1][mask[:, 1:]]
    logps, _ = ops.token_logps(states, head, input_ids[:, 1:][mask], temperature)
    with torch.no_grad():
        logits = F.linear(hidden_BTD[:, :-1][mask], head)
        accepted = acceptance(logits, F.linear(states, head), temperature)
    return _scatter(mask, logps), _scatter(mask, accepted)


def shares_prompts(policy: nn.Module) -> bool:
    """Whether the policy computes a prompt that several rows share once, and no padding."""
    return bool(getattr(policy, "shares_prefixes", False))


def completion_logps(model: nn.Module, batch: TrainBatch, temperature: float = 1.0) -> tuple[torch.Tensor, ...]:
    """(logps, entropy) of a micro-batch, each [B, T - 1], and what drafts and routing add; see `LogpsModel.forward`.

    `model` is a `LogpsModel`, that same module wrapped by accelerate, DDP, FSDP or torch.compile, or a bare policy.
    """
    if not isinstance(unwrap(model), LogpsModel):
        model = LogpsModel(model)
    tensors = batch.input_ids, batch.attention_mask, batch.completion_mask
    return model(*tensors, temperature, batch.shared_lengths, batch.routing)


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DDP or DeepSpeed (`.module`) and torch.compile (`._orig_mod`)."""
    while (inner := getattr(model, "_orig_mod", None) or getattr(model, "module", None)) is not None:
        model = inner
    return model


def _from_logits(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    log_probs = torch.log_softmax(logits.float() / temperature, dim=-1)
    with torch.no_grad():
        entropy = -(log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(-1)
    return log_probs.gather(1, targets[:, None]).squeeze(1), entropy


def _scatter(mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Values, one for each True of the mask, back in the mask's shape, 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=torch.float32, device=values.device).masked_scatter(mask, values.float())
