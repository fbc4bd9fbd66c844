"""A forward and a backward at once: each computes while the other's tokens travel to and from their experts.

DeepSeek-V3 report, section 3.2.1, figure 4. The two take turns, in two threads of which one runs at a time: whoever
would have to wait for an all-to-all hands over first, and waits when it is its turn again. So every process does the
same exchanges in the same order, as one process group demands, and the host's one stream of arithmetic is never split.
What travels meanwhile is carried by the backend's own threads (gloo) or stream.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Condition

from torch.distributed.pipelining.schedules import _Action, _PipelineContext, _wait_batch_p2p

from r1lab.parallel.all_to_all import meanwhile


class OverlappedSlots:
    """Runs OVERLAP_F_B for torch's pipeline runtime; give it to `register_custom_function`."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="backward")

    def __call__(self, action: _Action, context: _PipelineContext) -> None:
        """What the runtime does for F and then for B, but in turns."""
        runtime = context.schedule_ref
        (f_place, _, f_micro_batch, _), (b_place, _, b_micro_batch, _) = action.sub_actions
        places = {place.stage_index: place for place in runtime._stages}
        _wait_batch_p2p(runtime.fwd_recv_ops.pop((f_place, f_micro_batch), []))
        _wait_batch_p2p(runtime.bwd_recv_ops.pop((b_place, b_micro_batch), []))
        loss = runtime._maybe_get_loss(places[b_place], b_micro_batch)
        runtime.backward_counter[b_place] += 1
        is_last_backward = runtime.backward_counter[b_place] == runtime._n_microbatches

        def forward() -> None:
            place = places[f_place]
            output = place.forward_one_chunk(
                f_micro_batch,
                context.arg_mbs[f_micro_batch],
                context.kwarg_mbs[f_micro_batch],
                save_forward_output=False,
            )
            runtime._maybe_compute_loss(place, output, context.target_mbs, f_micro_batch)
            if f_place + 1 in places:
                places[f_place + 1].set_local_fwd_input(output, f_micro_batch)

        def backward() -> None:
            place = places[b_place]
            place.backward_one_chunk(b_micro_batch, loss=loss, last_backward=is_last_backward)
            if b_place - 1 in places:
                places[b_place - 1].set_local_bwd_input(place.get_local_bwd_output(b_micro_batch), b_micro_batch)

        take_turns(forward, backward, self._thread)


def take_turns(first: Callable[[], None], second: Callable[[], None], thread: ThreadPoolExecutor) -> None:
    """Runs `first` here and `second` in the thread, one at a time, changing at every wait for an exchange.

    Returns when both are done; when one fails the other goes on alone, and the failure is raised then.
    """
    turns = _Turns()

    def run_second() -> None:
        turns.await_second()
        try:
            second()
        finally:
            turns.leave()

    with meanwhile(turns.hand_over):
        future = thread.submit(run_second)
        try:
            first()
        finally:
            turns.leave()
            failure = future.exception()  # waits
    if failure is not None:
        raise failure


class _Turns:
    """Whose turn it is: 0 for the first of two, 1 for the second."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._whose = 0
        self._present = 2

    def await_second(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._whose == 1)

    def hand_over(self) -> None:
        """Lets the other run until it hands over or leaves; nothing when it has left."""
        with self._changed:
            me = self._whose
            if self._present == 2:
                self._whose = 1 - me
                self._changed.notify()
                self._changed.wait_for(lambda: self._whose == me)

    def leave(self) -> None:
        with self._changed:
            self._present -= 1
            self._whose = 1 - self._whose
            self._changed.notify()
