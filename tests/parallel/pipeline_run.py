"""Training steps of tiny policies through pipelines of processes, and the same on one process."""

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from unittest import mock

import torch
import torch.distributed as dist
from expert_cases import TIMEOUT
from model_cases import make_config, make_ids, make_policy

from r1lab.model import PolicyForCausalLM, update_routing_bias
from r1lab.model.moe import TopkGate
from r1lab.parallel import all_to_all, expert_parallel
from r1lab.parallel.dualpipe import PipelinedPolicy, build_pipeline_groups
from r1lab.parallel.expert_parallel import parallelize_experts
from r1lab.parallel.expert_weights import WHOLE_NAMES
from r1lab.parallel.overlap import OverlappedSlots

MAX_NORM = 0.1
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "moe_intermediate_size": 12,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


@dataclass
class Case:
    """A schedule and a policy."""

    schedule: str
    shape: tuple[int, int, int]
    """Micro-batches, rows, tokens."""
    pp: int = 4
    spread: bool = False
    steps: int = 1
    config: dict = field(default_factory=dict)

    def policy(self) -> PolicyForCausalLM:
        return make_policy(**{**SMALL, "num_hidden_layers": 4, **self.config}).train()

    def batch(self, step: int, pipeline: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and labels [M, B, T]; the micro-batches have differently many labels, the first one has none."""
        micro_batches, rows, columns = self.shape
        ids = make_ids(micro_batches * rows, columns, seed=10 * step + pipeline).view(self.shape)
        keep = torch.arange(columns) <= torch.arange(micro_batches)[:, None, None]
        return ids, torch.where(keep, ids, -100)


TIED = {"tie_word_embeddings": True, "seq_aux_loss_alpha": 0.3}
CASES = {
    "1f1b": Case("1f1b", (3, 1, 5)),
    "zb1p": Case("zb1p", (5, 2, 5), config={"seq_aux_loss_alpha": 0.3}),
    "dualpipe": Case("dualpipe", (10, 2, 5), steps=2, config={"num_hidden_layers": 6}),
    "dualpipe, balance loss, tied": Case("dualpipe", (8, 1, 5), config=TIED),
    "dualpipev": Case("dualpipev", (8, 1, 5), config={"num_hidden_layers": 9, "seq_aux_loss_alpha": 0.3}),
    "dualpipev, tied": Case("dualpipev", (4, 1, 5), pp=2, config=TIED),
    "dualpipe, spread experts": Case("dualpipe", (6, 2, 5), pp=2, spread=True, steps=2),
    "dualpipev, spread experts": Case("dualpipev", (4, 2, 5), pp=2, spread=True),
    "zb1p, spread experts": Case("zb1p", (3, 2, 5), pp=2, spread=True),
    "dualpipe, two pipelines": Case("dualpipe", (4, 2, 5), pp=2),
    "dualpipev on one device": Case("dualpipev", (2, 2, 5), pp=1, spread=True),
}


def make_optimizer(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5)


def loads_of(policy: PolicyForCausalLM) -> torch.Tensor:
    """Of each gate and expert, int64 [L, E]."""
    return torch.stack([m.expert_load_E.clone() for m in policy.modules() if isinstance(m, TopkGate)])


def gradients_of(policy: PolicyForCausalLM) -> dict[str, torch.Tensor]:
    """Under the names of one process; of spread experts only this process's."""
    gradients = {}
    for name, parameter in policy.named_parameters():
        if parameter.grad is not None:
            prefix, _, last = name.rpartition(".")
            gradients[f"{prefix}.{WHOLE_NAMES.get(last, last)}"] = parameter.grad.clone()
    return gradients


def train_alone(case: Case, world_size: int) -> dict[str, list]:
    """Of each step: loss, gradients, their norm and the gates' loads, of all pipelines' batches on one process."""
    policy, num_pipelines = case.policy(), world_size // case.pp
    optimizer = make_optimizer(policy.parameters())
    results = {"loss": [], "gradients": [], "norm": [], "loads": []}
    for step in range(case.steps):
        total = 0.0
        for pipeline in range(num_pipelines):
            ids, labels = case.batch(step, pipeline)
            num_labels = (labels[..., 1:] != -100).sum()
            for ids_BT, labels_BT in zip(ids, labels):
                output = policy(ids_BT, labels=labels_BT, num_items_in_batch=num_labels)
                aux_loss = 0.0 if output.aux_loss is None else output.aux_loss
                loss = output.loss - aux_loss + aux_loss / len(ids)
                (loss / num_pipelines).backward()
                total += loss.item() / num_pipelines
        results["loss"].append(total)
        results["gradients"].append(gradients_of(policy))
        results["loads"].append(loads_of(policy))
        results["norm"].append(torch.nn.utils.clip_grad_norm_(policy.parameters(), MAX_NORM).item())
        optimizer.step()
        optimizer.zero_grad()
        update_routing_bias(policy, speed=0.05)
    return results


def train(case: Case) -> dict[str, list]:
    """This process's part of the same, and the actions that the runtime says it ran."""
    groups = build_pipeline_groups(case.pp, timeout=TIMEOUT)
    policy = case.policy()
    if case.spread:
        parallelize_experts(policy, groups.expert_groups())
    pipeline = PipelinedPolicy(policy, case.schedule, case.shape, groups)
    optimizer = make_optimizer(pipeline.parameters())
    results = {"loss": [], "gradients": [], "norm": [], "loads": [], "actions": []}
    for step in range(case.steps):
        with _ActionsRun() as actions:
            loss = pipeline.step(*case.batch(step, dist.get_rank(groups.data)))
        results["loss"].append(loss.item())
        results["actions"].append(actions)
        results["gradients"].append(gradients_of(policy))
        results["loads"].append(loads_of(policy))
        results["norm"].append(pipeline.clip_grad_norm_(MAX_NORM).item())
        optimizer.step()
        optimizer.zero_grad()
        update_routing_bias(policy, speed=0.05)
    return results


class _ActionsRun(logging.Handler):
    """What torch's runtime says it runs, as it names it, in order."""

    logger = logging.getLogger("torch.distributed.pipelining.schedules")

    def __enter__(self) -> list[str]:
        self.actions: list[str] = []
        self.logger.setLevel(logging.DEBUG)
        self.logger.propagate = False
        self.logger.addHandler(self)
        return self.actions

    def __exit__(self, *_) -> None:
        self.logger.removeHandler(self)
        self.logger.propagate = True
        self.logger.setLevel(logging.NOTSET)

    def emit(self, record: logging.LogRecord) -> None:
        if "running time_step" in record.msg:
            self.actions.append(str(record.args[1]))


def message_of(call: Callable[[], object]) -> str:
    """Of the error that the call must raise."""
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def refusals(rank: int) -> dict[str, str]:
    """Bad input -> its message; a process that started anything would wait for the others, or they for it."""
    groups, pairs = build_pipeline_groups(4, timeout=TIMEOUT), build_pipeline_groups(2, timeout=TIMEOUT)
    policy = Case("1f1b", ()).policy()
    with_mtp = PolicyForCausalLM(make_config(**SMALL, num_hidden_layers=4, num_mtp_layers=1), with_mtp=True)
    spread = parallelize_experts(Case("1f1b", ()).policy(), groups=pairs.expert_groups())

    def build(schedule, shape, policy=policy, groups=groups):
        return message_of(lambda: PipelinedPolicy(policy, schedule, shape, groups))

    pipeline = PipelinedPolicy(policy, "1f1b", (2, 1, 5), groups)
    ids = torch.ones(2, 1, 5, dtype=torch.int64)
    with_gradients = PipelinedPolicy(Case("1f1b", ()).policy(), "1f1b", (2, 1, 5), groups)
    for parameter in with_gradients.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return {
        "3 of 4 processes": message_of(lambda: build_pipeline_groups(3)),
        "layers": build("dualpipev", (8, 1, 5)),
        "name": build("gpipe", (8, 1, 5)),
        "few micro-batches": build("dualpipe", (6, 1, 5)),
        "odd micro-batches": build("dualpipe", (9, 1, 5)),
        "shape": build("1f1b", (8, 5)),
        "mtp": build("1f1b", (8, 1, 5), with_mtp),
        "tied": build("zb1p", (8, 1, 5), Case("", (), config=TIED).policy()),
        "spread elsewhere": build("1f1b", (8, 1, 5), spread),
        "other weights": build("1f1b", (8, 1, 5), make_policy(seed=rank // 2, **SMALL, num_hidden_layers=4)),
        "other shapes": build("1f1b", (8, 1, 5 + rank // 3)),
        "other ids": message_of(lambda: pipeline.step(ids[:1], ids)),
        "other labels": message_of(lambda: pipeline.step(ids, ids[..., 1:])),
        "nothing to learn": message_of(lambda: pipeline.step(ids, torch.full_like(ids, -100))),
        "old gradients": message_of(lambda: with_gradients.step(ids, ids)),
    }


def run_held_back(rank: int, directory: str) -> bool:
    """In the first overlapped slot, rank 1 sends its forward's tokens off only when rank 0, to whom they go, has got on
    with its backward as far as the experts' gradient. Were rank 0 to wait for the tokens first, neither would go on.

    Returns whether this process has told or been told.
    """
    case = CASES["dualpipe, spread experts"]
    groups = build_pipeline_groups(case.pp, timeout=TIMEOUT)
    policy = parallelize_experts(case.policy(), groups.expert_groups())
    pipeline = PipelinedPolicy(policy, case.schedule, case.shape, groups)
    store = dist.FileStore(os.path.join(directory, "signals"), 2)
    told: list[str] = []
    slots: list[OverlappedSlots] = []
    take_off, reduce_gradient, run_slot = (
        all_to_all._take_off,
        expert_parallel.reduce_gradient,
        OverlappedSlots.__call__,
    )

    def marked_slot(self, *args):
        slots.append(self)
        run_slot(self, *args)

    def telling(*args):
        if rank == 0 and slots and not told:
            told.append("backward")
            store.set("backward", "told")
        return reduce_gradient(*args)

    def held(x_ND, route, *args):
        is_forward = threading.current_thread() is threading.main_thread()
        if rank == 1 and slots and is_forward and route.name.startswith("dispatch") and not told:
            store.wait(["backward"], timedelta(seconds=120))
            told.append("forward")
        return take_off(x_ND, route, *args)

    with (
        mock.patch.object(OverlappedSlots, "__call__", marked_slot),
        mock.patch.object(expert_parallel, "reduce_gradient", telling),
        mock.patch.object(all_to_all, "_take_off", held),
    ):
        pipeline.step(*case.batch(0, dist.get_rank(groups.data)))
    return bool(told)


def run_pipelines(rank: int, world_size: int, directory: str) -> None:
    """A process of the tests; saves its results."""
    torch.set_num_threads(1)
    init = f"file://{directory}/init"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=world_size, timeout=TIMEOUT)
    results: dict[str, object] = {name: train(case) for name, case in CASES.items()}
    results["refusals"] = refusals(rank)
    results["told"] = run_held_back(rank, directory)
    torch.save(results, os.path.join(directory, f"{rank}.pt"))
    dist.destroy_process_group()
