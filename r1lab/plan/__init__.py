"""Plan a run before paying for it: memory, FLOPs, traffic, time and cost of a model on a cluster, formula by formula.

    python -m r1lab.plan deepseek-v3 --gpu H800 --num_gpus 2048 --pp 16 --ep 64 --schedule dualpipe --precision fp8 \\
        --batch_size 15360 --sequence_length 4096 --num_tokens 14.8e12
    python -m r1lab.plan qwen2.5-7b --gpu H100 --num_gpus 8 --zero 3 --rl --generation_batch_size 1024
    python -m r1lab.plan path/to/config.json --explain          every formula with what went into it
    python -m r1lab.plan embedded --json                        the same for programs

MODEL is a name of the built-in list, `embedded` (the base in data/base), a directory or a config.json of DeepSeek-V3,
Llama, Qwen2, Qwen3 or Qwen3-MoE. Only the config is read: no weights, no torch, no network.

Each figure is computed from the formula that `--explain` shows (`figures.py`). One file a subject: `parameters.py`
(counts, cache, FLOPs), `memory.py`, `communication.py`, `training.py` (bubble, throughput, cost), `rollouts.py`
(`--rl`), `cluster.py` (devices, and the layouts that are refused). The formulas reproduce what DeepSeek published of
V3, and count what transformers' and our own models really hold and compute (`tests/plan`).

What is a count is exact. What is a time rests on stated efficiencies (`--efficiency`, `--bandwidth_efficiency`), on
equal stages and an even load of the experts: it says what a layout can reach, not what it will. The time to launch a
kernel is not in it, so models of a few million parameters look faster than they are. Bytes are decimal (1 GB = 1e9).
"""

from r1lab.plan.cluster import GPUS, Cluster, Gpu, Parallel, find_gpu
from r1lab.plan.figures import Figure, Section
from r1lab.plan.models import BUILT_IN, ModelShape, load_shape
from r1lab.plan.planner import Run, make_plan
from r1lab.plan.rollouts import RolloutPlan

__all__ = [
    "BUILT_IN",
    "GPUS",
    "Cluster",
    "Figure",
    "Gpu",
    "ModelShape",
    "Parallel",
    "RolloutPlan",
    "Run",
    "Section",
    "find_gpu",
    "load_shape",
    "make_plan",
]
