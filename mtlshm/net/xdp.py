# SPDX-License-Identifier: BSD-3-Clause
"""XDP programs on interfaces: loaded, found again after a crash, and unloaded; nobody else's is touched.

What xdp-loader says is not enough to know what happened: where the kernel lacks what libxdp's dispatcher needs, it
exits 0 and has attached the program directly. So before and after every step the kernel is asked what is attached, and
all decisions follow from its answer:

- *The intent* is a directory in bpffs, made before anything is attached to the interface and removed after
  everything is detached. It lives exactly as long as programs do: both are gone after a reboot.
- *Ours* is a program with one of our names, on an interface that has our directory. Without it, the same program is
  somebody else's, who ran xdp-loader by hand or another manager; then we refuse, and say what is in the way.
- *Pins* in the directory are for people and to keep the maps; they are made from what is attached, never believed.
  One that is missing, stale or of another type is made anew.

So whenever we are killed, the next load() finishes or replaces what it finds, and the next unload() removes it. No port
is set until everything is in place, and as long as none is, each program, even alone, lets every packet through.

    loader = Loader(Tools(state))
    gate = await loader.load(ifindex)
    gate.set_port(20000, True)

The two ways. *Chain*: mtl_dp_filter and libxdp's xsk_def_prog under libxdp's dispatcher, which takes others' programs
as well. *Fused*: both in one program. The chain is loaded from its front and unloaded from its end: xsk_def_prog
without the filter before it would take every packet of a queue with a socket.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import struct
import sysconfig
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from mtlshm.net import bpf
from mtlshm.net.places import BPFFS, PINS
from mtlshm.net.tool import Change, Result, Tools

log = logging.getLogger("mtlshmd")

PORTS = 65536

_DISPATCHER = "xdp_dispatcher"
_OLDEST_LOADER = (1, 3)  # the oldest that was tried is 1.3.1
_OBJECTS = {
    "mtl_dp_filter": "mtl_dp_filter.o",
    "mtl_dp_fused": "mtl_dp_fused.o",
    "xsk_def_prog": "xsk_def_xdp_prog.o",  # libxdp's
}
_MAPS = {".data.ports": "ports", ".data.counters": "counters", "xsks_map": "xsks_map"}  # name of the map: of its pin
_COUNTERS = struct.Struct("=8Q")  # struct counters of udp.h
_CPUS = 1024  # MAX_CPUS of udp.h
_LOCKED = re.compile("Unable to (get program lock|read PID from lockfile)")
_LOCK_TIMEOUT = 5.0  # seconds; it takes a tenth of one
_NO_NATIVE = {  # what drivers answer that have no native mode, or not with these settings
    errno.EOPNOTSUPP,
    errno.ERANGE,
    errno.EINVAL,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.E2BIG,
}


class Way(StrEnum):
    """How to load: AUTO takes the chain where the kernel can, else the fused program."""

    AUTO = "auto"
    CHAIN = "chain"
    FUSED = "fused"


_PROGRAMS = {Way.CHAIN: ("mtl_dp_filter", "xsk_def_prog"), Way.FUSED: ("mtl_dp_fused",)}  # front to end
_OURS = {name for programs in _PROGRAMS.values() for name in programs}


class Mode(StrEnum):
    """Where programs see packets: in the driver, in the kernel's generic code, or in the NIC."""

    NATIVE = "native"
    SKB = "skb"
    OFFLOAD = "hw"


_MODES = {"xdp": Mode.NATIVE, "xdpgeneric": Mode.SKB, "xdpoffload": Mode.OFFLOAD}  # as pyroute2 says it


@dataclass(frozen=True)
class Attached:
    """What the kernel says of an interface."""

    ifindex: int
    name: str
    mode: Mode | None  # None: no program, or several in different modes
    programs: tuple[bpf.ProgramInfo, ...]  # in a dispatcher, or the one that is attached itself
    dispatcher: bool

    @property
    def ours(self) -> tuple[bpf.ProgramInfo, ...]:
        """Those with names of ours, whoever loaded them."""
        return tuple(program for program in self.programs if program.name in _OURS)

    @property
    def way(self) -> Way | None:
        """Which of the two is complete."""
        names = sorted(program.name for program in self.ours)
        if names == sorted(_PROGRAMS[Way.CHAIN]) and self.dispatcher:
            return Way.CHAIN
        return Way.FUSED if names == sorted(_PROGRAMS[Way.FUSED]) else None


