# SPDX-License-Identifier: BSD-3-Clause
"""What the XDP programs cost a packet, by BPF_PROG_TEST_RUN, against a gate of upstream's kind.

Raw times: what BPF_PROG_TEST_RUN costs by itself is in all of them, and is what the empty program shows. The gate only
tells whether a packet is a hit; what redirects it costs something more, of which xdp_redirect shows the least.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import mean

from benchmarks.measure import ROOT, Bench, Figure, Measure, figure, pinned
from lab.bpf_object import Object, run_on
from mtlshm.net import bpf
from mtlshm.net.xdp import find_object

PORTS = range(20000, 20256)
OTHER = 30000
TURNS = 21
RUNS, REPEAT = 10, 100_000  # a run takes 1 or 2 ms, less than a process may keep its CPU


def packets() -> dict[str, bytes]:
    from lab.packets import IP4, IP6, TCP, UDP, ethernet, ip4, ip6, udp

    hit = udp(PORTS[100])
    return {
        "hit": ethernet(IP4, ip4(UDP, hit)),
        "miss": ethernet(IP4, ip4(UDP, udp(OTHER))),
        "tcp": ethernet(IP4, ip4(TCP, hit)),
        "hit6": ethernet(IP6, ip6(UDP, hit)),
    }


@contextmanager
def programs() -> Iterator[dict[str, bpf.Program]]:
    """All of them, with the same ports, and a socket for those that redirect to."""
    from lab.xsk import Xsk

    if os.geteuid() != 0:
        raise RuntimeError("needs root")
    with ExitStack() as stack:
        gate = stack.enter_context(Object(ROOT / "build/tools/benchmarks/gate.o"))
        found = {name: stack.enter_context(gate.program(name)) for name in ("hash_gate", "empty", "redirect")}
        with gate.map("ports") as ports:
            for port in PORTS:
                ports.update(struct.pack("=H", port), b"\1")
        for name in ("mtl_dp_filter", "mtl_dp_fused"):
            loaded = stack.enter_context(Object(find_object(f"{name}.o")))
            found[name] = stack.enter_context(loaded.program(name))
            with loaded.map(".data.ports") as ports, ports.mapped() as mapped:
                mapped[PORTS.start : PORTS.stop] = b"\1" * len(PORTS)
        xsk = stack.enter_context(Xsk())
        for each in (gate, loaded):
            with each.map("xsks_map") as xsks_map:
                xsks_map.update(struct.pack("=I", 0), struct.pack("=i", xsk.socket.fileno()))
        yield found


def cost(program: bpf.Program, packet: bytes) -> float:
    """Of one packet, in ns, of the better half of several runs.

    As the kernel tells it: a clock of ours would see what it waits for before and after. It rounds down, so half a ns
    is what is missing on average.
    """
    runs = sorted(run_on(program, packet, REPEAT)[1] for _ in range(RUNS))
    return mean(runs[: RUNS // 2]) + 0.5


def xdp(subject: str, shape: str) -> Measure:
    def measure(bench: Bench, name: str) -> Figure:
        frames = packets()
        # The gate of upstream's kind knows no IPv6: what it does with IPv4 has to do.
        other = "hit" if shape == "hit6" else shape
        baseline = f"gate with a hash map, {'IPv4 ' * (other != shape)}{other}"
        with pinned(0), programs() as found:
            turns = [
                (cost(found[subject], frames[shape]), cost(found["hash_gate"], frames[other])) for _ in range(TURNS)
            ]
        return figure(name, "ns", baseline, turns)

    return measure


FIGURES: dict[str, Measure] = {
    **{f"xdp_{shape}": xdp("mtl_dp_filter", shape) for shape in ("hit", "miss", "tcp", "hit6")},
    **{f"xdp_{shape}_fused": xdp("mtl_dp_fused", shape) for shape in ("hit", "miss", "tcp", "hit6")},
    "xdp_empty": xdp("empty", "hit"),
    "xdp_redirect": xdp("redirect", "hit"),
}
