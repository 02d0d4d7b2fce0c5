# SPDX-License-Identifier: BSD-3-Clause
"""What the host looks like, and which lcores a claim of several gets."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import accumulate, product
from pathlib import Path

import pytest

from lab.machines import ALL, LARGEST, MACHINES, TWO_SOCKETS, check_topology
from lab.processes import Puppet, held, look, namespaces
from lab.refusals import refusal
from lab.sysfs import Machine
from mtlshm import CpuSet, Host, Instance, MtlshmError, Smt

Start = Callable[..., Puppet]


@pytest.fixture
def host(segment: str, tmp_path: Path) -> Iterator[Callable[[Machine], Host]]:
    """Opens the test's segment as one of a made-up machine."""
    with ExitStack() as stack:
        yield lambda machine: stack.enter_context(Host(segment, sysfs=machine.write(tmp_path / "sys")))


@pytest.fixture
def claimant(host: Callable[[Machine], Host]) -> Callable[..., Instance]:
    """An instance on a made-up machine, on which somebody else holds the busy CPUs."""
    everybody: list[Instance] = []  # who is forgotten is unregistered

    def register(machine: Machine, *, busy: Iterable[int] = (), allowed: Iterable[int] = ALL) -> Instance:
        opened = host(machine)
        everybody.append(somebody := opened.register("somebody", cpus=ALL))
        occupy(somebody, busy)
        return opened.register("claimant", cpus=allowed)

    return register


def occupy(somebody: Instance, cpus: Iterable[int]) -> None:
    for cpu in cpus:
        somebody.claim(cpu)


def claim_refusal(instance: Instance, want: int, **policy: object) -> int:
    """The errno of a claim that is refused and leaves nothing behind."""
    number = refusal(instance.claim_many, want, **policy)
    assert instance.release_all() == 0
    return number


# Which CPUs an instance may have


@pytest.fixture
def affinity() -> Iterator[set[int]]:
    """This thread's affinity mask, put back afterwards."""
    mask = os.sched_getaffinity(0)
    yield mask
    os.sched_setaffinity(0, mask)


def test_an_instance_stays_inside_its_affinity_mask_of_the_moment(segment: str, affinity: set[int]) -> None:
    last = max(affinity & ALL)
    os.sched_setaffinity(0, {last})
    with Host(segment) as host, host.register() as me:
        assert me.claim_many(1) == {last}
        assert me.release_all() == 1
        if len(affinity) > 1:
            assert claim_refusal(me, 2) == errno.ERANGE
            assert refusal(me.claim, min(affinity)) == errno.EDOM
        os.sched_setaffinity(0, affinity)
        assert me.claim_many(len(affinity & ALL)) == affinity & ALL


def seeing(sysfs: str, tmp_path: Path, content: str = "") -> tuple[str, ...]:
    """The prefix of a command that sees this in place of a file or directory of sysfs, as in a container."""
    file = tmp_path / "content"
    file.write_text(content)
    mount = f"mount --bind {file} {sysfs}" if content else f"mount -t tmpfs none {sysfs}"
    return (*namespaces("mount"), "sh", "-c", f'{mount} && exec "$@"', "sh")


@pytest.mark.parametrize("content", ["0\n", "nonsense\n", "0-4095\n"])
def test_the_affinity_mask_is_believed_over_what_a_container_shows(
    puppet: Start, segment: str, tmp_path: Path, affinity: set[int], content: str
) -> None:
    """lxcfs renumbers the CPUs that it shows as online."""
    last = max(affinity & ALL)
    os.sched_setaffinity(0, {last})
    inside = puppet(prefix=seeing("/sys/devices/system/cpu/online", tmp_path, content), ready=False)
    os.sched_setaffinity(0, affinity)
    assert inside.open(1) == 0
    for register in inside.register_masked, inside.register:
        assert register() == 0
        assert inside.claim_many(1) == 0
        if register == inside.register_masked:
            assert held(segment) == {last}
        assert inside.unregister() == 0