@dataclass(frozen=True)
class Counters:
    """Packets since the program was loaded."""

    hits: int  # to a port that is set
    passes: int  # all others
    unclaimed: int | None  # hits with no socket on their queue, which went to the stack; None: the chain does not count


class Gate:
    """The programs of an interface, complete: which ports they let through, to which sockets.

    Closing it changes nothing on the interface.
    """

    def __init__(self, attached: Attached, maps: dict[str, bpf.Map]) -> None:
        assert attached.way
        assert attached.mode
        self.attached = attached
        self.way = attached.way
        self.mode = attached.mode
        self._held = ExitStack()
        for each in maps.values():
            self._held.callback(each.close)
        self.xsks_map = maps["xsks_map"]
        self._ports = self._held.enter_context(maps["ports"].mapped())
        self._counters = self._held.enter_context(maps["counters"].mapped())

    def set_port(self, port: int, let_through: bool) -> None:
        """Packets to the port go to AF_XDP, or no longer. One store: others may do the same at once."""
        if not 0 <= port < PORTS:
            raise ValueError(f"{port} is no UDP port")
        self._ports[port] = let_through

    def ports(self) -> set[int]:
        return {port for port, byte in enumerate(self._ports[:PORTS]) if byte}

    def set_socket(self, queue: int, socket: int) -> None:
        """Packets for AF_XDP that arrive on the queue go to this socket, a descriptor."""
        self.xsks_map.update(struct.pack("=I", queue), struct.pack("=I", socket))

    def remove_socket(self, queue: int) -> None:
        """Take the socket on a queue out of the map, if there is one; packets then go to the stack."""
        with suppress(FileNotFoundError):
            self.xsks_map.delete(struct.pack("=I", queue))

    def counters(self) -> Counters:
        each_cpu = list(_COUNTERS.iter_unpack(self._counters[:]))
        hits, passes, unclaimed = (sum(values[n] for values in each_cpu) for n in range(3))
        return Counters(hits, passes, unclaimed if self.way is Way.FUSED else None)

    def close(self) -> None:
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()


