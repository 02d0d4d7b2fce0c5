# SPDX-License-Identifier: BSD-3-Clause
"""A segment cut short under those who use it is an error, and kills nobody."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Callable
from errno import EBADF, EBADMSG
from pathlib import Path

import pytest

from lab.processes import Puppet, run_python

Start = Callable[..., Puppet]

PAGE = os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize("length", [0, 1, 100, PAGE])
def test_a_process_whose_segment_is_cut_short_goes_on(puppet: Start, segment: str, length: int) -> None:
    client = puppet()
    client.claim(0)
    os.truncate(segment, length)
    assert client.claim(5) == -EBADMSG
    assert client.release(0) == -EBADMSG
    assert client.claim_many(2, 10) == -EBADMSG
    assert client.snapshot() == -EBADMSG
    assert client.sweep() == -EBADMSG
    assert client.alive(client.owner()) == -EBADMSG
    assert client.collect(client.owner()) == -EBADMSG
    assert client.retire() == -EBADMSG
    assert client.lock(10) == -EBADMSG
    assert client.unregister() == 0
    assert client.claim(5) == -EBADF


def test_sigbus_at_a_closed_tables_address_is_not_ours(puppet: Start) -> None:
    leaver = puppet(ready=False)
    assert leaver.open(1) == 0
    assert leaver.close_and_fault() == 0


def test_read_only_process_survives_a_truncation(puppet: Start, segment: str) -> None:
    puppet()
    visitor = puppet(ready=False)
    assert visitor.open(2) == 0
    os.truncate(segment, 0)
    assert visitor.snapshot() == -EBADMSG
    assert visitor.close() == 0


def test_claim_in_a_lost_table_is_an_error(puppet: Start, segment: str) -> None:
    """Made long again, the file is another table. Both having the same lcore would be worse than an error."""
    one, other = puppet(), puppet()
    size = os.stat(segment).st_size
    os.truncate(segment, 0)
    assert one.claim(3) == -EBADMSG
    os.truncate(segment, size)
    assert one.claim(3) == -EBADMSG
    assert one.register() == -EBADMSG
    one.kill()
    assert other.running()


@pytest.mark.parametrize("seed", range(3))
def test_cut_short_amid_everything_nobody_dies_or_hangs(
    puppet: Start, segment: str, host64: Path, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    clients = [puppet(sysfs=host64) for _ in range(6)]
    for client in clients:
        client.tell("storm")
    time.sleep(chance.uniform(0.05, 0.2))
    os.truncate(segment, chance.choice([0, 256, PAGE, 21 * PAGE]))
    for client in clients:
        assert client.answer() == -EBADMSG
        assert client.unregister() == 0


def test_a_child_made_by_fork_is_safe_as_well(puppet: Start, segment: str, tmp_path: Path) -> None:
    child = puppet().fork(tmp_path / "pipes")
    os.truncate(segment, 0)
    assert child.snapshot() == -EBADMSG


def test_a_sigbus_that_is_not_ours_kills_as_ever(puppet: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(PAGE))
    for command in ["touch_truncated", tmp_path / "file"], ["die", int(signal.SIGBUS)]:
        client = puppet()
        client.tell(*command)
        assert client.wait() == -signal.SIGBUS


def test_a_process_with_a_handler_of_its_own_keeps_it_and_can_be_as_safe(puppet: Start, segment: str) -> None:
    client = puppet(ready=False)
    client.own_handler()
    assert client.open(1) == 0
    assert client.register() == 0
    os.truncate(segment, 0)
    assert client.claim(5) == -EBADMSG
    assert client.times_handled() == 1


HEADER = (Path(__file__).parents[2] / "cffi_build/mtlshm.h").read_text()
EXPORTED = set(re.findall(r"^(?:const )?\w+ \*?(mtlshm_\w+)\(", HEADER, re.MULTILINE))

# A call of each function of the header that needs the table: `me` holds lcore 0 and the semaphore, `proxy` lcore 1.
NEED_THE_TABLE = {
    "mtlshm_open": "C.mtlshm_open(new_host, path, 0, NULL)",
    "mtlshm_retire": "C.mtlshm_retire(host)",
    "mtlshm_register": "C.mtlshm_register(new, host, NULL)",
    "mtlshm_register_proxy": "C.mtlshm_register_proxy(new, host, C.MTLSHM_KIND_SOCKET, process, 0)",
    "mtlshm_adopt": "C.mtlshm_adopt(new, host, C.mtlshm_owner(proxy))",
    "mtlshm_alive": "C.mtlshm_alive(host, C.mtlshm_owner(me))",
    "mtlshm_owners": "C.mtlshm_owners(host, owners)",
    "mtlshm_proxies": "C.mtlshm_proxies(host, owners)",
    "mtlshm_collect": "C.mtlshm_collect(host, C.mtlshm_owner(me))",
    "mtlshm_sweep": "C.mtlshm_sweep(host)",
    "mtlshm_claim": "C.mtlshm_claim(me, 5, 0)",
    "mtlshm_release": "C.mtlshm_release(me, 0)",
    "mtlshm_release_all": "C.mtlshm_release_all(me)",
    "mtlshm_claim_many": "C.mtlshm_claim_many(me, want, lcores)",
    "mtlshm_evict": "C.mtlshm_evict(host, 0, C.mtlshm_owner(me))",
    "mtlshm_take": "C.mtlshm_take(me, 1, C.mtlshm_owner(proxy), 0)",
    "mtlshm_tag": "C.mtlshm_tag(host, 0, C.mtlshm_owner(me), 1)",
    "mtlshm_holder": "C.mtlshm_holder(host, 0, owners, tag)",
    "mtlshm_lock": "C.mtlshm_lock(other, 10)",
    "mtlshm_unlock": "C.mtlshm_unlock(me)",
    "mtlshm_snapshot": "C.mtlshm_snapshot(host, snapshot)",
    "mtlshm_inspect": "C.mtlshm_inspect(host, C.mtlshm_owner(me), info)",
    "mtlshm_parent": "C.mtlshm_parent(host, C.mtlshm_owner(me), owners)",
    "mtlshm_leased": "C.mtlshm_leased(host)",
    "mtlshm_lease_format": "C.mtlshm_lease_format(host, C.mtlshm_owner(me), lease)",
    "mtlshm_lease_parse": "C.mtlshm_lease_parse(host, b'100000@1', owners)",
    "mtlshm_choose": "C.mtlshm_choose(host, want, NULL, 0, lcores)",
    "mtlshm_reserve": "C.mtlshm_reserve(host, b'key', NULL, want, NULL, reserved)",
    "mtlshm_reservation": "C.mtlshm_reservation(host, b'key', reserved)",
    "mtlshm_events": "C.mtlshm_events(host, 0, events)",
    "mtlshm_tell": "C.mtlshm_tell(host, C.MTLSHM_EVENT_NIC, b'eth0', b'queue 1')",
    "mtlshm_end": "C.mtlshm_end(host, C.mtlshm_owner(proxy))",
}
# Those that need none, or say what they find in the file; and those that end something, which always works.
NEED_NO_TABLE = {
    "mtlshm_default_path": "",
    "mtlshm_configured_path": "",
    "mtlshm_fault": "",
    "mtlshm_owner": "",
    "mtlshm_topology_read": "",
    "mtlshm_affinity": "",
    "mtlshm_strerror": "",
    "mtlshm_failure": "",
    "mtlshm_file": "",
    "mtlshm_interface_node": "",
    "mtlshm_replaced": "",
    "mtlshm_examine": "damages",
    "mtlshm_mend": "damages",
    "mtlshm_close": "ends",
    "mtlshm_unregister": "ends",
    "mtlshm_instance_free": "ends",
}
# Each call is the first that a process makes after the file was cut; another has failed before with the same errno.
SCRIPT = """
import errno, os, sys
from mtlshm._core import ffi, lib as C