def test_another_thread_may_bring_along_another_mask(
    puppet: Start, segment: str, tmp_path: Path, affinity: set[int]
) -> None:
    inside = puppet(prefix=seeing("/sys/devices/system/cpu/online", tmp_path, "0\n"), ready=False)
    assert (inside.open(1), inside.register_masked()) == (0, 0)
    for cpu in sorted(cpu for cpu in affinity if cpu < 63):
        assert inside.affinity(1 << cpu) == 0
        assert inside.claim_many(1) == 0
        assert held(segment) == {cpu}
        assert inside.release_all() == 1


@pytest.mark.parametrize("hidden", ["/sys", "/sys/devices/system"])
def test_without_sysfs_there_are_the_cpus_of_the_mask_on_one_node(
    puppet: Start, segment: str, tmp_path: Path, affinity: set[int], hidden: str
) -> None:
    inside = puppet(prefix=seeing(hidden, tmp_path), ready=False)
    assert (inside.open(1), inside.register_masked()) == (0, 0)
    assert inside.claim_many(len(affinity)) == 0
    assert held(segment) == affinity
    assert inside.claim(1023) == -errno.EDOM
    assert inside.claim_many(1) == -errno.EBUSY
    assert inside.claim_many(len(affinity) + 1) == -errno.ERANGE
    assert look(segment).size == 1024, "how many others can see is not known here"
    inside.release_all()
    assert inside.register() == 0
    assert inside.claim_many(len(affinity)) == 0
    assert held(segment) == affinity


def test_without_sysfs_the_topology_is_flat(tmp_path: Path, affinity: set[int]) -> None:
    code = "from mtlshm import Topology; t = Topology.read(); print(sorted(t.online), sorted(t.nodes), len(t.cpus))"
    command = [*seeing("/sys", tmp_path), sys.executable, "-c", code]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert said == f"{sorted(affinity)} [0] {len(affinity)}\n"


def test_an_lcore_of_no_online_cpu_is_refused(claimant: Callable[..., Instance]) -> None:
    machine = Machine(cores=6, skip=frozenset({2}), offline=frozenset({4}))
    me = claimant(machine, allowed={0, 1})
    assert refusal(me.claim, 2) == errno.ENODEV  # a hole
    assert refusal(me.claim, 4) == errno.ENODEV  # offline
    assert refusal(me.claim, 7) == errno.ENODEV  # absent
    assert refusal(me.claim, 3) == errno.EDOM
    assert refusal(me.claim, 1024) == errno.ERANGE


def test_only_allowed_cpus_are_taken(claimant: Callable[..., Instance]) -> None:
    allowed = {1, 2, 8, 17, 30, 31}
    me = claimant(TWO_SOCKETS, allowed=allowed | {32, 1023})
    assert me.claim_many(6) == allowed


def test_offline_cpus_and_holes_are_never_taken(claimant: Callable[..., Instance]) -> None:
    machine = Machine(sockets=2, cores=4, threads=2, skip=frozenset({3, 64}), offline=frozenset({0, 10, 11}))
    me = claimant(machine)
    assert me.claim_many(13) == {cpu.number for cpu in machine.online}


# How many


def test_the_only_cpu_can_be_had_in_every_way(claimant: Callable[..., Instance]) -> None:
    me = claimant(Machine(cores=1))
    for smt, node in product(Smt, (None, 0)):
        assert me.claim_many(1, smt=smt, node=node) == {0}
        assert refusal(me.claim, 0) == errno.EALREADY
        assert me.release_all() == 1
    assert claim_refusal(me, 2) == errno.ERANGE


