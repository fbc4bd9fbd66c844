"""What a policy's gates choose in a plain forward pass: the truth of recorded and replayed routing."""

import torch

from r1lab.model import PolicyForCausalLM
from r1lab.model.moe import TopkGate


def gates_of(policy: PolicyForCausalLM) -> list[TopkGate]:
    """In the order of the layers, the multi-token-prediction module left out."""
    layers = policy.model.layers[: policy.config.num_hidden_layers]
    return [module for layer in layers for module in layer.modules() if isinstance(module, TopkGate)]


@torch.no_grad()
def gate_choices(policy: PolicyForCausalLM, ids_BT: torch.Tensor) -> torch.Tensor:
    """[B, T, MoE layers, K] int64, of rows without padding."""
    chosen = []
    hooks = [
        gate.register_forward_hook(lambda gate, inputs, output: chosen.append(output[1])) for gate in gates_of(policy)
    ]
    policy.hidden_states(ids_BT)
    for hook in hooks:
        hook.remove()
    return torch.stack(chosen, 1).unflatten(0, ids_BT.shape)
