"""The policy: a DeepSeek-V3 decoder with transformers' interface and checkpoint layout.

Parameter names, config and files are those of transformers' `DeepseekV3ForCausalLM`, so either class loads what the
other saved. B rows, T new tokens, S tokens in all (cached ones included), D = hidden.
"""

import copy
from dataclasses import dataclass
from itertools import islice

import torch
from torch import nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.modeling_outputs import MoeCausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import ModelOutput, can_return_tuple

from r1lab.model.attention import PolicyRMSNorm, build_attention_mask
from r1lab.model.cache import LatentCache
from r1lab.model.layer import DecoderLayer
from r1lab.model.linear import PolicyLinear
from r1lab.model.moe import RoutedExperts, TopkGate
from r1lab.model.mtp import MTPLayer, check_mtp_loaded, checkpoint_copies, mtp_loss, require_mtp_config
from r1lab.model.packing import Packing, build_packing
from r1lab.model.replay import build_replay
from r1lab.model.rope import PolicyRotaryEmbedding

MAX_IGNORED_LAYERS = 8
"""Multi-token-prediction layers of a checkpoint that are passed over in silence; released ones have 1."""


class PolicyPreTrainedModel(PreTrainedModel):
    """What both model classes tell transformers about themselves."""

    config_class = DeepseekV3Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderLayer", "MTPLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = ["e_score_correction_bias"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, TopkGate):
            init.normal_(module.weight, mean=0.0, std=std)
            init.zeros_(module.e_score_correction_bias)
            init.zeros_(module.expert_load_E)
        elif isinstance(module, RoutedExperts):
            init.normal_(module.gate_up_proj, mean=0.0, std=std)
            init.normal_(module.down_proj, mean=0.0, std=std)


@dataclass
class PolicyModelOutput(ModelOutput):
    """What the decoder returns."""

    last_hidden_state: torch.Tensor | None = None
    """[B, T, D], after the final norm."""
    past_key_values: object | None = None
    """The cache that was passed in, now longer."""
    aux_loss: torch.Tensor | None = None
    """Scalar: the layers' sequence-wise balance losses, summed; None when the config asks for none or in eval mode."""
    routing_flips: torch.Tensor | None = None
    """[B, T] float32: the share of the MoE layers that would have chosen another set of experts than was recorded for
    the token; None without recorded routing."""


