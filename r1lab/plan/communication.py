"""Bytes on the wire: expert dispatch and combine under the node limit, pipeline edges, gradient sums.

A token goes to each node that has one of its experts once, over the network, and inside the node once to each device
that has one, over NVLink (DeepSeek-V3 report, section 3.2.2). V3's gate picks `topk_group` of `n_group` expert groups
first; with a group per node that is the limit of 4 nodes per token. Dispatch carries the hidden state (with FP8: a byte
each and an fp32 scale per 128), combine carries bf16 back; the backward moves as much again.

How many nodes and devices a token really meets is counted for an even load: groups drawn evenly, then experts drawn
evenly from these, without replacement.
"""

from math import comb

from r1lab.plan.cluster import Cluster, Parallel
from r1lab.plan.figures import Figure, Section, compute, find_value
from r1lab.plan.models import ModelShape
from r1lab.plan.parameters import flops_section


def touch_probability(shape: ModelShape, unit: int) -> float:
    """Probability that a token has at least one of its experts among `unit` neighbouring ones, for an even load.

    A unit that neither divides a group nor is made of whole groups is counted as if there were no groups.
    """
    experts, top_k = shape.num_experts, shape.num_experts_per_tok
    groups, chosen = shape.n_group, shape.topk_group
    size = experts // groups
    if unit % size and size % unit:
        groups, chosen, size = 1, 1, experts
    candidates = chosen * size
    held, inside = max(1, unit // size), min(unit, size)
    missed = 0.0
    for open_groups in range(min(held, chosen) + 1):
        ways = comb(held, open_groups) * comb(groups - held, chosen - open_groups) / comb(groups, chosen)
        missed += ways * comb(candidates - open_groups * inside, top_k) / comb(candidates, top_k)
    return 1 - missed


def max_nodes_per_token(shape: ModelShape, num_nodes: int) -> int:
    """Most nodes that a token's experts can lie on: the node limit of group-limited routing."""
    groups_per_node = shape.n_group / num_nodes
    nodes_per_group = 1 if groups_per_node >= 1 else num_nodes / shape.n_group
    return int(min(num_nodes, shape.num_experts_per_tok, shape.topk_group * nodes_per_group))


def payload_figures(shape: ModelShape, fp8_dispatch: bool) -> tuple[Figure, Figure]:
    """Bytes of one token's dispatch and of its combine, for one receiver."""
    hidden = shape.hidden_size
    dispatch = (
        compute("dispatch_payload", "B/token", "hidden * (1 + 4 / 128)", hidden=hidden)
        if fp8_dispatch
        else compute("dispatch_payload", "B/token", "hidden * 2", hidden=hidden)
    )
    return dispatch, compute("combine_payload", "B/token", "hidden * 2", hidden=hidden)


def exchange_seconds(tokens: int, receivers: float, bytes_per_receiver: float, bandwidth: float) -> float:
    """Time to send `tokens` to `receivers` each and back at `bandwidth`; `bytes_per_receiver` is both ways."""
    return tokens * receivers * bytes_per_receiver / bandwidth


def communication_section(
    shape: ModelShape,
    cluster: Cluster,
    parallel: Parallel,
    *,
    fp8_dispatch: bool,
    sequence_length: int,
    efficiency: float,
) -> Section:
    """Communication of training: per layer and token for the experts, per edge, per step for the gradients."""
    figures = [
        compute("pipeline_edge", "B/token", "2 * hidden * 2", hidden=shape.hidden_size),
        compute("gradient_sync", "B/parameter", "2 * (dp - 1) / dp * gradient", dp=parallel.dp, gradient=4),
    ]
    notes = ["pipeline_edge: bf16 activations forward and gradients back, per stage boundary.",
             "gradient_sync: per device, step and parameter it keeps, reduce-scatter and all-gather."]  # fmt: skip
    if parallel.ep == 1:
        return Section("Communication, training", figures, notes)
    nodes = max(1, parallel.ep // cluster.gpus_per_node)
    dispatch, combine = payload_figures(shape, fp8_dispatch)
    devices = parallel.ep * touch_probability(shape, shape.num_experts // parallel.ep)
    both = {"dispatch": dispatch.value, "combine": combine.value}
    figures += [dispatch, combine, compute("ep_nodes", "nodes", "nodes", nodes=nodes)]
    figures += [compute("devices_per_token", "devices", "ep * touched", ep=parallel.ep, touched=devices / parallel.ep)]
    if nodes > 1:
        touched = touch_probability(shape, shape.num_experts // nodes)
        limit = max_nodes_per_token(shape, nodes)
        figures += [
            compute("max_nodes_per_token", "nodes", "limit", limit=limit),
            compute("nodes_per_token", "nodes", "nodes * touched", nodes=nodes, touched=touched),
            compute("network_bytes_forward", "B/token", "(nodes - 1) * touched * (dispatch + combine)", nodes=nodes,
                    touched=touched, **both),
            compute("network_bytes_forward_limit", "B/token", "limit * (dispatch + combine)", limit=limit, **both),
        ]  # fmt: skip
        notes.append("Network bytes are per MoE layer and token; the backward moves as many again.")
    figures.append(
        compute("nvlink_bytes_forward", "B/token", "devices * (1 - 1 / gpus_per_node) * (dispatch + combine)",
                devices=devices, gpus_per_node=min(parallel.ep, cluster.gpus_per_node), **both)
    )  # fmt: skip
    wire = find_value(figures, "network_bytes_forward" if nodes > 1 else "nvlink_bytes_forward")
    bandwidth = cluster.gpu.network_bandwidth if nodes > 1 else cluster.gpu.nvlink_bandwidth
    forward = find_value(flops_section(shape, sequence_length).figures, "forward_flops")
    figures += [
        compute("exchange_time", "s", "bytes / bandwidth", bytes=wire, bandwidth=bandwidth),
        compute("arithmetic_time", "s", "forward / layers / (peak * efficiency)", forward=forward,
                layers=shape.num_hidden_layers, peak=cluster.gpu.bf16_flops, efficiency=efficiency),
    ]  # fmt: skip
    notes.append("exchange_time and arithmetic_time: per layer and token, forward; overlapped, the longer one counts.")
    return Section("Communication, training", figures, notes)