NULL, length, calls = ffi.NULL, int(sys.argv[1]), sys.argv[4:]
path = ffi.new("char[]", os.fsencode(sys.argv[2]))
process = ffi.new("struct mtlshm_process *")
want = ffi.new("struct mtlshm_want *", {"count": 1, "numa_node": -1, "timeout_ms": 10})
owners, tag, lcores = ffi.new("uint64_t[256]"), ffi.new("uint32_t *"), ffi.new("uint16_t[1]")
lease, reserved = ffi.new("char[40]"), ffi.new("struct mtlshm_reserved *")
events = ffi.new("struct mtlshm_event[256]")
topology = ffi.new("struct mtlshm_topology *")
snapshot, info = ffi.new("struct mtlshm_snapshot *"), ffi.new("struct mtlshm_instance_info *")
new_host, new = ffi.new("struct mtlshm_host **"), ffi.new("struct mtlshm_instance **")
for call in calls:
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, call
        continue
    made = []
    assert C.mtlshm_open(new_host, path, C.MTLSHM_CREATE, NULL) == 0
    host = new_host[0]
    cpus = ffi.new("struct mtlshm_cpuset *", [[2**64 - 1] * 16])
    identity = ffi.new("struct mtlshm_identity *", {"cpus": cpus})
    for _ in range(2):
        assert C.mtlshm_register(new, host, identity) == 0
        made.append(new[0])
    assert C.mtlshm_register_proxy(new, host, C.MTLSHM_KIND_SOCKET, process, 0) == 0
    (me, other), proxy = made, new[0]
    assert C.mtlshm_claim(me, 0, 0) == C.mtlshm_claim(proxy, 1, 0) == 0
    assert "mtlshm_lock" in call or C.mtlshm_lock(me, 0) == 0
    os.truncate(sys.argv[2], length)
    assert C.mtlshm_topology_read(topology, os.fsencode(sys.argv[3])) == -errno.EBADMSG
    result, failure = eval(call), C.mtlshm_failure(errno.EBADMSG)
    print(result, failure != NULL and sys.argv[3] in ffi.string(failure).decode(), flush=True)
    os.unlink(sys.argv[2])
    os._exit(0)
