# SPDX-License-Identifier: BSD-3-Clause
"""The fused program against the chain that it does without, in instructions.

libxdp's dispatcher needs a kernel that this machine may not have, so this is measured in tools/vm. There the clock goes
by a nanosecond with each instruction, and what BPF_PROG_TEST_RUN says is an exact count: of the program as compiled,
of what it calls, and of the kernel's loop around it. The loop, which no packet goes through, is left out: it is what a
program that does nothing takes.
"""

import json
import struct
import subprocess
from functools import cache

from benchmarks.measure import ROOT, Bench, Figure

PORTS = range(20000, 20256)
CHAIN = "hash map gate and xsk_def_prog, dispatched"
REDIRECT, PASS = 4, 2
CASES = {"vm_hit": (PORTS[100], REDIRECT), "vm_miss": (40000, PASS)}  # destination port, what is done
REPEAT = 10_000


@cache
def counts() -> dict[str, list[int]]:
    """Of each figure: the fused program's, the chain's."""
    command = [ROOT / "tools/vm", "--count", "python", "-P", "-m", "benchmarks.vm"]
    said = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, list[int]] = json.loads(said)
    return found


def in_vm(bench: Bench, name: str) -> Figure:
    fused, chain = counts()[name]
    return Figure(name, fused, "instructions", None, CHAIN, chain, fused / chain)


FIGURES = {"vm_hit": in_vm, "vm_miss": in_vm}


def count() -> dict[str, list[int]]:
    """In the guest: both ways on one interface, each with a socket on its queue."""
    import asyncio

    from pyroute2 import IPRoute

    from lab import packets
    from lab.bpf_object import Object, run_on
    from lab.networks import sandbox, veth
    from lab.xsk import Xsk
    from mtlshm.net import bpf
    from mtlshm.net.attached import look
    from mtlshm.net.xdp import find_object

    def load(*arguments: object) -> None:
        subprocess.run(["xdp-loader", "load", *map(str, arguments)], check=True)

    def instructions(program: bpf.Program, frame: bytes, expected: int) -> int:
        run_on(program, frame, REPEAT)  # the first run of all finds nothing in caches
        action, duration = run_on(program, frame, REPEAT)
        if action != expected:
            raise RuntimeError(f"it returned {action}, not {expected}, so what was counted is something else")
        return duration

    gate, found = ROOT / "build/tools/benchmarks/gate.o", {}
    with (
        sandbox(),
        veth(queues=1) as link,
        Xsk() as socket,
        Object(gate) as gates,
        Object(find_object("mtl_dp_fused.o")) as fused,
        fused.map(".data.ports").mapped() as ports,
    ):
        socket.bind(link.index, 0)
        load("--prog-name", "hash_gate", "--prio", 19, "--actions", "XDP_DROP", link.name, gate)
        load(link.name, find_object("xsk_def_xdp_prog.o"))
        chain = asyncio.run(look(link.index)).programs
        loaded = [bpf.Map.by_id(number) for program in chain for number in program.map_ids]
        maps = {each.info.name: each for each in loaded}
        with IPRoute() as route:
            dispatcher = dict(route.link("get", index=link.index)[0].get("xdp")["attrs"])["IFLA_XDP_PROG_ID"]
        for port in PORTS:
            maps["ports"].update(struct.pack("=H", port), b"\1")
            ports[port] = 1
        for xsks_map in (maps["xsks_map"], fused.map("xsks_map")):
            xsks_map.update(struct.pack("=I", 0), struct.pack("=i", socket.socket.fileno()))
        for name, (port, action) in CASES.items():
            frame = packets.ethernet(packets.IP4, packets.ip4(packets.UDP, packets.udp(port)))
            loop = instructions(gates.program("empty"), frame, PASS)
            both = fused.program("mtl_dp_fused"), bpf.Program.by_id(dispatcher)
            found[name] = [instructions(program, frame, action) - loop for program in both]
    return found


if __name__ == "__main__":
    print(json.dumps(count()))
