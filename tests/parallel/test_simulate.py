"""Simulated bubbles and memory against the DeepSeek-V3 report's table 2 (arXiv:2412.19437, section 3.2.1)."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1lab.parallel.schedule import SCHEDULES, dependencies, num_stages
from r1lab.parallel.simulate import (
    Durations,
    bubble_formula,
    peak_activations_formula,
    simulate,
)

EQUAL_FLOPS = Durations()
OVERLAP_PAYS = Durations(overlapped=2.6)
CHEAP_WEIGHTS = Durations(forward=1.0, backward=1.7, weight=0.7, overlapped=2.1)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("pp", [4, 8, 16])
@pytest.mark.parametrize("durations", [EQUAL_FLOPS, OVERLAP_PAYS, CHEAP_WEIGHTS])
@pytest.mark.parametrize("micro_batches_per_device", [2, 4])
def test_bubble_and_activations_are_the_reports(name, pp, durations, micro_batches_per_device):
    timeline = simulate(name, pp, micro_batches_per_device * pp, durations)
    assert timeline.bubble == pytest.approx(bubble_formula(name, pp, durations))
    assert max(timeline.peak_activations) == peak_activations_formula(name, pp, micro_batches_per_device * pp)


def test_the_formulas_in_numbers():
    """Table 2 by hand, PP 8, F = 1, B = 2, W = 1, F&B = 2.6."""
    bubbles = {name: bubble_formula(name, 8, OVERLAP_PAYS) for name in SCHEDULES}
    assert bubbles == pytest.approx({"1f1b": 21, "zb1p": 7, "dualpipe": 4.8, "dualpipev": 11.2})
    assert [peak_activations_formula(name, 8, 64) for name in SCHEDULES] == [8, 8, 9, 17]
    with pytest.raises(ValueError, match="schedule='gpipe'"):
        bubble_formula("gpipe", 8, OVERLAP_PAYS)


@pytest.mark.parametrize("pp", [4, 8, 16])
@pytest.mark.parametrize("durations", [EQUAL_FLOPS, OVERLAP_PAYS])
def test_dualpipe_beats_zb1p_beats_1f1b(pp, durations):
    ran = [simulate(name, pp, 4 * pp, durations) for name in ("dualpipe", "zb1p", "1f1b")]
    assert ran[0].bubble < ran[1].bubble < ran[2].bubble
    assert ran[0].makespan < ran[1].makespan < ran[2].makespan


times = st.integers(2, 40).map(lambda tenths: tenths / 10)


@settings(max_examples=60, deadline=None)
@given(forward=times, weight=times, inputs=times, pp=st.sampled_from([2, 4, 6]), extra=st.integers(0, 3))
def test_bubble_of_uneven_times(forward, weight, inputs, pp, extra):
    durations = Durations(forward, inputs + weight, weight, forward + inputs + weight)
    micro_batches = 2 * pp + 2 * extra
    bubbles = {name: simulate(name, pp, micro_batches, durations).bubble for name in ("1f1b", "zb1p", "dualpipe")}
    formulas = {name: bubble_formula(name, pp, durations) for name in bubbles}
    assert bubbles["1f1b"] == pytest.approx(formulas["1f1b"])
    if weight <= min(forward, inputs):
        assert bubbles["zb1p"] == pytest.approx(formulas["zb1p"])
        if inputs >= forward:
            assert bubbles["dualpipe"] <= formulas["dualpipe"] + 1e-9


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(SCHEDULES), forward=times, weight=times, inputs=times, transfer=times)
def test_nothing_starts_before_what_it_depends_on(name, forward, weight, inputs, transfer):
    durations = Durations(forward, inputs + weight, weight, forward + inputs + weight, transfer)
    timeline = simulate(name, 4, 10, durations)
    ends = {a: (span.end, device) for device, spans in enumerate(timeline.spans) for span in spans for a in span.slot}
    for device, spans in enumerate(timeline.spans):
        for earlier, later in zip(spans, spans[1:]):
            assert later.start >= earlier.end
        for span in spans:
            for action in span.slot:
                for need in dependencies(action, num_stages(name, 4) - 1):
                    if need in ends:
                        end, source = ends[need]
                        assert span.start >= end + (transfer if source != device else 0) - 1e-9


def test_transfers_cost_time():
    assert simulate("1f1b", 4, 8, Durations(transfer=0.5)).makespan > simulate("1f1b", 4, 8).makespan


def test_zb1p_keeps_weight_inputs_of_pp_micro_batches_everywhere():
    """ZB-H1 holds back as many weight gradients as it saves in-flight micro-batches: no more memory than 1F1B."""
    assert simulate("zb1p", 8, 20).peak_weight_inputs == [8] * 8
    assert simulate("1f1b", 8, 20).peak_activations == [8, 7, 6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"forward": 0}, "forward=0"),
        ({"weight": 2.0}, "weight=2.0: must be shorter"),
        ({"transfer": -1}, "transfer=-1"),
    ],
)
def test_impossible_durations_are_named(field, message):
    with pytest.raises(ValueError, match=message):
        Durations(**field)


def test_the_picture(tmp_path):
    path = tmp_path / "schedules.png"
    command = [sys.executable, "-m", "r1lab.parallel.draw", path, "--pp", "4", "--num_micro_batches", "8"]
    subprocess.run(command, check=True)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_picture_refuses_what_cannot_run(tmp_path):
    command = [sys.executable, "-m", "r1lab.parallel.draw", tmp_path / "a.png", "--pp", "5"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 2 and "even pp" in ran.stderr and "Traceback" not in ran.stderr
    assert not (tmp_path / "a.png").exists()
