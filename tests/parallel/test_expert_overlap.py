"""Tokens travel while the shared experts are computed, forward and backward: read off a profiler's trace."""

import json

import pytest
import torch
from expert_overlap_run import run_overlap


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """Name -> [(start, end)] in microseconds, sorted, on rank 0."""
    directory = tmp_path_factory.mktemp("overlap")
    torch.multiprocessing.spawn(run_overlap, (str(directory),), nprocs=2)
    spans = {}
    for event in json.loads((directory / "trace.json").read_text())["traceEvents"]:
        if "dur" in event:
            spans.setdefault(event["name"], []).append((event["ts"], event["ts"] + event["dur"]))
    return {name: sorted(times) for name, times in spans.items()}


def mark(trace, name: str) -> float:
    """When the shared experts did that."""
    ((start, _),) = trace[f"shared experts: {name}"]
    return start


def departures(trace) -> list[float]:
    """When the exchanges of tokens (not of results) were started: rows, weights and slots, then two gradients."""
    return sorted(s for name, times in trace.items() if name.startswith("r1lab/start dispatch") for s, _ in times)


def arrivals(trace) -> list[float]:
    """When all messages were over, in order: counts, the three above, results; results' gradients, the two above."""
    return sorted(end for _, end in trace["gloo:all_to_all"])


def test_tokens_travel_while_the_shared_experts_are_computed(trace):
    assert len(departures(trace)) == 5 and len(arrivals(trace)) == 8
    assert departures(trace)[2] < mark(trace, "forward begins") < mark(trace, "forward ends") < arrivals(trace)[1]


def test_gradients_travel_while_the_shared_experts_are_differentiated(trace):
    assert departures(trace)[4] < mark(trace, "backward begins") < mark(trace, "backward ends") < arrivals(trace)[6]
