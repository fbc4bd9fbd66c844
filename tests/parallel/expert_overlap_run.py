"""Two processes that show what runs while tokens travel.

Rank 1 holds its side of each token exchange back until rank 0 has computed its shared experts, forward and backward.
Were rank 0 to wait for the tokens first, neither would ever go on.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from expert_cases import TIMEOUT, Case, make_layer, make_tokens
from torch.profiler import ProfilerActivity, profile, record_function

from r1lab.parallel import all_to_all
from r1lab.parallel.expert_parallel import build_expert_groups, parallelize_experts

CASE = Case([24, 24], {"hidden_size": 128})


class _Signals:
    """What rank 0 has done and rank 1 waits for."""

    def __init__(self, directory: str) -> None:
        self.store = dist.FileStore(os.path.join(directory, "signals"), 2)
        self.phase = "forward"

    def tell(self, phase: str) -> None:
        _mark(f"{phase} ends")  # first: what rank 1 does now comes after it
        self.store.set(phase, "done")

    def hold_back(self) -> None:
        """Makes every exchange of tokens wait until rank 0 has told of this phase."""
        original = all_to_all._take_off

        def held(x_ND, route, *args):
            if route.name.startswith("dispatch"):
                self.store.wait([self.phase], timedelta(seconds=120))
            return original(x_ND, route, *args)

        all_to_all._take_off = held


def run_overlap(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/init", rank=rank, world_size=2, timeout=TIMEOUT)
    signals = _Signals(directory)
    layer = parallelize_experts(make_layer(CASE), build_expert_groups(2, timeout=TIMEOUT))
    x, grad_y = (t.split(CASE.tokens)[rank] for t in make_tokens(CASE))
    x.requires_grad_()
    if rank == 0:
        layer.shared_experts.register_forward_pre_hook(lambda *_: _mark("forward begins"))
        layer.shared_experts.register_forward_hook(lambda *_: signals.tell("forward"))
        layer.shared_experts.register_full_backward_pre_hook(lambda *_: _mark("backward begins"))
        layer.shared_experts.register_full_backward_hook(lambda *_: signals.tell("backward"))
    else:
        signals.hold_back()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        y, _ = layer(x.unsqueeze(0))
        signals.phase = "backward"
        (y.squeeze(0) * grad_y).sum().backward()
    if rank == 0:
        profiler.export_chrome_trace(os.path.join(directory, "trace.json"))
    dist.destroy_process_group()


def _mark(name: str) -> None:
    with record_function(f"shared experts: {name}"):
        pass
