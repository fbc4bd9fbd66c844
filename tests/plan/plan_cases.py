"""What the planner's tests share: V3's layout, and looking figures up."""

from r1lab.plan import Cluster, Parallel, Run, Section, find_gpu, load_shape, make_plan

V3 = load_shape("deepseek-v3")
# DeepSeek-V3 report, section 3.2: 2,048 H800 in nodes of 8, 16-way pipeline (DualPipe), 64-way experts over 8 nodes,
# ZeRO-1; section 4.2: 15,360 sequences of 4,096 tokens a step, 14.8 T tokens.
V3_CLUSTER = Cluster(find_gpu("H800"), num_gpus=2048)
V3_PARALLEL = Parallel(pp=16, dp=128, ep=64, schedule="dualpipe")


def v3_run(**changes) -> Run:
    return Run(**{"sequence_length": 4096, "batch_size": 15360, "precision": "fp8", "num_tokens": 14.8e12} | changes)


def v3_figures(**changes) -> dict[str, float]:
    return figures(make_plan(V3, V3_CLUSTER, V3_PARALLEL, v3_run(**changes)))


def figures(sections: list[Section]) -> dict[str, float]:
    """{name: value}; a name that stands twice must mean the same."""
    found: dict[str, float] = {}
    for section in sections:
        for figure in section.figures:
            assert found.setdefault(figure.name, figure.value) == figure.value, figure.name
    return found
