"""The policy model: DeepSeek-V3's MLA and mixture of experts behind transformers' interface."""

from r1lab.model.cache import LatentCache
from r1lab.model.moe import sequence_aux_loss, update_routing_bias
from r1lab.model.mtp import MTPLayer, add_mtp, has_mtp, mtp_hidden_states, mtp_loss
from r1lab.model.replay import check_replayable, count_recorded_load, num_moe_layers
from r1lab.model.transformer import PolicyForCausalLM, PolicyModel

__all__ = [
    "LatentCache", "MTPLayer", "PolicyForCausalLM", "PolicyModel", "add_mtp", "check_replayable", "count_recorded_load",
    "has_mtp", "mtp_hidden_states", "mtp_loss", "num_moe_layers", "sequence_aux_loss", "update_routing_bias",
]  # fmt: skip
