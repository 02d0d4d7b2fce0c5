# SPDX-License-Identifier: BSD-3-Clause
"""Nothing is owned twice: owners, interfaces, queues, flow rules and ports."""

from __future__ import annotations

import errno
import time
from ipaddress import IPv4Address, IPv6Address

import pytest

from lab.ledgers import IF, SPEC, process
from lab.refusals import refused
from mtlshm.net.flow import FlowSpec, FlowType
from mtlshm.net.ledger import Flow, Ledger, PortReference, Queue, State, Use

LAST = 2**64 - 1


# -- owners


def test_owner_is_found_by_its_process(ledger: Ledger) -> None:
    first = ledger.enter(0xABC0, process())
    assert ledger.enter(0xABC0, process()) == first
    assert ledger.enter(0xABC0, process(101)) != first
    assert ledger.enter(0xDEF0, process()) != first
    assert ledger.enter(0xABC0, process()._replace(start_ticks=1)) != first
    assert [owner.id for owner in ledger.owners()][:1] == [first]
    assert ledger.owners()[0].process == process()


def test_any_token_that_a_segment_can_hold_is_kept(ledger: Ledger) -> None:
    ledger.enter(LAST, process())
    assert ledger.owners()[0].token == LAST


def test_the_number_of_an_owner_is_not_used_again(ledger: Ledger) -> None:
    first = ledger.enter(1, process())
    ledger.leave(first)
    assert ledger.settle(first)
    assert ledger.enter(1, process()) > first


def test_leaving_owner_gets_nothing(ledger: Ledger) -> None:
    owner = ledger.enter(1, process())
    ledger.leave(owner)
    for attempt in (
        lambda: ledger.use(owner, IF),
        lambda: ledger.claim_queue(owner, IF, 4),
        lambda: ledger.intend_flow(owner, IF, 1, 1, SPEC),
        lambda: ledger.add_port(owner, IF, 5000),
        lambda: ledger.add_port(99, IF, 5000),
    ):
        with refused(errno.ESRCH):
            attempt()
    assert ledger.state() == State(ledger.owners(), (), (), (), ())
    assert ledger.enter(1, process()) != owner


def test_owner_is_forgotten_once_its_rules_are_gone(ledger: Ledger) -> None:
    owner, other = ledger.enter(1, process()), ledger.enter(2, process())
    assert ledger.claim_queue(owner, IF, 4) == 1
    ledger.intend_flow(owner, IF, 2, 10, SPEC)
    ledger.complete_flow(IF, 10)
    ledger.use(owner, IF)
    for port in (5000, 5001, 5002):
        ledger.add_port(owner, IF, port)
    ledger.add_port(other, IF, 5001)
    ledger.leave(owner)
    assert ledger.last_references(owner) == {IF: (5000, 5002)}
    assert not ledger.settle(owner)
    assert ledger.queues() == (Queue(IF, 2, owner),)  # the rule leads there
    assert ledger.ports(IF) == {5001}
    assert [each.leaving for each in ledger.owners()] == [True, False]
    ledger.forget_flow(IF, 10)
    assert ledger.settle(owner)
    assert ledger.queues() == ()
    assert [each.id for each in ledger.owners()] == [other]
    assert ledger.settle(owner)  # again, after a kill: nothing happens


# -- interfaces


def test_the_first_user_and_the_last_are_told(ledger: Ledger) -> None:
    a, b = ledger.enter(1, process()), ledger.enter(2, process())
    assert ledger.use(a, IF)
    assert not ledger.use(a, IF)
    assert not ledger.use(b, IF)
    assert not ledger.keep(IF)
    assert ledger.uses() == (Use(IF, True, (a, b)),)
    ledger.leave(a)
    assert not ledger.unkeep(IF)
    assert ledger.in_use(IF)
    ledger.leave(b)
    assert not ledger.in_use(IF)
    assert ledger.keep(IF)
    assert ledger.unkeep(IF)


def test_an_interface_that_is_gone_takes_everything_with_it_and_nothing_else(ledger: Ledger) -> None:
    owner = ledger.enter(1, process())
    for ifindex in (IF, IF + 1):
        ledger.use(owner, ifindex)
        ledger.intend_flow(owner, ifindex, ledger.claim_queue(owner, ifindex, 4), 1, SPEC)
        ledger.add_port(owner, ifindex, 5000)
    ledger.keep(IF)
    ledger.forget_interface(IF)
    left = ledger.state()
    assert {each.ifindex for each in (*left.uses, *left.queues, *left.flows, *left.ports)} == {IF + 1}


# -- queues


def test_queues_are_given_once_and_queue_0_never(ledger: Ledger) -> None:
    a, b = ledger.enter(1, process()), ledger.enter(2, process())
    assert [ledger.claim_queue(owner, IF, 4) for owner in (a, b, a)] == [1, 2, 3]
    with refused(errno.ENOSPC):
        ledger.claim_queue(b, IF, 4)
    assert ledger.claim_queue(b, IF + 1, 4) == 1
    with refused(errno.ENOSPC):
        ledger.claim_queue(b, IF + 2, 1)
    ledger.put_queue(b, IF, 2)
    assert ledger.claim_queue(a, IF, 4) == 2