class Loader:
    """Loads and unloads. `pins` is in a BPF file system; `objects` is where to look for BPF objects first."""

    def __init__(self, tools: Tools, pins: Path = PINS, objects: Path | None = None) -> None:
        self._tools = tools
        self._pins = pins
        self._objects = objects
        self._checked = False
        self._no_chain = False  # known, so as not to try on every interface: it costs real NICs a reset

    async def load(self, ifindex: int, way: Way = Way.AUTO) -> Gate:
        """Load, or finish what was half loaded. What is whole is adopted as it is, which no packet notices."""
        async with self._tools.changing() as change:
            attached = await look(ifindex)
            directory = self._directory(ifindex)
            await self._refuse(attached, directory)
            directory.mkdir(parents=True, exist_ok=True)
            try:
                if not attached.way:
                    await self._detach(change, attached)
                    attached = await self._attach_all(change, attached, way)
                elif way not in (Way.AUTO, attached.way):
                    log.warning("%s: stays %s, as it is in use; to change that, unload it", attached.name, attached.way)
                return _adopt(attached, directory)
            except BaseException:
                # Something of ours that is attached is for the next one to find. If nothing is, nothing shall stay.
                with suppress(OSError):
                    if not (await look(ifindex)).ours:
                        _remove(directory)
                raise

    async def _attach_all(self, change: Change, attached: Attached, way: Way) -> Attached:
        if way is not Way.FUSED and not self._no_chain:
            attached = await self._attach(change, attached, "mtl_dp_filter")
            if attached.dispatcher:
                return await self._attach(change, attached, "xsk_def_prog")
            # Alone, without a dispatcher, it would drop what it is to let through. No port is set yet.
            self._no_chain = True
            await self._detach(change, attached)
            log.info("%s: this kernel cannot chain XDP programs", attached.name)
            attached = await look(attached.ifindex)
        if way is Way.CHAIN:
            reason = "this kernel has no freplace programs, which libxdp needs to chain any; use auto or fused"
            raise OSError(errno.EOPNOTSUPP, f"{attached.name}: {reason}")
        return await self._attach(change, attached, "mtl_dp_fused")

    async def rehearse(self, ifindex: int, way: Way | None) -> None:
        """With tools that only show what they would run: show what load() would, or unload() if there is no way."""
        async with self._tools.changing() as change:
            attached = await look(ifindex)
            if way and attached.way and self._directory(ifindex).exists():
                return
            if way:
                await self._refuse(attached, self._directory(ifindex))
            if self._directory(ifindex).exists():
                for program in _from_the_end(attached):
                    await change("xdp-loader", "unload", attached.name, "--id", str(program.id))
            for name in _PROGRAMS.get(Way.CHAIN if way is Way.AUTO else way, ()) if way else ():
                await change("xdp-loader", *self._load_command(attached, attached.mode or Mode.NATIVE, name))

    async def find(self, ifindex: int) -> Gate | None:
        """What we have loaded there, if it is complete. Changes nothing."""
        attached = await look(ifindex)
        if not attached.way or not self._directory(ifindex).exists():
            return None
        return Gate(attached, _maps_of(attached))

    async def unload(self, ifindex: int, in_use: Callable[[], bool] = lambda: False) -> None:
        """Detach what is ours, whole or half, and remove its pins. Of an interface that is gone, only the pins.

        Nothing of that if it is in use. Who is to use it says so before he calls load(), so this is asked when no other
        can load: he has either said so, or finds it unloaded.
        """
        async with self._tools.changing() as change:
            directory = self._directory(ifindex)
            if directory.exists() and not in_use():
                try:
                    await self._detach(change, await look(ifindex))
                except OSError as error:
                    if error.errno != errno.ENODEV:
                        raise
                _remove(directory)

    def pins(self, ifindex: int) -> list[Path] | None:
        """What is pinned for an interface; None if we have not begun to load it."""
        directory = self._directory(ifindex)
        return sorted(directory.iterdir()) if directory.exists() else None

    def interfaces(self) -> list[int]:
        """The indices of interfaces of our network namespace that we have loaded, are loading or have half unloaded."""
        pattern = re.compile(rf"{_namespace()}-(\d+)")
        names = os.listdir(self._pins) if self._pins.exists() else []
        return sorted(int(match[1]) for match in map(pattern.fullmatch, names) if match)

    # --- steps, each read back -------------------------------------------------------------------------

    def _load_command(self, attached: Attached, mode: Mode, program: str) -> list[str]:
        return ["load", "--mode", mode, attached.name, str(find_object(_OBJECTS[program], self._objects))]

    async def _attach(self, change: Change, attached: Attached, program: str) -> Attached:
        """Attach one of our programs, in the mode of those that are there, or natively if the driver can."""
        modes = [attached.mode] if attached.mode else [Mode.NATIVE, Mode.SKB]
        for mode in modes:
            result = await _run(change, *self._load_command(attached, mode, program))
            now = await look(attached.ifindex)
            if program in (each.name for each in now.ours):
                return now
            number = _errno_of(result)
            if mode is modes[-1] or number not in _NO_NATIVE:
                break
            reason = result.complaint.strip() or os.strerror(number)
            log.warning("%s: not in native mode, so slower: %r", attached.name, reason)
        raise _error(f"{attached.name}: {program} was not loaded", result)

    async def _detach(self, change: Change, attached: Attached) -> None:
        """Detach our programs, the last of the chain first."""
        for program in _from_the_end(attached):
            # By its id: if somebody replaced it in this moment, theirs stays.
            result = await _run(change, "unload", attached.name, "--id", str(program.id))
            if program.id in (each.id for each in (await look(attached.ifindex)).ours):
                raise _error(f"{attached.name}: {program.name} was not unloaded", result)

    # --- what is in the way ----------------------------------------------------------------------------

    async def _refuse(self, attached: Attached, directory: Path) -> None:
        """Unless nothing is known to be in the way of a load."""
        if attached.ours and not directory.exists():
            names = " and ".join(program.name for program in attached.ours)
            raise OSError(
                errno.EBUSY,
                f"{attached.name}: {names} is loaded, but not by us: by another manager, or by hand? "
                f"See xdp-loader status; if nobody needs it: xdp-loader unload {attached.name} --all",
            )
        foreign = [program for program in attached.programs if program.name not in _OURS]
        if foreign and not attached.dispatcher:  # only libxdp's dispatcher takes one more
            names = ", ".join(f"{program.name} (id {program.id})" for program in foreign)
            raise OSError(
                errno.EBUSY,
                f"{attached.name}: somebody else's XDP program {names} is attached without libxdp's dispatcher, so "
                f"none can be put beside it; if nobody needs it: ip link set dev {attached.name} xdp off",
            )
        await self._check_tools()

    async def _check_tools(self) -> None:
        """What can be known to be missing before anything is done."""
        if self._checked:
            return
        _check_bpffs(self._pins)
        result = await self._tools.read("xdp-loader", "load", "--version")
        version = re.search(r"xdp-loader version (\d+)\.(\d+)\S*", result.output + result.complaint)
        if not version or (int(version[1]), int(version[2])) < _OLDEST_LOADER:
            found = version[0] if version else "one that does not tell its version"
            oldest = ".".join(map(str, _OLDEST_LOADER))
            raise OSError(errno.ENOTSUP, f"xdp-loader {oldest} or later is needed, but there is {found}")
        self._checked = True

    def _directory(self, ifindex: int) -> Path:
        # The same index may be in use in each network namespace, and they may share the BPF file system.
        return self._pins / f"{_namespace()}-{ifindex}"


