# SPDX-License-Identifier: BSD-3-Clause
"""XDP programs on interfaces: loaded, found again after a crash, and unloaded; nobody else's is touched.

The exit status of xdp-loader does not tell what happened: on a kernel that lacks what libxdp's dispatcher needs, it
exits 0 and attaches the program directly. So we ask the kernel before and after each step what is attached, and decide
by its answer:

- *The intent* is a directory in bpffs (pins.py), made before anything is attached to the interface and removed after
  everything is detached. It lives exactly as long as programs do: both are gone after a reboot.
- *Ours* is a program with one of our names, on an interface that has our directory. Without the directory, the same
  program is somebody else's: of another manager, or of a person who ran xdp-loader. Then we refuse, and name it.
- *Pins* in the directory are for people, and keep programs and maps alive. They are made from what is attached, and
  made anew if one is missing, stale or of another type. They are used only if nothing at all is attached.

If we are killed at any time, the next load() finishes or replaces what it finds, and the next unload() removes it. No
port is set until everything is in place. Without ports each program, even alone, lets every packet through.

*Put back.* DPDK's AF_XDP driver detaches any program when it closes, also programs of others. So does `ip link set …
xdp off`. The programs still exist then: pinned by us and, in a chain, held by libxdp's links to the dispatcher. Their
xsks_map, which nobody can read, still has the sockets of all other clients. So the root (our own program, or the
dispatcher with all programs in it) is attached again as it is, in one step. Only if that fails are programs loaded
anew, with an empty xsks_map.

    loader = Loader(Tools(state))
    gate = await loader.load(ifindex)
    gate.set_port(20000, True)

There are two ways. *Chain*: mtl_dp_filter and libxdp's xsk_def_prog under libxdp's dispatcher, which also takes others'
programs. *Fused*: both in one program. The chain is loaded from its front and unloaded from its end: without the filter
before it, xsk_def_prog would take every packet of a queue that has a socket.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import sysconfig
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from pathlib import Path

from mtlshm.net import bpf
from mtlshm.net.attached import OURS, PROGRAMS, Attached, Mode, Way, look
from mtlshm.net.gate import MAPS, Gate, maps_of
from mtlshm.net.pins import Pinned, Pins, check_libxdps
from mtlshm.net.places import PINS
from mtlshm.net.tool import Change, Result, Tools

log = logging.getLogger("mtlshmd")

_OLDEST_LOADER = (1, 3)  # the oldest that was tried is 1.3.1
OBJECTS = {
    "mtl_dp_filter": "mtl_dp_filter.o",
    "mtl_dp_fused": "mtl_dp_fused.o",
    "xsk_def_prog": "xsk_def_xdp_prog.o",  # libxdp's
}
_ROOT = "root"  # a pin while the program is put back
_KNOWN = (*OURS, *MAPS.values(), _ROOT)
_IP_MODES = {Mode.NATIVE: "xdpdrv", Mode.SKB: "xdpgeneric"}
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


class Loader:
    """Loads and unloads. `pins` is in a BPF file system; `objects` is where to look for BPF objects first.

    PermissionError if others can write where the pins are: then nothing tells whose programs are.
    """

    def __init__(self, tools: Tools, pins: Path = Path(PINS), objects: Path | None = None) -> None:
        self._tools = tools
        self._pins = Pins(pins, _KNOWN)
        self._objects = objects
        self._checked = False
        self._no_chain = False  # known, so as not to try on every interface: it costs real NICs a reset

    async def load(self, ifindex: int, way: Way = Way.AUTO) -> Gate:
        """Load, or finish what was half loaded. What is whole is adopted as it is, which no packet notices; and what
        is whole but detached is put back."""
        async with self._tools.changing() as change:
            attached = await look(ifindex)
            await self._refuse(attached)
            with self._pins.make(ifindex) as pinned:
                try:
                    if not attached.way:
                        attached = await self._put_back(change, attached, pinned) or await self._load_anew(
                            change, ifindex, way
                        )
                    if way not in (Way.AUTO, attached.way):
                        text = "%s: stays %s, as it is in use; to change that, unload it"
                        log.warning(text, attached.name, attached.way)
                    return _adopt(attached, pinned)
                except BaseException:
                    # Something of ours that is attached or pinned is for the next one to find. If nothing is, nothing
                    # shall stay.
                    with suppress(OSError):
                        if not (await look(ifindex)).ours and not pinned.names():
                            self._pins.remove(ifindex)
                    raise

    async def _put_back(self, change: Change, attached: Attached, pinned: Pinned) -> Attached | None:
        """None if something is attached, if nothing that is complete is pinned, or if it cannot be."""
        if attached.programs or attached.dispatcher:
            return None
        root = _root_of(attached.name, pinned)
        if root is None:
            return None
        with root:
            pinned.pin(root, _ROOT)  # ip is told of a program by a pin
        try:
            for mode in _IP_MODES:
                where = [_IP_MODES[mode], "pinned", str(pinned.path / _ROOT)]
                result = await change("ip", "link", "set", "dev", attached.name, *where)
                now = await look(attached.ifindex)
                if now.programs or now.dispatcher:
                    break
                if result.status == 0:
                    # The driver can, so another mode would only be slower, and new programs would lose ports and
                    # sockets. We once fell to generic mode here, for good, as somebody detached a second time.
                    text = "its XDP programs were attached again, but are gone: somebody detaches them"
                    raise OSError(errno.ENETDOWN, f"{attached.name}: {text}")
        except FileNotFoundError as error:  # no ip
            log.warning("%s: %s", attached.name, error.strerror)
            return None
        finally:
            pinned.unpin(_ROOT)
        if now.way:
            return now
        why = result.complaint.strip()
        log.warning("%s: its programs cannot be attached again as they were, so new ones are loaded: %r", now.name, why)
        return None

    async def _load_anew(self, change: Change, ifindex: int, way: Way) -> Attached:
        attached = await look(ifindex)
        await self._detach(change, attached, attached.ours)
        return await self._attach_all(change, attached, way)

    async def _attach_all(self, change: Change, attached: Attached, way: Way) -> Attached:
        if way is not Way.FUSED and not self._no_chain:
            attached = await self._attach(change, attached, "mtl_dp_filter")
            if attached.dispatcher:
                return await self._attach(change, attached, "xsk_def_prog")
            # Alone, without a dispatcher, it would drop what it is to let through. No port is set yet.
            self._no_chain = True
            await self._detach(change, attached, attached.ours)
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
            begun = self.pins(ifindex) is not None
            if way and attached.way and begun:
                return
            if way:
                await self._refuse(attached)
            if begun:
                for program in _from_the_end(attached.ours):
                    await change("xdp-loader", "unload", attached.name, "--id", str(program.id))
            for name in PROGRAMS.get(Way.CHAIN if way is Way.AUTO else way, ()) if way else ():
                await change("xdp-loader", *self._load_command(attached, attached.mode or Mode.NATIVE, name))

    async def find(self, ifindex: int) -> Gate | None:
        """The complete set of our programs on the interface, or None. Changes nothing."""
        attached = await look(ifindex)
        if not attached.way or self.pins(ifindex) is None:
            return None
        return Gate(attached, maps_of(attached.name, attached.ours))

    async def unload(
        self, ifindex: int, in_use: Callable[[], bool] = lambda: False, known: Collection[int] = ()
    ) -> None:
        """Detach what is ours, whole or half, and remove its pins. Of an interface that is gone, only the pins.

        Nothing of that if it is in use. Who is to use it says so before he calls load(), so this is asked when no other
        can load: he has either said so, or finds it unloaded. Where the pins were lost, programs whose ids are `known`
        are ours all the same.
        """
        async with self._tools.changing() as change:
            begun = self.pins(ifindex) is not None
            if not (begun or known) or in_use():
                return
            with suppress(_Gone):
                attached = await _look_if_there(ifindex)
                ours = [program for program in attached.ours if begun or program.id in known]
                await self._detach(change, attached, ours)
            self._pins.remove(ifindex)

    async def unknown(self, ifindex: int) -> str | None:
        """The text about programs with our names that we have no record of loading; None if there are none."""
        if self.pins(ifindex) is not None:
            return None
        try:
            attached = await look(ifindex)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return _not_known(attached, self._pins.path) if attached.ours else None

    def pins(self, ifindex: int) -> list[Path] | None:
        """The pins of an interface; None if loading has not begun."""
        pinned = self._pins.find(ifindex)
        if pinned is None:
            return None
        with pinned:
            return [pinned.path / name for name in pinned.names()]

    def interfaces(self) -> list[int]:
        """The indices of interfaces of our network namespace that we have loaded, are loading or have half unloaded."""
        return self._pins.interfaces()

    def remove_pins(self) -> None:
        """The directory of all pins, if it is empty."""
        self._pins.remove_all()

    # --- steps, each read back -------------------------------------------------------------------------

    def _load_command(self, attached: Attached, mode: Mode, program: str) -> list[str]:
        return ["load", "--mode", mode, attached.name, str(find_object(OBJECTS[program], self._objects))]

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

    async def _detach(self, change: Change, attached: Attached, ours: Collection[bpf.ProgramInfo]) -> None:
        """Detach these programs, the last of the chain first."""
        for program in _from_the_end(ours):
            # By its id: if somebody replaced it in this moment, theirs stays.
            result = await _run(change, "unload", attached.name, "--id", str(program.id))
            if program.id in (each.id for each in (await look(attached.ifindex)).ours):
                raise _error(f"{attached.name}: {program.name} was not unloaded", result)

    # --- what is in the way ----------------------------------------------------------------------------

    async def _refuse(self, attached: Attached) -> None:
        """Unless nothing is known to be in the way of a load."""
        if self.pins(attached.ifindex) is None and attached.ours:
            raise OSError(errno.EBUSY, _not_known(attached, self._pins.path))
        if text := in_the_way(attached):
            raise OSError(errno.EBUSY, text)
        await self._check_tools()

    async def _check_tools(self) -> None:
        """Raises if a tool that loading needs is missing or too old."""
        if self._checked:
            return
        check_libxdps()
        await check_loader(self._tools)
        self._checked = True


async def check_loader(tools: Tools) -> str:
    """Which xdp-loader there is. OSError if there is none, or one that is too old."""
    result = await tools.read("xdp-loader", "load", "--version")
    version = re.search(r"xdp-loader version (\d+)\.(\d+)\S*", result.output + result.complaint)
    if not version or (int(version[1]), int(version[2])) < _OLDEST_LOADER:
        found = version[0] if version else "one that does not tell its version"
        oldest = ".".join(map(str, _OLDEST_LOADER))
        raise OSError(errno.ENOTSUP, f"xdp-loader {oldest} or later is needed, but there is {found}")
    return version[0]


async def _run(change: Change, *arguments: str) -> Result:
    """Run xdp-loader. Only one can run at a time on a host; another one, anybody's, makes it give up at once."""
    deadline = time.monotonic() + _LOCK_TIMEOUT
    while True:
        result = await change("xdp-loader", *arguments)
        if not _LOCKED.search(result.complaint) or time.monotonic() > deadline:
            return result
        await asyncio.sleep(0.05)


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
    package = "apt-get install xdp-tools" if name == OBJECTS["xsk_def_prog"] else "meson install"
    raise FileNotFoundError(
        errno.ENOENT,
        f"{name} is in none of {', '.join(map(str, directories))}; {package} brings it, MTLSHM_BPF_PATH tells where",
    )


