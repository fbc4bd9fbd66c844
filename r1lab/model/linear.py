"""The policy's linear layer: torch's, multiplied in the order in which rollouts multiply."""

import torch
from torch import nn

from r1lab.kernels import ops


class PolicyLinear(nn.Linear):
    """An `nn.Linear`, computed by `ops.linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., K] -> [..., N]."""
        return ops.linear(x, self.weight, self.bias)


def are_plain(*modules: nn.Module) -> bool:
    """Whether these are linear layers that nobody has replaced (by FP8 ones, by adapters), so that their weights are
    all there is to them."""
    return all(type(module) is PolicyLinear for module in modules)