async def _run(change: Change, *arguments: str) -> Result:
    """Run xdp-loader. Only one can run at a time on a host; another one, anybody's, makes it give up at once."""
    deadline = time.monotonic() + _LOCK_TIMEOUT
    while True:
        result = await change("xdp-loader", *arguments)
        if not _LOCKED.search(result.complaint) or time.monotonic() > deadline:
            return result
        await asyncio.sleep(0.05)


async def look(ifindex: int) -> Attached:
    """Ask the kernel what is attached to an interface."""
    from pyroute2 import AsyncIPRoute  # only here: it is half as big as all the rest of us
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        async with AsyncIPRoute() as netlink:
            (link,) = await netlink.link("get", index=ifindex)
    except NetlinkError as error:
        raise OSError(error.code, f"interface {ifindex}: {os.strerror(error.code)}") from None
    name = link.get("ifname")
    xdp = dict(link.get("xdp", {"attrs": []})["attrs"])
    mode = _MODES.get(str(xdp.get("IFLA_XDP_ATTACHED")))
    # One program for each mode; the first attribute only if there is one in all.
    roots = _programs({number for key, number in xdp.items() if key.endswith("PROG_ID")})
    if [root.name for root in roots] == [_DISPATCHER]:
        return Attached(ifindex, name, mode, tuple(_programs(bpf.extensions_of(roots[0].id))), True)
    return Attached(ifindex, name, mode, tuple(roots), False)


def find_object(name: str, first: Path | None = None) -> Path:
    """A BPF object: in `first`, in $MTLSHM_BPF_PATH, in a checkout's build/, or where meson or Debian installed it."""
    triplet = sysconfig.get_config_var("MULTIARCH") or "."
    directories = [first] if first else []
    if path := os.environ.get("MTLSHM_BPF_PATH"):
        directories.append(Path(path))
    directories.append(Path(__file__).resolve().parents[2] / "build/bpf")
    for prefix in ("/usr/local", "/usr"):
        directories += [Path(prefix, "lib", triplet, "bpf"), Path(prefix, "lib/bpf"), Path(prefix, "lib64/bpf")]
    for directory in directories:
        if (directory / name).is_file():
            return directory / name
    package = "apt-get install xdp-tools" if name == _OBJECTS["xsk_def_prog"] else "meson install"
    raise FileNotFoundError(
        errno.ENOENT,
        f"{name} is in none of {', '.join(map(str, directories))}; {package} brings it, MTLSHM_BPF_PATH tells where",
    )