def in_the_way(attached: Attached) -> str | None:
    """The text of the refusal, if a foreign program is attached that ours cannot join; None if there is none."""
    foreign = [program for program in attached.programs if program.name not in OURS]
    if not foreign or attached.dispatcher:  # only libxdp's dispatcher takes one more
        return None
    names = ", ".join(f"{program.name} (id {program.id})" for program in foreign)
    return (
        f"{attached.name}: somebody else's XDP program {names} is attached without libxdp's dispatcher, so none can be "
        f"put beside it; if nobody needs it: ip link set dev {attached.name} xdp off"
    )


def _not_known(attached: Attached, pins: Path) -> str:
    names = " and ".join(f"{program.name} (id {program.id})" for program in attached.ours)
    return (
        f"{attached.name}: {names} is loaded, and nothing in {pins} says that we loaded it: it was loaded by another "
        "manager or by hand, or what was pinned there is gone, as after another BPF file system was mounted. See "
        f"xdp-loader status; if nobody needs it: xdp-loader unload {attached.name} --all"
    )


class _Gone(OSError):
    """The interface is."""


async def _look_if_there(ifindex: int) -> Attached:
    try:
        return await look(ifindex)
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise _Gone from None
        raise


def _adopt(attached: Attached, pinned: Pinned) -> Gate:
    """Make the pins what they should be."""
    if not attached.way:
        reason = "what was just loaded is there only in part; does somebody else load and unload programs?"
        raise OSError(errno.EIO, f"{attached.name}: {reason}")
    maps = maps_of(attached.name, attached.ours)
    try:
        with ExitStack() as stack:
            wanted: dict[str, bpf.Program | bpf.Map] = dict(maps)
            for program in attached.ours:
                wanted[program.name] = stack.enter_context(bpf.Program.by_id(program.id))
            pinned.keep_only(wanted)
            for name, held in wanted.items():
                pinned.pin(held, name)
        return Gate(attached, maps)
    except BaseException:
        for each in maps.values():
            each.close()
        raise


def _root_of(name: str, pinned: Pinned) -> bpf.Program | None:
    """The program to attach so that all pinned programs run; None if a pin is missing."""
    for names in PROGRAMS.values():
        with suppress(OSError), ExitStack() as held:
            programs = [held.enter_context(pinned.program(each)) for each in names]
            infos = [program.info for program in programs]
            for each in maps_of(name, infos).values():
                each.close()
            if [info.type for info in infos] == [bpf.PROGRAM_XDP]:
                return bpf.Program(os.dup(programs[0].fd))
            roots = {bpf.target_of(info.id) for info in infos}
            if len(roots) == 1 and (root := roots.pop()) is not None:
                return bpf.Program.by_id(root)
    return None


def _from_the_end(programs: Collection[bpf.ProgramInfo]) -> list[bpf.ProgramInfo]:
    order = [name for names in PROGRAMS.values() for name in names]
    return sorted(programs, key=lambda program: order.index(program.name), reverse=True)


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
