"""The happens-before checker itself, on orders that are right and on orders that are wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from given.order import CPU, Access, Order

MAP, STRIP = Access("map", 0, 100), Access("strip", 0, 50)
HALVES = Access("map", 0, 50), Access("map", 50, 100)


def waited_for(order: Order) -> None:
    order.work("up", [MAP], [STRIP])
    order.wait("main", order.event("up"))
    order.work("main", [STRIP], [])


def read_before_its_upload(order: Order) -> None:
    order.work("up", [MAP], [STRIP])
    order.work("main", [STRIP], [])


def event_that_is_too_early(order: Order) -> None:
    event = order.event("up")
    order.work("up", [MAP], [STRIP])
    order.wait("main", event)
    order.work("main", [STRIP], [])


def overwritten_while_read(order: Order) -> None:
    order.work("main", [STRIP], [])
    order.work("up", [MAP], [STRIP])


def through_the_host(order: Order) -> None:
    order.work("down", [], [MAP])
    order.wait(CPU, order.event("down"))
    order.work("up", [MAP], [STRIP])


def host_reads_too_soon(order: Order) -> None:
    order.work("down", [], [MAP])
    order.work(CPU, [MAP], [])


def two_readers(order: Order) -> None:
    order.work(CPU, [], [MAP])
    order.work("up", [MAP], [])
    order.work("main", [MAP], [])


def one_of_two_readers_is_waited_for(order: Order) -> None:
    two_readers(order)
    order.wait("main", order.event("other"))
    order.work("main", [], [MAP])


def halves_of_a_map(order: Order) -> None:
    order.work("down", [], [HALVES[0]])
    order.work("up", [HALVES[1]], [])


def one_half_is_not_waited_for(order: Order) -> None:
    order.work("down", [], [HALVES[0]])
    event = order.event("down")
    order.work("down", [], [HALVES[1]])
    order.wait("up", event)
    order.work("up", [MAP], [])


def waits_are_passed_on(order: Order) -> None:
    order.work("down", [], [MAP])
    order.wait("main", order.event("down"))
    order.wait("up", order.event("main"))
    order.work("up", [MAP], [])


def freed_while_used(order: Order) -> None:
    order.work("down", [STRIP], [MAP])
    order.free("strip", "main")


def freed_where_the_allocator_knows(order: Order) -> None:
    order.work("down", [STRIP], [MAP])
    order.free("strip", "main", ["down"])


def host_memory_freed_while_used(order: Order) -> None:
    order.work("down", [STRIP], [MAP])
    order.free("map", CPU)


RIGHT = [
    waited_for,
    through_the_host,
    two_readers,
    halves_of_a_map,
    waits_are_passed_on,
    freed_where_the_allocator_knows,
]
WRONG = [
    read_before_its_upload,
    event_that_is_too_early,
    overwritten_while_read,
    host_reads_too_soon,
    one_of_two_readers_is_waited_for,
    one_half_is_not_waited_for,
    freed_while_used,
    host_memory_freed_while_used,
]


@pytest.mark.parametrize("queue", RIGHT)
def test_what_is_in_order_is_no_fault(queue: Callable[[Order], None]) -> None:
    order = Order()
    queue(order)
    assert order.faults == []


@pytest.mark.parametrize("queue", WRONG)
def test_what_is_out_of_order_is_found(queue: Callable[[Order], None]) -> None:
    order = Order()
    queue(order)
    assert len(order.faults) == 1, order.faults
