# SPDX-License-Identifier: BSD-3-Clause
"""tenancy.c and lease.c: what a parent claimed is used by its tenants and comes back to it."""

from __future__ import annotations

from collections.abc import Callable
from errno import EALREADY, EBUSY, EDOM, EINVAL, ELOOP, EPERM, ERANGE, ESRCH
from pathlib import Path

import pytest

from lab.damages import poke
from lab.processes import Puppet, held, look
from mtlshm import Host, Kind, LcoreType

Start = Callable[..., Puppet]

LEASE = LcoreType.LEASE


def family(puppet: Start, *lcores: int) -> tuple[Puppet, Callable[[], Puppet]]:
    """A parent that holds lcores for tenants, and how to start those."""
    parent = puppet()
    for lcore in lcores:
        assert parent.claim(lcore, LEASE) == 0

    return parent, lambda: tenant_of(puppet, parent)


def tenant_of(puppet: Start, parent: Puppet) -> Puppet:
    new = puppet(ready=False)
    assert new.open(1) == 0
    assert new.register_under(parent.owner()) == 0
    return new


def owners(segment: str) -> dict[int, int]:
    return {lcore.number: lcore.owner.owner for lcore in look(segment).lcores}


def test_tenant_claims_from_its_parent_only(puppet: Start, segment: str) -> None:
    parent, start = family(puppet, 3, 4)
    assert parent.claim(5) == 0
    stranger = puppet()
    assert stranger.claim(6) == 0
    tenant = start()
    assert tenant.claim(3) == 0
    assert tenant.claim(3) == -EALREADY
    assert tenant.claim(5) == -EBUSY  # the parent uses it itself
    assert tenant.claim(6) == -EBUSY
    assert tenant.claim(7) == -EDOM  # free for others
    assert stranger.claim(3) == stranger.claim(4) == -EBUSY
    assert owners(segment) == {3: tenant.owner(), 4: parent.owner(), 5: parent.owner(), 6: stranger.owner()}


def test_two_tenants_never_get_the_same(puppet: Start) -> None:
    _, start = family(puppet, 3)
    first, second = start(), start()
    assert first.claim(3) == 0
    assert second.claim(3) == -EBUSY
    assert second.release(3) == -EPERM
    assert first.release(3) == 0
    assert second.claim(3) == 0


@pytest.mark.parametrize("end", ["release", "release_all", "unregister", "kill", "evict"])
def test_tenants_lcores_go_back_to_its_parent(puppet: Start, segment: str, end: str) -> None:
    parent, start = family(puppet, 3)
    tenant, stranger = start(), puppet()
    assert tenant.claim(3) == 0
    match end:
        case "release":
            assert tenant.release(3) == 0
        case "release_all":
            assert tenant.release_all() == 1
        case "unregister":
            assert tenant.unregister() == 0
        case "evict":
            assert stranger.evict(3, tenant.owner()) == 0
        case "kill":
            tenant.kill()
            assert stranger.claim(3) == -EBUSY  # a stranger who wants it collects, and gets nothing
    assert owners(segment) == {3: parent.owner()}
    assert start().claim(3) == 0


def test_what_a_tenant_gives_back_is_as_old_as_its_parent(puppet: Start, segment: str) -> None:
    _, start = family(puppet, 3)
    tenant = start()
    assert tenant.claim(3) == tenant.release(3) == 0
    (lcore,) = look(segment).lcores
    assert lcore.age == lcore.owner.age  # in seconds and fractions; that of a claim has whole seconds


def test_sibling_takes_a_dead_tenants_lcore(puppet: Start, segment: str) -> None:
    _, start = family(puppet, 3)
    dead, sibling = start(), start()
    assert dead.claim(3) == 0
    dead.kill()
    assert sibling.claim(3) == 0
    assert owners(segment) == {3: sibling.owner()}


