"""Multi-token prediction (DeepSeek-V3 report, section 2.2): one more block that predicts the token after the next.

Depth 1, as in the released model. From the trunk's state of token i and the embedding of token i + 1 it predicts token
i + 2 (eq. 21-23), through the policy's own embedding and head. Checkpoints keep it as the layer behind the last,
`model.layers.{num_hidden_layers}`, which is where it stands here too.

B rows, T tokens, D = hidden, V = vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DeepseekV3Config

from r1lab.model.attention import PolicyRMSNorm
from r1lab.model.layer import DecoderLayer
from r1lab.model.linear import PolicyLinear
from r1lab.model.packing import build_packing


class SharedHead(nn.Module):
    """The norm before the head; the head itself is the policy's."""

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        self.norm = PolicyRMSNorm(config.hidden_size, config.rms_norm_eps)


class MTPLayer(DecoderLayer):
    """The module of one prediction depth: two norms, a projection, a block of the policy's kind, a norm."""

    def __init__(self, config: DeepseekV3Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.enorm = PolicyRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = PolicyRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = PolicyLinear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.shared_head = SharedHead(config)

    def forward(
        self, hidden_BTD: torch.Tensor, embeds_BTD: torch.Tensor, rotary, packing=None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """States of tokens i (after the policy's final norm) and embeddings of tokens i + 1, each [B, T, D] -> (normed
        states [B, T, D] for the policy's head, sequence-wise auxiliary loss or None).

        Eq. 21-22. The released weights multiply [embedding; state], the other way round than the equation has it.
        """
        x_BTD = self.eh_proj(torch.cat([self.enorm(embeds_BTD), self.hnorm(hidden_BTD)], dim=-1))
        x_BTD, aux_loss = super().forward(x_BTD, rotary, packing=packing)
        return self.shared_head.norm(x_BTD), aux_loss


def has_mtp(policy: nn.Module) -> bool:
    """Whether the policy carries a multi-token-prediction module."""
    return getattr(policy, "mtp", None) is not None


def mtp_hidden_states(
    policy: nn.Module,
    hidden_BTD: torch.Tensor,
    input_ids_BT: torch.Tensor,
    attention_mask_BT: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    shared_B: torch.Tensor | None = None,
    detach: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(states [B, T - 1, D], auxiliary loss or None): the policy's head on column i predicts token i + 2.

    hidden: the policy's final normed states of the same tokens; the other arguments as in `PolicyModel.forward`.
    detach: the embedding gets no gradient (detach `hidden` too, and only the module learns).
    Columns whose next token is padding are zeros. Raises ValueError without a module, or with fewer than 2 tokens.
    """
    mtp, base = _require(policy), policy.model
    B, T = input_ids_BT.shape
    if T < 2:
        raise ValueError(f"{T} token a row: multi-token prediction needs at least 2")
    if position_ids is None:
        position_ids = torch.arange(T, device=input_ids_BT.device).unsqueeze(0)
    packing = _packing(attention_mask_BT, position_ids, (B, T), shared_B)
    embeds, hidden, positions = base.embed_tokens(input_ids_BT[:, 1:]), hidden_BTD[:, :-1], position_ids[:, :-1]
    if detach:
        embeds = embeds.detach()
    if packing is not None:
        embeds, hidden, positions = packing.take(embeds), packing.take(hidden), packing.take(positions.expand(B, T - 1))
    states, aux_loss = mtp(hidden, embeds, base.rotary_emb(hidden, positions), packing)
    return (states if packing is None else packing.put_back(states)), aux_loss


def _packing(attention_mask_BT, position_ids, shape: tuple[int, int], shared_B):
    """Of the T - 1 columns that have a next token in their sequence. Of p shared tokens the last one is followed by
    another token in each row, so p - 1 columns are shared."""
    B, T = shape
    if shared_B is not None and attention_mask_BT is None:
        attention_mask_BT = torch.ones(shape, dtype=torch.int64, device=position_ids.device)
    if attention_mask_BT is None:
        return build_packing(None, position_ids[:, :-1], (B, T - 1))
    keep = attention_mask_BT[:, :-1].bool() & attention_mask_BT[:, 1:].bool()
    if not keep.any():
        raise ValueError("every row has a single token: multi-token prediction needs at least 2")
    shared_B = None if shared_B is None else (shared_B - 1).clamp(min=0)
    return build_packing(keep, None, (B, T - 1), shared_B)


def mtp_loss(
    policy: nn.Module,
    hidden_BTD: torch.Tensor,
    input_ids_BT: torch.Tensor,
    labels_BT: torch.Tensor,
    attention_mask_BT: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean cross-entropy of the tokens after the next (eq. 24); a scalar, with the module's auxiliary loss in it.

    labels [B, T]: the tokens, -100 where they are not predicted, as for the policy itself.
    """
    if input_ids_BT is None:
        raise ValueError("multi-token prediction reads the next tokens: give input_ids, not inputs_embeds")
    states, aux_loss = mtp_hidden_states(policy, hidden_BTD, input_ids_BT, attention_mask_BT, position_ids)
    targets = labels_BT[:, 2:]
    predicted = targets != -100
    if position_ids is not None:  # a token of the next packed sequence is nobody's second next
        predicted = predicted & (position_ids[:, 2:] - position_ids[:, :-2] == 2)
    logits_NV = policy.lm_head(states[:, :-1][predicted]).float()
    total = F.cross_entropy(logits_NV, targets[predicted], reduction="sum")
    loss = total / predicted.sum().clamp(min=1)
    return loss if aux_loss is None else loss + aux_loss


def add_mtp(policy: nn.Module) -> None:
    """Gives a policy a fresh module, in place; it then saves as a checkpoint with one. No change if it has one."""
    if has_mtp(policy):
        return
    weight = policy.lm_head.weight
    layer = MTPLayer(policy.config, policy.config.num_hidden_layers)
    layer.apply(policy._init_weights)
    policy.model.layers.append(layer.to(device=weight.device, dtype=weight.dtype).train(policy.training))
    policy.config.num_mtp_layers = 1


def require_mtp_config(config: DeepseekV3Config) -> None:
    """Raises ValueError unless the config describes the one module that is supported."""
    if config.num_mtp_layers != 1:
        raise ValueError(
            f"num_nextn_predict_layers={config.num_mtp_layers} in the config: with_mtp needs 1; leave with_mtp out, or "
            "train a module on this checkpoint: recipes/pretrain.py --init_from DIR --train_mtp_only true"
        )


def check_mtp_loaded(config: DeepseekV3Config, missing_keys: set[str], name) -> None:
    """Raises ValueError when a checkpoint lacked weights of the module."""
    prefix = f"model.layers.{config.num_hidden_layers}."
    missing = sorted(key for key in missing_keys if key.startswith(prefix))
    if missing:
        raise ValueError(
            f"{name} has no multi-token-prediction weights ({len(missing)} missing, the first is {missing[0]}), though "
            f"its config has num_nextn_predict_layers={config.num_mtp_layers}; leave with_mtp out, or train a module: "
            "recipes/pretrain.py --init_from DIR --train_mtp_only true"
        )


def checkpoint_copies(config: DeepseekV3Config, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What released checkpoints have in the layer besides the module's own weights: copies of embedding and head."""
    prefix = f"model.layers.{config.num_hidden_layers}."
    embed = state["model.embed_tokens.weight"]
    head = state.get("lm_head.weight", embed)
    return {f"{prefix}embed_tokens.weight": embed.clone(), f"{prefix}shared_head.head.weight": head.clone()}


def _require(policy: nn.Module) -> MTPLayer:
    if not has_mtp(policy):
        raise ValueError("the policy has no multi-token-prediction module; load it with_mtp=True")
    return policy.mtp