def test_all_of_1024_cpus_can_be_seen_and_had(host: Callable[[Machine], Host]) -> None:
    opened = host(LARGEST)
    check_topology(LARGEST, opened.topology())
    with opened.register(cpus=ALL) as me:
        for smt in Smt.ANY, Smt.WHOLE:
            assert me.claim_many(1024, smt=smt) == ALL
            assert me.release_all() == 1024
        assert me.claim_many(512, smt=Smt.AVOID) == CpuSet(range(1, 513))  # 512 is the sibling of CPU 0
        me.release_all()
        assert claim_refusal(me, 513, smt=Smt.AVOID) == errno.ERANGE
        me.claim(1023)
        with pytest.raises(MtlshmError) as caught:
            me.claim_many(1024)
        assert caught.value.errno == errno.EBUSY


def test_no_lcores_is_an_error(claimant: Callable[..., Instance]) -> None:
    assert claim_refusal(claimant(TWO_SOCKETS), 0) == errno.EINVAL


def test_more_than_exist_can_never_be_had(claimant: Callable[..., Instance]) -> None:
    me = claimant(TWO_SOCKETS)
    for want, policy in (
        (33, {}),
        (1025, {}),
        (17, {"node": 1}),
        (17, {"smt": Smt.AVOID}),
        (9, {"smt": Smt.AVOID, "node": 0}),
        (3, {"smt": Smt.WHOLE}),
        (34, {"smt": Smt.WHOLE}),
    ):
        assert claim_refusal(me, want, **policy) == errno.ERANGE


def test_a_claim_takes_all_or_nothing(claimant: Callable[..., Instance]) -> None:
    me = claimant(TWO_SOCKETS, busy=range(30))
    assert claim_refusal(me, 3) == errno.EBUSY
    assert claim_refusal(me, 2, node=0) == errno.EBUSY
    assert me.claim_many(2) == {30, 31}
    assert me.lcores == {30, 31}


def test_own_lcores_are_not_given_again(claimant: Callable[..., Instance]) -> None:
    me = claimant(Machine(cores=4))
    me.claim(1)
    assert me.claim_many(3) == {0, 2, 3}


# SMT


def test_avoided_siblings_are_those_of_anybody_and_ones_own(claimant: Callable[..., Instance]) -> None:
    me = claimant(Machine(cores=4, threads=2, split=True), busy={5}, allowed=range(7))
    assert me.claim_many(2, smt=Smt.AVOID) == {2, 3}
    assert me.claim_many(1, smt=Smt.AVOID) == {4}
    with pytest.raises(MtlshmError) as caught:
        me.claim_many(1, smt=Smt.AVOID)
    assert caught.value.errno == errno.EBUSY
    assert me.claim_many(3) == {0, 1, 6}


def test_offline_sibling_does_not_count(claimant: Callable[..., Instance]) -> None:
    """Not even if somebody held it when it went offline."""
    me = claimant(Machine(cores=3, threads=2, offline=frozenset({1, 3})), busy={1, 3})
    assert me.claim_many(3, smt=Smt.AVOID) == {0, 2, 4}
    me.release_all()
    assert me.claim_many(2, smt=Smt.WHOLE) == {4, 5}
    assert me.claim_many(2, smt=Smt.WHOLE) == {0, 2}


def test_whole_cores_are_shared_with_nobody(claimant: Callable[..., Instance]) -> None:
    """Neither is part of a core taken of which a sibling is busy, or not allowed."""
    me = claimant(Machine(cores=5, threads=2), busy={3}, allowed=range(9))
    assert me.claim_many(6, smt=Smt.WHOLE) == {0, 1, 4, 5, 6, 7}
    me.release_all()
    assert claim_refusal(me, 8, smt=Smt.WHOLE) == errno.EBUSY
    assert claim_refusal(me, 10, smt=Smt.WHOLE) == errno.ERANGE


def test_whole_cores_of_several_sizes_add_up_larger_first(claimant: Callable[..., Instance]) -> None:
    me = claimant(MACHINES["hybrid"])  # 0-7 are four cores of two, 8-15 eight of one
    for want, lcores in (4, range(2, 6)), (5, {2, 3, 4, 5, 8}), (1, {8}), (16, range(16)), (13, {*range(2, 15)}):
        assert me.claim_many(want, smt=Smt.WHOLE) == set(lcores)
        me.release_all()