"""


def test_the_header_has_no_function_that_is_not_spoken_of_here() -> None:
    assert set(NEED_THE_TABLE) | set(NEED_NO_TABLE) == EXPORTED


@pytest.mark.parametrize("length", [0, 1, 100, 256, PAGE, 21 * PAGE])
def test_every_function_reports_a_truncation_and_no_earlier_failure(segment: str, tmp_path: Path, length: int) -> None:
    (tmp_path / "devices/system/cpu").mkdir(parents=True)
    (tmp_path / "devices/system/cpu/possible").write_text("a few\n")
    said = run_python(SCRIPT, length, segment, tmp_path, *NEED_THE_TABLE.values())
    expected = dict.fromkeys(NEED_THE_TABLE, f"{-EBADMSG} False")
    if length == 21 * PAGE:  # the lcores that are used here are still there, and these look at nothing else
        for name in "mtlshm_claim", "mtlshm_release":
            expected[name] = "0 True"
    assert dict(zip(NEED_THE_TABLE, said.splitlines(), strict=True)) == expected


def test_the_header_says_so_of_every_function() -> None:
    comments = re.findall(r"/\*((?:(?!\*/).)*)\*/\n((?:\w[^;]*\b(?:mtlshm_\w+)\([^;]*;\n)+)", HEADER, re.DOTALL)
    told = {
        name for text, functions in comments if "-EBADMSG" in text for name in re.findall(r"(mtlshm_\w+)\(", functions)
    }
    assert set(NEED_THE_TABLE) <= told