class PolicyModel(PolicyPreTrainedModel):
    """The decoder without the head."""

    def __init__(self, config: DeepseekV3Config, with_mtp: bool = False) -> None:
        super().__init__(config)
        if config.hidden_act not in ("silu", "swish"):
            raise ValueError(f"hidden_act={config.hidden_act!r} is not supported; DeepSeek-V3 uses 'silu'")
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([DecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        if with_mtp:
            self.layers.append(MTPLayer(config, config.num_hidden_layers))
        self.norm = PolicyRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = PolicyRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        shared_B: torch.Tensor | None = None,
        at_BT: torch.Tensor | None = None,
        routing_BTLK: torch.Tensor | None = None,
        **kwargs,
    ) -> PolicyModelOutput:
        """input_ids [B, T] or inputs_embeds [B, T, D] -> hidden states [B, T, D] after the final norm.

        attention_mask [B, S]: 1 on tokens, 0 on padding, anywhere. Without a cache padding is not computed, and its
        hidden states are 0. position_ids [B or 1, T]: default is counting on from the cached tokens, padding included
        (as in transformers). past_key_values: a `LatentCache` or a transformers `Cache`, to which the new tokens are
        appended. Other keyword arguments (what trainers pass along) are ignored.
        shared [B], int64, without a cache: how many first tokens a row has in common with the row above it, 0 for none
        (see `build_packing`); they are computed once, forward and backward, and the result is the same. at [B, T] bool,
        without a cache, none of it on padding: return the hidden states where it is True, [number of True, D].
        routing [B, T, MoE layers, K], integers, without a cache: the experts to use for each token in place of the
        gates' choice, -1 for that choice (`r1lab.model.replay`).
        Raises ValueError unless exactly one of input_ids and inputs_embeds is given, on a mask of another shape, on
        shared tokens that differ, and on routing that does not fit the policy.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if past_key_values is not None and any(x is not None for x in (shared_B, at_BT, routing_BTLK)):
            raise ValueError("shared, at and routing describe whole sequences; leave them out with past_key_values")
        tokens = input_ids if inputs_embeds is None else inputs_embeds
        shape, device = tuple(tokens.shape[:2]), tokens.device
        mask = token_mask_BT = packing = None
        past = 0
        if past_key_values is None:
            packing = build_packing(attention_mask, position_ids, shape, shared_B)
            if packing is not None and packing.prefix_S is not None:
                _check_shared(tokens, packing)
        else:
            past = past_key_values.get_seq_length()
            mask = build_attention_mask(attention_mask, shape, past, device)
            if attention_mask is not None:
                token_mask_BT = attention_mask[:, past:].bool()
        if position_ids is None:
            position_ids = torch.arange(past, past + shape[1], device=device).unsqueeze(0)
        if packing is not None:
            tokens, position_ids = packing.take(tokens), packing.take(position_ids.expand(shape))
        replay = None if routing_BTLK is None else build_replay(routing_BTLK, shape, self.config, packing)
        x_BTD = self.embed_tokens(tokens) if inputs_embeds is None else tokens
        rotary = self.rotary_emb(x_BTD, position_ids)
        aux_losses = []
        for index, layer in enumerate(islice(self.layers, self.config.num_hidden_layers)):
            x_BTD, aux_loss = layer(
                x_BTD,
                rotary=rotary,
                mask=mask,
                token_mask_BT=token_mask_BT,
                packing=packing,
                past_key_values=past_key_values,
                replay=None if replay is None else replay.layers[index],
            )
            if aux_loss is not None:
                aux_losses.append(aux_loss)
        if at_BT is not None:  # the norm is row by row, so the rows that nobody reads may go before it
            x_BTD = x_BTD[at_BT] if packing is None else packing.pick(x_BTD, at_BT)
        x_BTD = self.norm(x_BTD)
        if packing is not None and at_BT is None:
            x_BTD = packing.put_back(x_BTD)
        return PolicyModelOutput(
            x_BTD,
            past_key_values,
            torch.stack(aux_losses).sum() if aux_losses else None,
            None if replay is None else replay.flips(shape, packing),
        )


def _check_shared(tokens: torch.Tensor, packing: Packing) -> None:
    """Whether the rows of a run really begin with the same tokens (ids [B, T] or embeddings [B, T, D])."""
    is_token_BT = packing.number_BT >= 0
    standing = packing.take(tokens).squeeze(0)[packing.number_BT[is_token_BT]]
    if not torch.equal(standing, tokens[is_token_BT]):
        raise ValueError("shared counts tokens that differ from the row above; compare the rows before sharing them")


@dataclass
class PolicyOutput(MoeCausalLMOutputWithPast):
    """transformers' output, plus what ours has."""

    mtp_loss: torch.Tensor | None = None
    """Scalar: the multi-token-prediction loss, before its weight; None without one."""


class PolicyForCausalLM(PolicyPreTrainedModel, GenerationMixin):
    """The policy with its language-model head; see the module's docstring for what it is compatible with.

    A config field of ours, `seq_aux_loss_alpha` (default 0.0), adds the sequence-wise balance loss in training.

    with_mtp (also of `from_pretrained`) builds and loads the multi-token-prediction module, `mtp`; without it the
    module's weights in a checkpoint are ignored, and `config.num_mtp_layers` says 0, as a later save then has none.
    Raises ValueError when it is asked for and the config or the checkpoint has none.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    shares_prefixes = True
    """`hidden_states` takes `shared_B` and `at_BT`, and computes no padding."""
    replays_routing = True
    """`hidden_states` takes `routing_BTLK`."""
    has_spread_experts = False
    """Whether this process holds only a share of the experts (`r1lab.parallel.expert_parallel` sets it)."""

    def __init__(self, config: DeepseekV3Config, with_mtp: bool = False) -> None:
        if with_mtp:
            require_mtp_config(config)
        elif config.num_mtp_layers:
            config = copy.deepcopy(config)
            config.num_mtp_layers = 0
        super().__init__(config)
        self.model = PolicyModel(config, with_mtp)
        self.vocab_size = config.vocab_size
        self.lm_head = PolicyLinear(config.hidden_size, config.vocab_size, bias=False)
        # Loads are counted per process; DistributedDataParallel would overwrite them with rank 0's at each forward.
        self._ddp_params_and_buffers_to_ignore = [
            name for name, _ in self.named_buffers() if name.endswith("expert_load_E")
        ]
        self.post_init()
        # Released checkpoints carry the module behind the last layer, with copies of the embedding and the head.
        first, shared = config.num_hidden_layers, r"\.(embed_tokens|shared_head\.head)\.weight"
        extra = "|".join(str(i) for i in range(first, first + MAX_IGNORED_LAYERS))
        self._keys_to_ignore_on_load_unexpected = {rf"^model\.layers\.({extra}){shared if with_mtp else ''}"}

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *args, with_mtp: bool = False, output_loading_info: bool = False, **kwargs
    ):
        """As in transformers; with_mtp: see the class."""
        if not with_mtp:
            return super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=output_loading_info, **kwargs
            )
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *args, with_mtp=True, output_loading_info=True, **kwargs
        )
        check_mtp_loaded(model.config, info["missing_keys"], pretrained_model_name_or_path)
        return (model, info) if output_loading_info else model

    @property
    def mtp(self) -> MTPLayer | None:
        """The multi-token-prediction module, None without one."""
        last = self.model.layers[-1]
        # accelerate's activation checkpointing puts a wrapper around each layer.
        return last if isinstance(getattr(last, "_checkpoint_wrapped_module", last), MTPLayer) else None

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mtp_loss_weight: float = 0.0,
        **kwargs,
    ) -> "PolicyOutput":
        """Logits [B, T, vocab] (or of the last `logits_to_keep` positions only), and what `PolicyModel` documents.

        labels [B, T]: next-token cross-entropy, labels shifted inside, -100 ignored; `num_items_in_batch` in kwargs
        divides the summed loss instead of the number of labels. `aux_loss` is part of `loss` when there is one.
        mtp_loss_weight: lambda of DeepSeek-V3, eq. 25; above 0, with labels and without a cache, that much of the
        multi-token-prediction loss is part of `loss` too.
        use_cache: make and return a `LatentCache` when none is given; default off, since training needs none.
        Raises ValueError on a mtp_loss_weight above 0 without the module.
        """
        if use_cache and past_key_values is None:
            past_key_values = LatentCache()
        output = self.model(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds)
        hidden_BTD, aux_loss = output.last_hidden_state, output.aux_loss
        logits = self.lm_head(slice_logits_to_keep(hidden_BTD, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
            if aux_loss is not None:
                loss = loss + aux_loss
        draft_loss = None
        if labels is not None and mtp_loss_weight > 0:
            draft_loss = mtp_loss(self, hidden_BTD, input_ids, labels, attention_mask, position_ids)
            loss = loss + mtp_loss_weight * draft_loss
        return PolicyOutput(
            loss=loss, aux_loss=aux_loss, logits=logits, past_key_values=past_key_values, mtp_loss=draft_loss
        )

    def hidden_states(
        self,
        input_ids_BT: torch.Tensor,
        attention_mask_BT: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache=None,
        shared_B: torch.Tensor | None = None,
        at_BT: torch.Tensor | None = None,
        routing_BTLK: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Final normed hidden states [B, T, D], or [number of True in at, D]; the head is not applied. Arguments as in
        `PolicyModel.forward`. With routing also its flips [B, T], see `PolicyModelOutput`."""
        output = self.model(
            input_ids_BT, attention_mask_BT, position_ids, cache, shared_B=shared_B, at_BT=at_BT,
            routing_BTLK=routing_BTLK,
        )  # fmt: skip
        if routing_BTLK is None:
            return output.last_hidden_state
        return output.last_hidden_state, output.routing_flips

    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        """As in transformers, but the config names the public architecture, which vLLM and converters look up, and the
        multi-token-prediction module, if there is one, is laid out as in released checkpoints.

        Raises ValueError when the experts are spread over processes and `state_dict` does not bring them together.
        """
        if self.has_spread_experts and kwargs.get("state_dict") is None:
            raise ValueError("this process holds a share of the experts; save with state_dict=full_state_dict(policy)")
        if self.mtp is not None:
            state = kwargs.pop("state_dict", None) or self.state_dict()
            kwargs["state_dict"] = state | checkpoint_copies(self.config, state)
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            self.config.architectures = [DeepseekV3ForCausalLM.__name__]
            self.config.save_pretrained(save_directory)


# Files keep one tensor per expert, as released checkpoints do, while the module stacks them. transformers looks the
# conversion up by class name for classes outside its own package.
register_checkpoint_conversion_mapping(
    PolicyForCausalLM.__name__, get_checkpoint_conversion_mapping("deepseek_v3"), overwrite=True
)