def test_whole_cores_that_cannot_add_up_are_refused(claimant: Callable[..., Instance]) -> None:
    me = claimant(Machine(cores=5, threads=(4, 4, 3, 3, 3)))
    possible = {sum(some) for some in product((0, 4), (0, 4), (0, 3), (0, 3), (0, 3))}
    for want in range(1, 19):
        if want in possible:
            assert len(me.claim_many(want, smt=Smt.WHOLE)) == want
            me.release_all()
        else:
            assert claim_refusal(me, want, smt=Smt.WHOLE) == errno.ERANGE


def test_the_fullest_cache_is_not_emptied_if_the_rest_cannot_add_up_then(claimant: Callable[..., Instance]) -> None:
    machine = Machine(cores=7, threads=(1, 2, 2, 1, 2, 2, 2), caches=2, skip=frozenset({0}))
    me = claimant(machine, allowed={*range(2, 11)} - {0})
    shared = [CpuSet(domain) for domain in domains(machine, "cache")]
    lcores = me.claim_many(6, smt=Smt.WHOLE)
    assert len(lcores) == 6
    assert [len(lcores & cache) % 2 for cache in shared] == [0, 0]


def test_siblings_of_somebody_else_s_lcores_come_last(claimant: Callable[..., Instance]) -> None:
    me = claimant(Machine(cores=4, threads=2), busy={2, 6})
    assert me.claim_many(3) == {1, 4, 5}
    assert me.claim_many(1) in ({3}, {7})
    assert me.claim_many(1) <= {3, 7}
    assert me.claim_many(1) == {0}


# What was not claimed


def test_a_choice_claims_nothing(host: Callable[[Machine], Host]) -> None:
    opened = host(TWO_SOCKETS)
    chosen = opened.choose(4, cpus=ALL, smt=Smt.WHOLE)
    assert opened.snapshot().lcores == ()
    with opened.register("claimant", cpus=ALL, parent=0) as me:
        assert me.claim_many(4, smt=Smt.WHOLE) == chosen
        assert not opened.choose(4, cpus=ALL, smt=Smt.WHOLE) & chosen
    with pytest.raises(MtlshmError) as caught:
        opened.choose(33, cpus=ALL)
    assert caught.value.errno == errno.ERANGE


def test_an_interface_has_the_node_of_its_device(host: Callable[[Machine], Host], tmp_path: Path) -> None:
    opened = host(TWO_SOCKETS)
    for name, node in ("eth0", "1\n"), ("eth1", "-1\n"), ("eth2", None), ("eth3", "x\n"):
        device = tmp_path / f"sys/class/net/{name}/device"
        device.mkdir(parents=True)
        if node:
            (device / "numa_node").write_text(node)
    assert opened.interface_node("eth0") == 1
    assert opened.interface_node("eth1") is None
    assert opened.interface_node("eth2") is None
    for name, refused in (
        ("eth9", errno.ENODEV),
        ("", errno.ENODEV),
        ("../net/eth0", errno.ENODEV),
        ("x" * 16, errno.ENODEV),
    ):
        with pytest.raises(MtlshmError) as caught:
            opened.interface_node(name)
        assert caught.value.errno == refused
    with pytest.raises(MtlshmError) as caught:
        opened.interface_node("eth3")
    assert caught.value.errno == errno.EBADMSG


# NUMA nodes and caches


def test_a_claim_can_be_for_one_node(claimant: Callable[..., Instance]) -> None:
    me = claimant(TWO_SOCKETS, busy={16})
    assert me.claim_many(3, node=1) == {18, 19, 20}
    assert me.claim_many(2, node=1, smt=Smt.AVOID) == {22, 24}
    assert me.claim_many(4, node=1, smt=Smt.WHOLE) == {26, 27, 28, 29}
    assert me.claim_many(2, node=1) == {21, 23}  # siblings of one's own
    assert me.claim_many(4, node=1) == {17, 25, 30, 31}
    assert refusal(me.claim_many, 1, node=1) == errno.EBUSY
    assert len(me.claim_many(1, node=1, near=True)) == 1


