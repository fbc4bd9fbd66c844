"""The machines a plan runs on, and how a model is cut over them."""

from dataclasses import dataclass, replace

from r1lab.parallel.schedule import check_sizes, num_stages
from r1lab.plan.models import ModelShape


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device: its published peaks, in FLOP/s (dense), bytes and bytes/s (one direction)."""

    name: str
    bf16_flops: float
    memory_bytes: float
    memory_bandwidth: float
    nvlink_bandwidth: float
    """Within a node."""
    network_bandwidth: float
    """Between nodes, per device."""
    has_fp8: bool


GPUS = {
    gpu.name: gpu
    for gpu in (
        # H100 SXM datasheet (NVIDIA, 2023): 989 TFLOPS bf16 dense, 80 GB at 3.35 TB/s, NVLink 900 GB/s both ways;
        # a DGX H100 has one 400 Gb/s port per GPU.
        Gpu("H100", 989e12, 80e9, 3.35e12, 450e9, 50e9, True),
        # As H100, with NVLink cut to 400 GB/s both ways; what DeepSeek uses of it is 160 GB/s, and 50 GB/s of
        # InfiniBand (DeepSeek-V3 report, section 3.2.2).
        Gpu("H800", 989e12, 80e9, 3.35e12, 160e9, 50e9, True),
        # H200 SXM datasheet (NVIDIA, 2023): H100's arithmetic, 141 GB at 4.8 TB/s.
        Gpu("H200", 989e12, 141e9, 4.8e12, 450e9, 50e9, True),
        # A100 SXM 80 GB datasheet (NVIDIA, 2021): 312 TFLOPS bf16 dense, 2.039 TB/s, NVLink 600 GB/s both ways; a DGX
        # A100 has one 200 Gb/s port per GPU. No FP8.
        Gpu("A100", 312e12, 80e9, 2.039e12, 300e9, 25e9, False),
    )
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """So many devices of a kind.

    Raises:
        ValueError: a size is impossible; the message names it and the fix.
    """

    gpu: Gpu
    num_gpus: int
    gpus_per_node: int = 8

    def __post_init__(self) -> None:
        for name in ("num_gpus", "gpus_per_node"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("bf16_flops", "memory_bytes", "memory_bandwidth", "nvlink_bandwidth", "network_bandwidth"):
            if not getattr(self.gpu, name) > 0:
                raise ValueError(f"{name}={getattr(self.gpu, name)}: must be positive")
        if self.num_gpus > self.gpus_per_node and self.num_gpus % self.gpus_per_node:
            lower = self.num_gpus // self.gpus_per_node * self.gpus_per_node
            raise ValueError(
                f"num_gpus={self.num_gpus} leaves a node of {self.gpus_per_node} half used; "
                f"use {lower} or {lower + self.gpus_per_node}, or set gpus_per_node"
            )


def find_gpu(name: str, **changes: float | None) -> Gpu:
    """A device of the table, with the given fields replaced where not None.

    Raises:
        ValueError: no such device.
    """
    if name.upper() not in GPUS:
        raise ValueError(f"gpu={name!r}: the table has {', '.join(GPUS)}; take the nearest and set its peaks by hand")
    return replace(GPUS[name.upper()], **{key: value for key, value in changes.items() if value is not None})


@dataclass(frozen=True, slots=True)
class Parallel:
    """How a model is cut.

    The devices are pp x dp. Each of the dp replicas of a pipeline stage reads its own micro-batches; the experts of a
    stage are spread over `ep` of these replicas, and repeated dp / ep times.
    """

    pp: int = 1
    dp: int = 1
    ep: int = 1
    tp: int = 1
    schedule: str = "1f1b"
    zero: int = 1
    """What the replicas share out: 0 nothing, 1 optimizer states, 2 gradients too, 3 weights too (FSDP2's default)."""


def check_parallel(shape: ModelShape, cluster: Cluster, parallel: Parallel) -> None:
    """Raises ValueError, naming the value and the fix, if the model cannot be cut so."""
    for name in ("pp", "dp", "ep", "tp"):
        if getattr(parallel, name) < 1:
            raise ValueError(f"{name}={getattr(parallel, name)}: must be at least 1")
    if parallel.tp != 1:
        raise ValueError(f"tp={parallel.tp}: only tp=1 is planned, as V3 trains; raise ep or pp instead")
    if parallel.zero not in (0, 1, 2, 3):
        raise ValueError(f"zero={parallel.zero}: use 0, 1, 2 or 3")
    _check_world(cluster, parallel)
    _check_experts(shape, parallel, cluster.gpus_per_node)
    # The micro-batches are checked with the batch; the least that DualPipe takes passes here.
    check_sizes(parallel.schedule, parallel.pp, 2 * parallel.pp)
    stages = num_stages(parallel.schedule, parallel.pp)
    if stages > shape.num_hidden_layers:
        raise ValueError(
            f"pp={parallel.pp} with {parallel.schedule} makes {stages} stages, more than the {shape.num_hidden_layers} "
            f"layers of {shape.name}; use a smaller pp"
        )
    if parallel.zero >= 2 and parallel.pp > 1:
        raise ValueError(
            f"zero={parallel.zero} with pp={parallel.pp}: every micro-batch would gather or reduce the stage again; "
            "use zero=1 with a pipeline, or pp=1"
        )


def _check_world(cluster: Cluster, parallel: Parallel) -> None:
    world = parallel.pp * parallel.dp * parallel.tp
    if world == cluster.num_gpus:
        return
    fix = (
        f"use dp={cluster.num_gpus // parallel.pp}"
        if cluster.num_gpus % parallel.pp == 0
        else f"use a pp that divides {cluster.num_gpus}"
    )
    raise ValueError(
        f"pp={parallel.pp} x dp={parallel.dp} x tp={parallel.tp} = {world} is not num_gpus={cluster.num_gpus}; "
        f"{fix}, or num_gpus={world}"
    )


def _check_experts(shape: ModelShape, parallel: Parallel, gpus_per_node: int) -> None:
    if parallel.ep > 1 and not shape.num_experts:
        raise ValueError(f"ep={parallel.ep}: {shape.name} has no experts; use ep=1")
    if shape.num_experts % parallel.ep:
        raise ValueError(
            f"ep={parallel.ep} does not divide the {shape.num_experts} experts of {shape.name}; "
            f"use ep={_divisor_below(shape.num_experts, parallel.ep)}"
        )
    if parallel.ep > gpus_per_node and parallel.ep % gpus_per_node:
        raise ValueError(
            f"ep={parallel.ep} leaves a node of {gpus_per_node} GPUs half used; use a multiple of {gpus_per_node}"
        )
    if parallel.dp % parallel.ep:
        raise ValueError(
            f"ep={parallel.ep} does not divide dp={parallel.dp}, whose replicas carry the experts; "
            f"use ep={_divisor_below(parallel.dp, parallel.ep)}"
        )


def _divisor_below(number: int, bound: int) -> int:
    return max(d for d in range(1, min(number, bound) + 1) if number % d == 0)