def test_policy_chooses_among_the_parents_lcores(puppet: Start, segment: str) -> None:
    parent, start = family(puppet, 0, 1)
    first, second = start(), start()
    assert first.claim_many(3) == -ERANGE
    assert first.claim_many(2) == 0
    assert second.claim_many(1) == -EBUSY
    first.kill()
    assert second.claim_many(2) == 0
    assert owners(segment) == {0: second.owner(), 1: second.owner()}
    assert second.release_all() == 2
    assert owners(segment) == {0: parent.owner(), 1: parent.owner()}


def test_what_tenants_of_tenants_have_is_busy_for_a_claim_by_policy(puppet: Start) -> None:
    _, start = family(puppet, 0, 1)
    middle, sibling = start(), start()
    assert middle.claim(0, LEASE) == 0
    assert tenant_of(puppet, middle).claim(0) == 0
    assert sibling.claim_many(2) == -EBUSY
    assert sibling.claim_many(3) == -ERANGE


def test_tenants_keep_their_lcores_after_a_root_parents_end(puppet: Start, segment: str) -> None:
    parent, start = family(puppet, 3, 4)
    tenant, stranger = start(), puppet()
    assert tenant.claim(3) == 0
    parent.kill()
    assert stranger.claim(4) == 0
    assert stranger.claim(3) == -EBUSY
    assert tenant.claim(5) == -EDOM  # it does not become parentless
    assert tenant.release(3) == 0
    assert stranger.claim(3) == 0
    assert owners(segment) == {3: stranger.owner(), 4: stranger.owner()}


def grandchildren(puppet: Start) -> tuple[Puppet, Puppet, Puppet]:
    """Root, middle and leaf, which uses lcore 3 of 3 and 4."""
    root, start = family(puppet, 3, 4)
    middle = start()
    assert middle.claim(3, LEASE) == middle.claim(4, LEASE) == 0
    leaf = tenant_of(puppet, middle)
    assert leaf.claim(3) == 0
    return root, middle, leaf


@pytest.mark.parametrize("end", ["kill", "unregister"])
def test_a_parent_with_a_parent_is_kept_until_its_tenants_are_gone(puppet: Start, segment: str, end: str) -> None:
    root, middle, leaf = grandchildren(puppet)
    stranger = puppet()
    kept = middle.owner()
    getattr(middle, end)()
    stranger.sweep()
    assert owners(segment) == {3: leaf.owner(), 4: root.owner()}  # what it had itself went up at once
    assert stranger.parent(leaf.owner()) == kept
    assert stranger.parent(kept) == root.owner()
    assert leaf.release(3) == 0
    assert stranger.claim(3) == -EBUSY
    leaf.kill()
    stranger.sweep()
    assert owners(segment) == {3: root.owner(), 4: root.owner()}
    assert kept not in {info.owner for info in look(segment).instances}


def test_parent_and_tenant_that_die_together_leave_nothing_outside_the_family(puppet: Start, segment: str) -> None:
    root, middle, leaf = grandchildren(puppet)
    stranger = puppet()
    middle.kill()
    leaf.kill()
    assert stranger.claim(3) == -EBUSY
    assert stranger.claim(4) == -EBUSY
    stranger.sweep()
    assert owners(segment) == {3: root.owner(), 4: root.owner()}
    assert {info.owner for info in look(segment).instances} == {root.owner(), stranger.owner()}


def test_sweep_counts_parents_that_were_kept_for_the_dead(puppet: Start, segment: str) -> None:
    root, middle, leaf = grandchildren(puppet)
    stranger = puppet()
    middle.kill()
    leaf.kill()
    assert stranger.sweep() == 2
    assert {info.owner for info in look(segment).instances} == {root.owner(), stranger.owner()}


def test_a_newcomer_does_not_take_a_kept_record(puppet: Start, segment: str) -> None:
    _, middle, leaf = grandchildren(puppet)
    kept = middle.owner()
    middle.kill()
    newcomer = puppet()
    assert newcomer.register_many(256) == 256 - 4  # it, root, kept and leaf are there
    assert kept in {info.owner for info in look(segment).instances}
    assert leaf.release(3) == 0