@pytest.mark.parametrize("queue", [0, 1, 3, 65535])
def test_a_queue_can_only_be_given_back_by_its_owner(ledger: Ledger, queue: int) -> None:
    a, b = ledger.enter(1, process()), ledger.enter(2, process())
    ledger.claim_queue(a, IF, 4)
    before = ledger.state()
    with refused(errno.EINVAL):
        ledger.put_queue(b, IF, queue)
    assert ledger.state() == before


def test_a_queue_that_rules_lead_to_is_not_given_back(ledger: Ledger) -> None:
    owner = ledger.enter(1, process())
    ledger.intend_flow(owner, IF, ledger.claim_queue(owner, IF, 4), 5, SPEC)
    ledger.complete_flow(IF, 5)
    with refused(errno.EBUSY):
        ledger.put_queue(owner, IF, 1)
    ledger.forget_flow(IF, 5)
    ledger.put_queue(owner, IF, 1)


# -- flow rules


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        FlowSpec(FlowType.UDP4),
        FlowSpec(FlowType.UDP6, IPv6Address("2001:db8::1"), IPv6Address("ff02::1"), 1, 65535),
        FlowSpec(FlowType.IP4, IPv4Address("192.0.2.1")),
    ],
)
def test_a_rule_is_kept_as_it_was_asked_for(ledger: Ledger, spec: FlowSpec) -> None:
    owner = ledger.enter(1, process())
    ledger.intend_flow(owner, IF, 3, 12, spec)
    assert ledger.flows() == (Flow(IF, 12, 3, owner, spec, False),)
    ledger.complete_flow(IF, 12)
    assert ledger.flows(IF, owner) == (Flow(IF, 12, 3, owner, spec, True),)
    assert ledger.flows(IF + 1) == ledger.flows(owner=owner + 1) == ()


def test_a_queue_that_nobody_holds_comes_with_the_rule_and_goes_if_the_rule_fails(ledger: Ledger) -> None:
    owner = ledger.enter(1, process())
    ledger.intend_flow(owner, IF, 3, 12, SPEC)
    assert ledger.queues() == (Queue(IF, 3, owner),)
    ledger.forget_flow(IF, 12)
    assert ledger.queues() == ()


def test_a_queue_that_came_with_a_rule_stays_after_it(ledger: Ledger) -> None:
    owner = ledger.enter(1, process())
    ledger.intend_flow(owner, IF, 3, 12, SPEC)
    ledger.complete_flow(IF, 12)
    ledger.forget_flow(IF, 12)
    assert ledger.queues() == (Queue(IF, 3, owner),)


def test_queue_stays_while_another_rule_leads_to_it(ledger: Ledger) -> None:
    owner = ledger.enter(1, process())
    ledger.intend_flow(owner, IF, 3, 12, SPEC)
    ledger.intend_flow(owner, IF, 3, 13, SPEC)
    ledger.complete_flow(IF, 13)
    ledger.forget_flow(IF, 12)
    assert ledger.queues() == (Queue(IF, 3, owner),)


def test_a_rule_to_somebody_elses_queue_is_refused(ledger: Ledger) -> None:
    a, b = ledger.enter(1, process()), ledger.enter(2, process())
    ledger.claim_queue(a, IF, 4)
    with refused(errno.EBUSY):
        ledger.intend_flow(b, IF, 1, 12, SPEC)
    assert ledger.flows() == ()


# -- ports


def test_references_are_counted_per_owner_and_the_first_and_last_told(ledger: Ledger) -> None:
    a, b = ledger.enter(1, process()), ledger.enter(2, process())
    assert [ledger.add_port(owner, IF, 5000) for owner in (a, a, b)] == [True, False, False]
    assert ledger.state().ports == (PortReference(IF, 5000, a, 2), PortReference(IF, 5000, b, 1))
    assert [ledger.drop_port(owner, IF, 5000) for owner in (a, b, a)] == [False, False, True]
    assert ledger.ports(IF) == frozenset()


def test_del_without_add_is_an_error_that_changes_nothing(ledger: Ledger) -> None:
    a, b = ledger.enter(1, process()), ledger.enter(2, process())
    ledger.add_port(a, IF, 5000)
    before = ledger.state()
    for owner, ifindex, port in ((b, IF, 5000), (a, IF, 5001), (a, IF + 1, 5000), (99, IF, 5000)):
        with refused(errno.EINVAL):
            ledger.drop_port(owner, ifindex, port)
    assert ledger.state() == before


def test_all_ports_and_no_others(ledger: Ledger) -> None:
    owner = ledger.enter(1, process())
    start = time.perf_counter()
    for port in range(65536):
        assert ledger.add_port(owner, IF, port)
    print(f"65,536 ADDs: {time.perf_counter() - start:.2f} s")
    assert ledger.ports(IF) == set(range(65536))
    start = time.perf_counter()
    ledger.leave(owner)
    assert ledger.last_references(owner) == {IF: tuple(range(65536))}
    assert ledger.settle(owner)
    print(f"dropped: {time.perf_counter() - start:.2f} s")
    assert ledger.ports(IF) == frozenset()


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_there_cannot_be_is_refused(ledger: Ledger, port: int) -> None:
    owner = ledger.enter(1, process())
    with pytest.raises(OSError, match="CHECK"):
        ledger.add_port(owner, IF, port)
