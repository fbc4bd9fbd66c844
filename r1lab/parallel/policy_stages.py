"""The policy cut into pipeline stages: neighbouring layers, the embedding before the first, the head after the last.

Suffixes: B rows, T tokens, D = hidden, V = vocabulary.
"""

import torch
from torch import nn

from r1lab.model import PolicyForCausalLM


class PolicyStage(nn.Module):
    """Some layers of a policy; the first stage has the embedding too, the last one the final norm and the head.

    The modules are the policy's own, under their names in the policy: gradients, loads and updates are the policy's.
    """

    def __init__(self, policy: PolicyForCausalLM, layers: range) -> None:
        super().__init__()
        config = policy.config
        self.is_first, self.is_last = layers.start == 0, layers.stop == config.num_hidden_layers
        self.with_aux_loss = bool(getattr(config, "seq_aux_loss_alpha", 0.0))
        self.model = nn.Module()
        if self.is_first:
            self.model.embed_tokens = policy.model.embed_tokens
        self.model.layers = nn.ModuleDict({str(i): policy.model.layers[i] for i in layers})
        self.model.rotary_emb = policy.model.rotary_emb
        if self.is_last:
            self.model.norm, self.lm_head = policy.model.norm, policy.lm_head

    def forward(
        self, x: torch.Tensor, aux_loss: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Ids [B, T] (first stage) or x [B, T, D] -> x [B, T, D], or logits [B, T, V] (last stage).

        With the sequence-wise balance loss, also the sum of the layers' so far, a scalar, in and out. Every row is one
        sequence: there is no padding mask, so pad on the right and label the padding -100.
        """
        x_BTD = self.model.embed_tokens(x) if self.is_first else x
        rotary = self.model.rotary_emb(x_BTD, torch.arange(x.shape[1], device=x.device).unsqueeze(0))
        aux_losses = [x_BTD.new_zeros((), dtype=torch.float32) if aux_loss is None else aux_loss]
        for layer in self.model.layers.values():
            x_BTD, layer_aux_loss = layer(x_BTD, rotary=rotary)
            if layer_aux_loss is not None:
                aux_losses.append(layer_aux_loss)
        if self.is_last:
            x_BTD = self.lm_head(self.model.norm(x_BTD))
        return (x_BTD, torch.stack(aux_losses).sum()) if self.with_aux_loss else x_BTD

    def example(self, shape: tuple[int, int], of_output: bool) -> tuple[torch.Tensor, ...]:
        """Tensors without memory that are like the inputs, or the outputs, for ids of [B, T]."""
        weight = next(p for p in self.parameters() if p.is_floating_point())
        config = self.model.rotary_emb.config
        if self.is_first and not of_output:
            return (torch.empty(shape, dtype=torch.int64, device="meta"),)
        width = config.vocab_size if self.is_last and of_output else config.hidden_size
        x = torch.empty(*shape, width, dtype=weight.dtype, device="meta", requires_grad=True)
        aux_loss = torch.empty((), dtype=torch.float32, device="meta", requires_grad=True)
        return (x, aux_loss) if self.with_aux_loss else (x,)


def layers_of_stages(num_layers: int, num_stages: int) -> list[range]:
    """The layers of each stage, equally many; where that does not divide, the first stages have one more, as the last
    one has the head to compute.

    Raises ValueError when there are fewer layers than stages.
    """
    if num_stages > num_layers:
        raise ValueError(
            f"{num_stages} stages for {num_layers} layers: a stage needs at least one; use fewer devices, or a "
            "schedule with one stage a device"
        )
    size, rest = divmod(num_layers, num_stages)
    bounds = [stage * size + min(stage, rest) for stage in range(num_stages + 1)]
    return [range(start, stop) for start, stop in zip(bounds, bounds[1:])]
