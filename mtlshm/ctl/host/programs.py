# SPDX-License-Identifier: BSD-3-Clause
"""Programs, BPF objects and the C library: what interfaces and C programs need."""

from __future__ import annotations

import asyncio
import ctypes
import re
import sysconfig
from importlib.metadata import version

from mtlshm.ctl.host.place import Place
from mtlshm.ctl.verdict import State, Verdict
from mtlshm.errors import reason
from mtlshm.net.tool import Program, Tools

_PATIENCE = 8.0  # seconds; less than the whole check has, so that a program that hangs is ended
_WITHOUT = "without it interfaces are not served"
_LIBRARY = "libmtlshm.so.0"


def xdp_loader(place: Place) -> Verdict:
    """xdp-loader is installed, and new enough."""
    from mtlshm.net.xdp import check_loader

    try:
        return Verdict("xdp-loader", State.OK, asyncio.run(check_loader(Tools(place.state, timeout=_PATIENCE))))
    except OSError as error:
        return Verdict("xdp-loader", State.WARNING, f"{_WITHOUT}: {reason(error)}", "apt-get install xdp-tools")


def ethtool(place: Place) -> Verdict:
    """Is one there?"""
    return _program(place, "ethtool", "--version", "apt-get install ethtool")


def iproute2(place: Place) -> Verdict:
    """ip is installed. The daemon needs it to attach detached programs again."""
    return _program(place, "ip", "-V", "apt-get install iproute2")


def _program(place: Place, program: Program, option: str, advice: str) -> Verdict:
    name = "iproute2" if program == "ip" else program
    try:
        result = asyncio.run(Tools(place.state, timeout=_PATIENCE).read(program, option))
    except OSError as error:
        return Verdict(name, State.WARNING, f"{_WITHOUT}: {reason(error)}", advice)
    said = (result.output or result.complaint).strip().partition("\n")[0]
    return Verdict(name, State.OK, said or f"there is {program}")


def bpf_objects(place: Place) -> Verdict:
    """Ours and libxdp's."""
    from mtlshm.net.xdp import OBJECTS, find_object

    found = []
    for name in OBJECTS.values():
        try:
            found.append(find_object(name))
        except FileNotFoundError as error:
            return Verdict("bpf-objects", State.WARNING, f"{_WITHOUT}: {reason(error)}")
    where = ", ".join(sorted({str(path.parent) for path in found}))
    return Verdict("bpf-objects", State.OK, f"the XDP programs are in {where}")


def library(place: Place) -> Verdict:
    """The C library that other programs load has this version."""
    try:
        ctypes.CDLL(_LIBRARY)
    except OSError:
        return _not_loaded(place)
    maps = place.read("proc/self/maps") or ""
    found = re.search(r" (/\S*/libmtlshm\.so\.(\S+))$", maps, re.MULTILINE)
    ours = version("mtlshm")
    if found and not re.fullmatch(rf"{re.escape(ours)}\b.*", found[2]):
        text = f"{found[1]} is of another version than mtlshm-ctl, {ours}; two layouts share no segment"
        return Verdict("library", State.WARNING, text, "install both from the same sources")
    return Verdict("library", State.OK, f"C programs load {found[1] if found else _LIBRARY}")


def _not_loaded(place: Place) -> Verdict:
    triplet = sysconfig.get_config_var("MULTIARCH") or "."
    for directory in ("usr/local/lib", "usr/lib"):
        for path in (place.root / directory / _LIBRARY, place.root / directory / triplet / _LIBRARY):
            if path.exists():
                return Verdict("library", State.WARNING, f"{path} is not found by C programs", "ldconfig")
    return Verdict("library", State.OK, f"{_LIBRARY} is not installed; only C programs need it")
