"""The tables in torch's terms: sends meet their receives, DualPipe's streams stay apart, losses come in time."""

import pytest

from r1lab.parallel.pipeline_runtime import Chain, _with_transfers
from r1lab.parallel.schedule import build_schedule

SIZES = [("1f1b", 1, 1), ("1f1b", 3, 2), ("zb1p", 4, 7), ("dualpipe", 2, 4), ("dualpipe", 4, 8), ("dualpipe", 6, 22),
         ("dualpipe", 8, 16), ("dualpipev", 1, 2), ("dualpipev", 3, 7), ("dualpipev", 5, 13)]  # fmt: skip


def lower(name: str, pp: int, num_micro_batches: int):
    """(chain, device -> its single actions as (place, kind, micro-batch))."""
    chain = Chain.of(name, pp, num_micro_batches)
    lowered = _with_transfers(build_schedule(name, pp, num_micro_batches), chain)
    flat = {
        device: [
            (part.stage_index, part.computation_type.value, part.microbatch_index)
            for action in actions
            for part in action.sub_actions or (action,)
        ]
        for device, actions in lowered.items()
    }
    return chain, flat


@pytest.mark.parametrize("sizes", SIZES)
def test_what_is_sent_is_received_in_the_same_order(sizes):
    chain, actions = lower(*sizes)
    device_of = {place: device for device in actions for place in chain.places_of_device(device)}
    sent, received = {}, {}
    for device, own in actions.items():
        for place, kind, micro_batch in own:
            step = 1 if kind.endswith("_F") else -1
            if kind.startswith("SEND"):
                pair = (device, device_of[place + step])
                sent.setdefault(pair, []).append((place + step, kind[-1], micro_batch))
            elif kind.startswith("RECV"):
                pair = (device_of[place - step], device)
                received.setdefault(pair, []).append((place, kind[-1], micro_batch))
    assert sent == received
    transfers = 2 * chain.micro_batches * chain.streams * (chain.stages - 1)
    inside_a_device = 2 * chain.micro_batches * (sizes[0] == "dualpipev")  # the bottom of the V
    assert sum(map(len, sent.values())) == transfers - inside_a_device


@pytest.mark.parametrize("sizes", SIZES)
def test_a_device_has_the_losses_that_torch_asks_it_for(sizes):
    """torch keeps one list of losses a device, and refuses any backward whose micro-batch is behind its end, that of
    another stage too."""
    chain, actions = lower(*sizes)
    for own in actions.values():
        losses = 0
        for place, kind, micro_batch in own:
            if kind == "F" and place % chain.stages == chain.stages - 1:
                assert micro_batch == losses
                losses += 1
            elif kind in ("B", "I") and losses:
                assert micro_batch < losses
