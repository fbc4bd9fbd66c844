"""An all-to-all of rows that is started now and finished later, forward and backward.

`torch.distributed`'s own differentiable all-to-all starts its backward exchange and waits for it in one step, so
nothing can be computed beside it. Here the backward of `finish` starts the exchange of the gradients and the backward
of `start` waits for it: whatever the forward computed between the two, the backward computes between them as well
(autograd runs newer operations first), as in DeepSeek-V3 report, section 3.2.1, figure 4.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable
from torch.profiler import record_function

from r1lab.parallel.payload import Payload

NATIVE = Payload("native")

_meanwhile: list[Callable[[], None]] = []


@contextmanager
def meanwhile(compute: Callable[[], None]) -> Iterator[None]:
    """Within it, `compute` is called before every wait for an exchange, whichever thread waits: do there what has
    nothing to do with the waiting (`r1lab.parallel.overlap`)."""
    _meanwhile.append(compute)
    try:
        yield
    finally:
        _meanwhile.remove(compute)


def _do_meanwhile() -> None:
    for compute in _meanwhile:
        compute()


class ExpertGroupError(RuntimeError):
    """An exchange failed: a process of the expert group ended, hung or does something else."""


@dataclass(slots=True)
class Route:
    """How many rows go from whom to whom, and the way."""

    group: dist.ProcessGroup
    sent: Sequence[int]
    """Rows to each member of the group, in the order in which they lie in the tensor."""
    received: Sequence[int]
    """Rows from each member."""
    name: str = "exchange"
    """For error messages and traces."""

    def back(self) -> "Route":
        """The way that answers take."""
        return Route(self.group, self.received, self.sent, self.name)


@dataclass(slots=True)
class _Flight:
    """Bytes on their way."""

    route: Route
    payload: Payload
    shape: tuple[int, int]
    """Of what lands."""
    dtype: torch.dtype
    work: dist.Work
    buffers: tuple[torch.Tensor, torch.Tensor]
    """Incoming and outgoing; both must live until the exchange is over."""
    started: float

    def land(self) -> torch.Tensor:
        _do_meanwhile()
        with record_function(f"r1lab/wait for {self.route.name}"), _naming_failures(self.route, self.started):
            self.work.wait()
        return self.payload.unpack(self.buffers[0], self.shape[1], self.dtype)


def _take_off(x_ND: torch.Tensor, route: Route, payload: Payload) -> _Flight:
    outgoing = payload.pack(x_ND)
    incoming = outgoing.new_empty(sum(route.received), outgoing.shape[1])
    started = time.monotonic()
    with record_function(f"r1lab/start {route.name}"), _naming_failures(route, started):
        work = dist.all_to_all_single(
            incoming, outgoing, list(route.received), list(route.sent), group=route.group, async_op=True
        )
    shape = (len(incoming), x_ND.shape[1])
    return _Flight(route, payload, shape, x_ND.dtype, work, (incoming, outgoing), started)


@dataclass(slots=True)
class _Exchange:
    """One all-to-all of the forward, and the one that brings its gradients back."""

    route: Route
    payload: Payload
    back_payload: Payload
    flight: _Flight | None = None
    flight_back: _Flight | None = None


class Started(NamedTuple):
    """An all-to-all that has been started."""

    ticket: torch.Tensor
    """Stands for the rows in autograd's graph until they are here; holds no memory."""
    exchange: _Exchange

    def finish(self) -> torch.Tensor:
        """The rows received, [sum(received), D], sorted by sender. Raises ExpertGroupError when the group is broken."""
        return _Finish.apply(self.ticket, self.exchange)


def start_all_to_all(
    x_ND: torch.Tensor, route: Route, payload: Payload = NATIVE, back_payload: Payload = NATIVE
) -> Started:
    """Sends the rows of x [N, D], sorted by receiver, off; `back_payload` is the format of their gradients.

    Raises ExpertGroupError when the group is broken.
    """
    exchange = _Exchange(route, payload, back_payload)
    return Started(_Start.apply(x_ND, exchange), exchange)


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_ND, exchange):
        ctx.exchange = exchange
        exchange.flight = _take_off(x_ND, exchange.route, exchange.payload)
        return x_ND.new_zeros(()).expand(exchange.flight.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, _):
        flight, ctx.exchange.flight_back = ctx.exchange.flight_back, None
        return flight.land(), None


class _Finish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, ticket, exchange):
        ctx.exchange = exchange
        flight, exchange.flight = exchange.flight, None
        return flight.land()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_ND):
        exchange = ctx.exchange
        exchange.flight_back = _take_off(grad_ND, exchange.route.back(), exchange.back_payload)
        return grad_ND.new_zeros(()).expand(grad_ND.shape), None


def exchange_counts(counts_WC: torch.Tensor, group: dist.ProcessGroup, name: str) -> torch.Tensor:
    """int64 [members, C], row w for member w -> what each member has for this process. Waits; no gradient.

    Raises ExpertGroupError when the group is broken.
    """
    received_WC = torch.empty_like(counts_WC)
    route, started = Route(group, (), (), name), time.monotonic()
    with _naming_failures(route, started):
        work = dist.all_to_all_single(received_WC, counts_WC, group=group, async_op=True)
    _do_meanwhile()
    with _naming_failures(route, started):
        work.wait()
    return received_WC


@contextmanager
def _naming_failures(route: Route, started: float) -> Iterator[None]:
    """Turns the backend's error, which speaks of sockets, into one that says what to do."""
    try:
        yield
    except RuntimeError as error:
        rank = dist.get_rank()
        others = [other for other in dist.get_process_group_ranks(route.group) if other != rank]
        cause = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        raise ExpertGroupError(
            f"rank {rank}: {route.name} failed after {time.monotonic() - started:.1f} s: one of the ranks {others} of "
            f"its expert group has ended, or has not answered within the group's timeout ({cause}). Look for that "
            "rank's own error; then start the job again from its last checkpoint"
        ) from error