def test_node_without_cpus_is_refused(claimant: Callable[..., Instance]) -> None:
    me = claimant(Machine(sockets=3, cores=2, offline=frozenset({2, 3})))
    for node in 1, 3, 63, 64, 1023, 1024, 1 << 30, -2:
        assert claim_refusal(me, 1, node=node) == errno.ENXIO
    assert me.claim_many(2, node=2) == {4, 5}


def test_a_claim_stays_in_the_cache_that_it_fills_best(claimant: Callable[..., Instance]) -> None:
    machine = Machine(sockets=2, cores=8, caches=2)  # of four CPUs each
    me = claimant(machine, busy={0, 5, 8, 9})
    assert me.claim_many(2) == {10, 11}
    assert me.claim_many(2) == {1, 2}
    assert me.claim_many(4) == {12, 13, 14, 15}
    assert me.claim_many(3) == {4, 6, 7}


def test_a_tie_goes_to_the_lowest(claimant: Callable[..., Instance]) -> None:
    machine = Machine(cores=8, threads=2, caches=2, split=True)  # 0-3,8-11 and 4-7,12-15
    me = claimant(machine, busy={0, 1, 2, 3, 12, 13, 14, 15})
    assert me.claim_many(3) == {8, 9, 10}


def test_a_claim_stays_in_the_node_that_it_fills_best(claimant: Callable[..., Instance]) -> None:
    machine = Machine(sockets=3, cores=8, caches=4)
    me = claimant(machine, busy={0, 8, 10})
    assert me.claim_many(5) == {12, 13, 14, 15, 9}
    assert me.claim_many(7) == CpuSet(range(1, 8))
    assert me.claim_many(8) == CpuSet(range(16, 24))


def test_a_node_is_filled_from_as_few_caches_as_possible(claimant: Callable[..., Instance]) -> None:
    machine = Machine(cores=16, caches=4)
    me = claimant(machine, busy={0, 4, 5, 8, 9, 10})  # three, two, one and four are left
    assert me.claim_many(5) == {11, 12, 13, 14, 15}
    assert me.claim_many(4) == {1, 2, 3, 6}


def test_a_large_claim_spreads_over_as_few_nodes_as_possible(claimant: Callable[..., Instance]) -> None:
    machine = Machine(sockets=4, cores=4)
    me = claimant(machine, busy={0, 1, 4, 8})  # two, three, three and four are left
    assert me.claim_many(6) == {12, 13, 14, 15, 2, 3}
    assert me.claim_many(4) == {5, 6, 7, 9}


def test_a_cache_of_several_nodes_does_not_make_them_one(claimant: Callable[..., Instance]) -> None:
    machine = Machine(cores=8, nodes=2, split=True, threads=2)  # 0-3,8-11 and 4-7,12-15
    me = claimant(machine, busy={0, 1, 8})
    assert me.claim_many(6) == {4, 5, 6, 7, 12, 13}
    assert me.claim_many(6) == {2, 3, 10, 11, 14, 15}
    assert me.claim_many(1) == {9}  # its sibling is somebody else's


# Isolated CPUs


def test_isolated_cpus_are_taken_if_there_are_enough(claimant: Callable[..., Instance]) -> None:
    machine = Machine(sockets=2, cores=4, isolated=frozenset({3, 6, 7}))
    me = claimant(machine)
    assert me.claim_many(2) == {6, 7}
    me.release_all()
    assert me.claim_many(3) == {3, 6, 7}
    assert me.claim_many(1) == {1}
    assert me.claim_many(3) == {2, 4, 5}
    assert me.claim_many(1) == {0}  # CPU 0 is the last