def _adopt(attached: Attached, directory: Path) -> Gate:
    """Make the pins what they should be."""
    if not attached.way:
        reason = "what was just loaded is there only in part; does somebody else load and unload programs?"
        raise OSError(errno.EIO, f"{attached.name}: {reason}")
    maps = _maps_of(attached)
    try:
        with ExitStack() as stack:
            wanted: dict[str, bpf.Program | bpf.Map] = dict(maps)
            for program in attached.ours:
                wanted[program.name] = stack.enter_context(bpf.Program.by_id(program.id))
            for entry in directory.iterdir():
                if entry.name not in wanted:
                    _remove(entry)
            for name, held in wanted.items():
                _pin(held, directory / name)
        return Gate(attached, maps)
    except BaseException:
        for each in maps.values():
            each.close()
        raise


def _maps_of(attached: Attached) -> dict[str, bpf.Map]:
    """The maps of our programs, by the names of their pins."""
    maps: dict[str, bpf.Map] = {}
    with ExitStack() as stack:
        for number in [number for program in attached.ours for number in program.map_ids]:
            each = stack.enter_context(bpf.Map.by_id(number))
            info = each.info
            if pin := _MAPS.get(info.name):
                maps[pin] = each
        sizes = [maps[pin].info.value_size for pin in ("ports", "counters", "xsks_map") if pin in maps]
        if sizes != [PORTS, _CPUS * _COUNTERS.size, 4]:
            reason = "its programs are of another version of mtlshm; when nobody uses them, unload it"
            raise OSError(errno.EPROTO, f"{attached.name}: {reason}")
        for pin in maps:
            maps[pin] = bpf.Map(os.dup(maps[pin].fd))
    return maps


def _pin(held: bpf.Program | bpf.Map, path: Path) -> None:
    """Pin it there, instead of whatever else is."""
    try:
        with type(held).pinned(path) as there:
            if there.info.id == held.info.id:
                return
    except FileNotFoundError:
        pass
    except OSError:
        pass  # something of another type
    if path.exists():
        _remove(path)
    held.pin(path)


def _remove(path: Path) -> None:
    """A pin, or a directory of pins."""
    if not path.is_dir():
        path.unlink()
        return
    for entry in path.iterdir():
        _remove(entry)
    path.rmdir()


def _from_the_end(attached: Attached) -> list[bpf.ProgramInfo]:
    order = [name for programs in _PROGRAMS.values() for name in programs]
    return sorted(attached.ours, key=lambda program: order.index(program.name), reverse=True)


def _programs(ids: Iterable[int]) -> list[bpf.ProgramInfo]:
    """What the kernel says of them; those that are gone by now are left out."""
    found = []
    for number in ids:
        with suppress(FileNotFoundError), bpf.Program.by_id(number) as program:
            found.append(program.info)
    return found


def _namespace() -> int:
    """The inode of our network namespace."""
    return os.stat("/proc/thread-self/ns/net").st_ino


def _check_bpffs(path: Path) -> None:
    """Is the path in a BPF file system?"""
    path = Path(os.path.realpath(path))
    mounts: dict[Path, str] = {}
    # Anyone who may mount gives it any name; only blanks, line feeds and backslashes are escaped.
    for line in os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).rstrip("\n").split("\n"):
        words = line.split(" ")
        mounts[Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), words[4]))] = words[words.index("-") + 1]
    mount = next(directory for directory in (path, *path.parents) if directory in mounts)
    if mounts[mount] != "bpf":
        reason = f"no BPF file system is mounted there; as root: mount -t bpf bpf {BPFFS}"
        raise OSError(errno.ENODEV, f"{path}: {reason}")


def _errno_of(result: Result) -> int:
    """xdp-loader's exit status is mostly a negative errno, of which a byte is left."""
    if result.status == 1:
        return errno.EPERM
    return 256 - result.status if result.status >= 128 else errno.EIO


def _error(what: str, result: Result) -> OSError:
    if _LOCKED.search(result.complaint):
        hint = "if none is, one was killed and left /run/xdp-loader.lck, which may be removed"
        return OSError(errno.EBUSY, f"{what}: another xdp-loader is running; {hint}")
    said = "; ".join(result.complaint.split("\n")).strip("; ") or f"xdp-loader ended with {result.status}, and no word"
    return OSError(_errno_of(result), f"{what}: {said}")