def test_nobody_becomes_the_tenant_of_one_that_is_dead_or_unknown(puppet: Start, segment: str) -> None:
    _, middle, leaf = grandchildren(puppet)
    late = puppet(ready=False)
    late.open(1)
    dead = middle.owner()
    middle.kill()
    assert late.register_under(dead) == -ESRCH
    late.sweep()
    assert late.register_under(dead) == -ESRCH  # kept
    leaf.kill()
    late.sweep()
    assert late.register_under(dead) == -ESRCH  # gone
    assert late.register_under(0xFFFFFFFFFFF00) == -ESRCH
    assert late.register() == 0
    assert len(look(segment).instances) == 2


def test_a_chain_has_at_most_eight_members(puppet: Start) -> None:
    last = puppet()
    for _ in range(7):
        last = tenant_of(puppet, last)
    late = puppet(ready=False)
    late.open(1)
    assert late.register_under(last.owner()) == -ELOOP


@pytest.mark.parametrize("damage", ["itself", "a circle", "nonsense"])
def test_a_damaged_parent_harms_nobody(puppet: Start, segment: str, damage: str) -> None:
    root, middle, leaf = grandchildren(puppet)
    value = {"itself": middle.owner(), "a circle": leaf.owner(), "nonsense": 0xABCDEF0123456789}[damage]
    poke(segment, "instances", middle.owner() >> 8 & 0xFFF, "parent", value=value)
    stranger = puppet()
    assert leaf.release(3) == 0
    middle.kill()
    leaf.kill()
    stranger.sweep()
    stranger.sweep()
    assert held(segment) <= {3, 4}
    assert root.claim(5) == 0


# --- the lease in the environment ------------------------------------------------------------------------