def test_too_few_isolated_cpus_do_not_scatter_a_claim(claimant: Callable[..., Instance]) -> None:
    machine = Machine(sockets=2, cores=4, isolated=frozenset({3, 6, 7}))
    assert claimant(machine, busy={0}).claim_many(4) == {4, 5, 6, 7}


def test_isolated_cpus_come_first_within_a_domain(claimant: Callable[..., Instance]) -> None:
    machine = Machine(cores=8, threads=2, isolated=frozenset({6, 13}))
    me = claimant(machine)
    assert me.claim_many(4, smt=Smt.AVOID) == {1, 2, 6, 13}
    me.release_all()
    assert me.claim_many(3) == {1, 6, 13}


def test_a_core_isolated_in_part_is_no_isolated_core(claimant: Callable[..., Instance]) -> None:
    me = claimant(Machine(cores=4, threads=2, isolated=frozenset({1, 3, 6, 7})))
    assert me.claim_many(2, smt=Smt.WHOLE) == {6, 7}
    assert me.claim_many(2, smt=Smt.WHOLE) == {2, 3}


# All of it, against a plain reckoning


def random_machine(rng: random.Random) -> Machine:
    sockets, cores = rng.choice([1, 1, 2, 3]), rng.choice([1, 2, 4, 6])
    threads = rng.choice([1, 2, 2, 4, tuple(rng.choice([1, 2, 3]) for _ in range(cores))])
    cpus = sockets * cores * 4
    return Machine(
        sockets=sockets,
        cores=cores,
        threads=threads,
        nodes=rng.choice([0, 1, 1, 2]),
        caches=rng.choice([0, 1, 2, 3]),
        split=rng.random() < 0.5,
        skip=frozenset(rng.sample(range(cpus), rng.choice([0, 0, cpus // 8]))),
        offline=frozenset(rng.sample(range(1, cpus), rng.choice([0, 0, cpus // 8, cpus // 3]))),
        isolated=frozenset(rng.sample(range(cpus), rng.choice([0, 0, cpus // 4, cpus // 2]))),
    )


class Reckoning:
    """What a claim could be made of: the CPUs that can be had, in the parts that are taken whole."""

    def __init__(self, machine: Machine, usable: Iterable[int], busy: Iterable[int], smt: Smt) -> None:
        self.smt = smt
        free = CpuSet(usable) - busy
        cores = {machine.alike(cpu, "core") for cpu in machine.online}
        if smt is Smt.ANY:
            parts = [{cpu} for cpu in free]
        elif smt is Smt.AVOID:
            parts = [core & free for core in cores if core & free and not core & CpuSet(busy)]
        else:
            parts = [core for core in cores if core <= free]
        self.parts = [CpuSet(part) for part in parts]

    def within(self, cpus: CpuSet) -> Reckoning:
        result = object.__new__(Reckoning)
        result.smt = self.smt
        result.parts = [part for part in self.parts if part <= cpus]
        return result

    def sizes(self) -> list[int]:
        return [len(part) if self.smt is Smt.WHOLE else 1 for part in self.parts]

    def room(self) -> int:
        return sum(self.sizes())

    def makes(self, want: int) -> bool:
        sums = {0}
        for size in self.sizes():
            sums |= {each + size for each in sums}
        return want in sums

    def is_made_of(self, lcores: CpuSet) -> bool:
        taken = [part for part in self.parts if part & lcores]
        one_each = self.smt is Smt.AVOID and all(len(part & lcores) == 1 for part in taken)
        return lcores <= CpuSet().union(*taken) and (one_each or CpuSet().union(*taken) == lcores)


def domains(machine: Machine, *shared: str) -> list[CpuSet]:
    """The online CPUs in groups that share these things, in the order of their names."""
    groups: dict[tuple[int, ...], set[int]] = {}
    for cpu in machine.online:
        name = (cpu.node if what == "node" else min(machine.alike(cpu, what)) for what in shared)
        groups.setdefault(tuple(name), set()).add(cpu.number)
    return [CpuSet(groups[name]) for name in sorted(groups)]


def fewest(rooms: Iterable[int], want: int) -> int:
    """How many domains of these sizes it takes."""
    sums = accumulate(sorted(rooms, reverse=True))
    return next(n for n, total in enumerate(sums, 1) if total >= want)


def check_locality(machine: Machine, had: Reckoning, lcores: CpuSet) -> None:
    want = len(lcores)
    nodes = domains(machine, "node")
    caches = domains(machine, "cache" if machine.caches else "package", "node")

    for some in caches, nodes:
        enough = [domain for domain in some if had.within(domain).makes(want)]
        if enough:
            # Of several with least room the first.
            assert lcores <= min(enough, key=lambda domain: had.within(domain).room())
            break
    if len(set(had.sizes())) != 1:
        return
    used = [domain for domain in nodes if domain & lcores]
    assert len(used) == fewest((had.within(domain).room() for domain in nodes), want)
    if len(used) == 1:
        inside = [domain for domain in caches if domain <= used[0]]
        assert sum(bool(domain & lcores) for domain in inside) == fewest(
            (had.within(domain).room() for domain in inside), want
        )


@pytest.mark.parametrize("seed", range(40))
def test_claims_agree_with_a_plain_reckoning(seed: int, segment: str, tmp_path: Path) -> None:
    rng = random.Random(seed)
    machine = random_machine(rng)
    numbers = sorted(cpu.number for cpu in machine.cpus)
    with Host(segment, sysfs=machine.write(tmp_path)) as host:
        for _ in range(30):
            busy = set(rng.sample(numbers, rng.choice([0, len(numbers) // 8, len(numbers) // 2])))
            allowed = set(rng.sample(numbers, len(numbers) - rng.choice([0, 0, len(numbers) // 4])))
            want, smt = rng.randint(1, rng.choice([4, len(numbers) + 1])), rng.choice(list(Smt))
            node, near = rng.choice([None, None, 0, 1]), rng.random() < 0.5
            with host.register(cpus=ALL) as somebody, host.register(cpus=allowed) as me:
                occupy(somebody, busy)
                check_claim(machine, me, want, smt, node, near, allowed, busy)


def unwelcome(machine: Machine, node: int | None, busy: set[int]) -> list[CpuSet]:
    """What comes last, from the least unwelcome on."""
    online = CpuSet(cpu.number for cpu in machine.online)
    return [
        CpuSet().union(*(machine.alike(cpu, "core") for cpu in machine.online if cpu.number in busy)),
        online - machine.isolated if machine.isolated & online else CpuSet(),
        CpuSet(cpu.number for cpu in machine.online if node not in (None, cpu.node)),
        CpuSet({0}),
    ]


def check_claim(
    machine: Machine,
    me: Instance,
    want: int,
    smt: Smt,
    node: int | None,
    near: bool,
    allowed: set[int],
    busy: set[int],
) -> None:
    anywhere = node is None or near
    usable = {cpu.number for cpu in machine.online if cpu.number in allowed and (anywhere or node == cpu.node)}
    now, ever = Reckoning(machine, usable, busy, smt), Reckoning(machine, usable, (), smt)
    if node is not None and node not in {cpu.node for cpu in machine.online}:
        assert claim_refusal(me, want, smt=smt, node=node, near=near) == errno.ENXIO
    elif not now.makes(want):
        assert claim_refusal(me, want, smt=smt, node=node, near=near) == (
            errno.EBUSY if ever.makes(want) else errno.ERANGE
        )
    else:
        lcores = me.claim_many(want, smt=smt, node=node, near=near)
        assert len(lcores) == want
        assert lcores <= usable - busy
        assert me.lcores == lcores
        last = unwelcome(machine, node, busy)
        levels = [CpuSet(usable).difference(*last[accepted:]) for accepted in range(len(last) + 1)]
        had = next(r for level in levels if (r := Reckoning(machine, level, busy, smt)).makes(want))
        assert had.is_made_of(lcores)
        check_locality(machine, had, lcores)