def test_the_lease_is_inherited_through_the_environment(
    puppet: Start, segment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, _ = family(puppet, 3)
    with Host(segment, create=False) as host:
        monkeypatch.setenv("MTLSHM_LEASE", host.lease(parent.owner()))
    tenant = puppet(ready=False)
    tenant.open(1)
    assert tenant.register_inheriting() == 0
    assert tenant.parent(tenant.owner()) == parent.owner()
    assert tenant.claim(4) == -EDOM
    assert tenant.claim(3) == 0


@pytest.mark.parametrize(
    ("lease", "refusal"),
    [
        ("", 0),
        ("x", EINVAL),
        ("100000000", EINVAL),
        ("100000001@{created:x}", EINVAL),
        ("0@{created:x}", EINVAL),
        ("-100000000@{created:x}", EINVAL),
        ("0x{owner:x}@{created:x}", EINVAL),
        ("{owner:x}@{created:x} ", EINVAL),
        ("00000000000000000{owner:x}@{created:x}", EINVAL),
        ("{owner:x}@1", ESRCH),
        ("fffff{owner:x}@{created:x}", ESRCH),
    ],
)
def test_a_lease_that_leads_nowhere_is_an_error_and_not_a_claim_elsewhere(
    puppet: Start, segment: str, monkeypatch: pytest.MonkeyPatch, lease: str, refusal: int
) -> None:
    parent = puppet()
    with Host(segment, create=False) as host:
        created = int(host.lease(parent.owner()).split("@")[1], 16)
    monkeypatch.setenv("MTLSHM_LEASE", lease.format(owner=parent.owner(), created=created))
    late = puppet(ready=False)
    late.open(1)
    assert late.register_inheriting() == -refusal


# --- instances that the daemon keeps for others ----------------------------------------------------------


def test_a_daemon_hands_a_process_s_own_lcores_to_its_libmtl(puppet: Start, segment: str) -> None:
    process, keeper, stranger = puppet(), puppet(), puppet()
    assert process.claim(3) == process.claim(4) == 0
    assert keeper.register_proxy(Kind.SOCKET, process.owner()) == 0
    assert keeper.take(3, process.owner()) == 0
    assert keeper.take(3, process.owner()) == -ESRCH
    assert process.release(3) == -EPERM  # while libmtl has it
    assert keeper.release(3) == 0
    assert owners(segment) == {3: process.owner(), 4: process.owner()}
    assert process.release(3) == 0  # it came back with another type
    assert stranger.claim(4) == -EBUSY
    assert keeper.take(4, stranger.owner()) == -ESRCH


def test_a_proxied_tenant_that_ends_frees_the_parent_kept_for_it(puppet: Start, segment: str) -> None:
    root, start = family(puppet, 3)
    process, keeper = start(), puppet()
    assert process.claim(3) == 0
    assert keeper.register_proxy(Kind.SOCKET, process.owner()) == 0
    assert keeper.take(3, process.owner()) == 0
    kept = process.owner()
    process.kill()
    keeper.sweep()
    assert kept in {info.owner for info in look(segment).instances}
    assert keeper.unregister() == 0
    assert owners(segment) == {3: root.owner()}
    assert kept not in {info.owner for info in look(segment).instances}


# --- reservations ---------------------------------------------------------------------------------------


def test_a_reservation_outlasts_its_maker_and_is_found_by_its_key(puppet: Start, segment: str, host64: Path) -> None:
    maker = puppet(ready=False, sysfs=host64)
    maker.open(1)
    reservation = maker.reserve("show-1", 2)
    assert reservation > 0
    assert maker.reserve("show-1", 7) == -reservation
    maker.kill()
    stranger = puppet(sysfs=host64)
    stranger.sweep()
    reserved = {lcore for lcore, owner in owners(segment).items() if owner == reservation}
    assert len(reserved) == 2
    assert stranger.reserve("show-1", 2) == -reservation
    assert stranger.reserve("show-2", 1) > 0
    assert all(stranger.claim(lcore) == -EBUSY for lcore in reserved)
    tenant = puppet(ready=False)
    tenant.open(1)
    assert tenant.register_under(reservation) == 0
    assert all(tenant.claim(lcore) == 0 for lcore in reserved)
    tenant.kill()
    stranger.sweep()
    assert {lcore for lcore, owner in owners(segment).items() if owner == reservation} == reserved


def test_tenants_keep_their_lcores_after_a_reservations_end(puppet: Start, segment: str) -> None:
    me = puppet()
    reservation = me.reserve("show", 2)
    first, second = sorted(owners(segment))
    tenant = puppet(ready=False)
    tenant.open(1)
    assert tenant.register_under(reservation) == 0
    assert tenant.claim(first) == 0
    assert me.end(reservation) == 0
    assert me.end(reservation) == -ESRCH
    assert me.claim(second) == 0
    assert me.claim(first) == -EBUSY
    assert tenant.release(first) == 0
    assert me.claim(first) == 0
    assert me.end(me.owner()) == -ESRCH


def test_a_reservation_is_whole_or_not_there(puppet: Start, segment: str) -> None:
    me = puppet()
    size = look(segment).size
    assert me.reserve("too many", size + 1) == 0
    assert me.reserve("", 1) == 0
    assert me.reserve("k" * 64, 1) == 0
    assert [info.owner for info in look(segment).instances] == [me.owner()]
    assert held(segment) == set()
    assert me.reserve("k" * 63, 1) > 0


def test_reservations_are_seen_from_python(segment: str) -> None:
    with Host(segment) as host:
        made = host.reserve("show", 1, label="the show")
        assert not made.found
        again = host.reserve("show", 5)
        assert (again.owner, again.lcores, again.found) == (made.owner, made.lcores, True)
        (info,) = host.snapshot().instances
        assert (info.kind, info.key, info.label, info.parent) == (Kind.RESERVATION, "show", "the show", 0)
        with host.register("tenant", parent=made.owner) as tenant:
            assert tenant.claim_many(1) == made.lcores
            assert host.reservation("show") == again
        host.end(made.owner)
        assert host.reservation("show") is None
