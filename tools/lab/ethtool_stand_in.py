# SPDX-License-Identifier: BSD-3-Clause
"""A STAND-IN for ethtool, for what no driver on this host can do: combined channels and flow rules.

It is no NIC: nothing is steered. It keeps real state, one file for each device of a network namespace in the directory
$MTLSHM_ETHTOOL_STAND_IN, survives being killed as the kernel would (a change is there or it is not), and prints and
refuses as ethtool 6.1 does: a rule that the driver refuses is a line on standard error and exit status 0.

A device has what its file says, which the test writes; a device with no file can do nothing, as `lo`.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

DRIVER: dict[str, Any] = {
    "driver": "stand-in",
    "combined": 4,
    "rx": None,  # not available
    "ntuple": "on",
    "size": 16,  # locations
    "refuse": None,  # text of the errno with which rules are refused
    "stuck": False,  # deletes none
    "alter": False,  # keeps another port than it was told
    "chooses": None,  # the first of the locations that the driver chooses itself, and takes no other
    "mute": False,  # does not say which it has chosen
    "elsewhere": [],  # locations of another interface's, in a table for both
    "delay": 0.0,  # seconds before and after a change
    "rules": {},
}
TITLES = {
    "tcp4": "TCP over IPv4",
    "udp4": "UDP over IPv4",
    "sctp4": "SCTP over IPv4",
    "ah4": "IPSEC AH over IPv4",
    "esp4": "IPSEC ESP over IPv4",
    "ip4": "Raw IPv4",
    "tcp6": "TCP over IPv6",
    "udp6": "UDP over IPv6",
    "sctp6": "SCTP over IPv6",
    "ah6": "IPSEC AH over IPv6",
    "esp6": "IPSEC ESP over IPv6",
    "ip6": "Raw IPv6",
}


def path(device: str) -> Path:
    return Path(os.environ["MTLSHM_ETHTOOL_STAND_IN"], f"{os.stat('/proc/self/ns/net').st_ino}-{device}")


def say(*lines: str) -> None:
    print(*lines, sep="\n", file=sys.stderr)


class Device:
    def __init__(self, name: str, changes: bool) -> None:
        self.name = name
        self.path = path(name)
        if changes and self.path.exists():
            # Not under the lock: a program may be slow before and after what the kernel does for it at once.
            time.sleep(self.read()["delay"])
        self.lock = os.open(self.path.parent / f"{self.path.name}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.state: Any = self.read() if self.path.exists() else None

    def read(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self.path.read_text())
        return DRIVER | said

    def error(self) -> str | None:
        """Why the kernel does nothing for it, if so."""
        try:
            socket.if_nametoindex(self.name)
        except OSError:
            return "No such device"
        if self.state is None:
            return "Operation not supported"
        return None

    def rules_error(self) -> str | None:
        if self.error():
            return self.error()
        if self.state["ntuple"] != "on":
            return "Operation not supported"
        return None

    def change(self, rules: dict[str, dict[str, str]]) -> None:
        new = self.path.with_name(f"{self.path.name}.new")
        new.write_text(json.dumps(self.state | {"rules": rules}))
        new.rename(self.path)
        fcntl.flock(self.lock, fcntl.LOCK_UN)
        time.sleep(self.state["delay"])


def show_channels(device: Device) -> int:
    if error := device.error():
        if error == "No such device":
            say("netlink error: no device matches name (offset 24)")
        say(f"netlink error: {error}")
        return 1
    rx, combined = ("n/a" if device.state[name] is None else device.state[name] for name in ("rx", "combined"))
    print(f"Channel parameters for {device.name}:")
    for heading in ("Pre-set maximums:", "Current hardware settings:"):
        print(f"{heading}\nRX:\t\t{rx}\nTX:\t\t{rx}\nOther:\t\tn/a\nCombined:\t{combined}")
    return 0


def show_features(device: Device) -> int:
    state = device.state["ntuple"] if device.state else "off [fixed]"
    print(f"Features for {device.name}:\nrx-checksumming: on\nntuple-filters: {state}\nreceive-hashing: off [fixed]")
    return 0


def show_driver(device: Device) -> int:
    print(f"driver: {device.state['driver'] if device.state else 'veth'}\nversion: 1.0\nfirmware-version: ")
    return 0


def show_rules(device: Device, *which: str) -> int:
    error = device.rules_error()
    if which:
        number = which[1]
        if not error and number not in device.state["rules"]:
            error = "Invalid argument"
        if error:
            say(f"rxclass: Cannot get RX class rule: {error}", "Cannot get RX classification rule")
            return 1
        print_rule(number, device.state["rules"][number])
        return 0
    if error:
        say(f"rxclass: Cannot get RX class rule count: {error}", "RX classification rule retrieval failed")
        return 1
    rules = device.state["rules"]
    print(f"{(device.state['combined'] or 0) + (device.state['rx'] or 0)} RX rings available")
    print(f"Total {len(rules)} rules\n")
    for number in sorted(rules, key=int):
        print_rule(number, rules[number])
    return 0


def print_rule(number: str, rule: dict[str, str]) -> None:
    kind = rule["flow-type"]
    zero, ones = ("0.0.0.0", "255.255.255.255") if kind[-1] == "4" else ("::", str(ip_address(2**128 - 1)))
    print(f"Filter: {number}")
    print(f"\tRule Type: {TITLES[kind]}")
    for name, title in (("src-ip", "Src IP addr"), ("dst-ip", "Dest IP addr")):
        print(f"\t{title}: {rule[name]} mask: {zero}" if name in rule else f"\t{title}: {zero} mask: {ones}")
    print(f"\t{'TOS' if kind[-1] == '4' else 'Traffic Class'}: 0x0 mask: 0xff")
    if kind[:-1] in ("tcp", "udp", "sctp"):
        for name, title in (("src-port", "Src port"), ("dst-port", "Dest port")):
            print(f"\t{title}: {rule.get(name, 0)} mask: {'0x0' if name in rule else '0xffff'}")
    elif kind[:-1] == "ip":
        print("\tProtocol: 0 mask: 0xff\n\tL4 bytes: 0x0 mask: 0xffffffff")
    else:
        print("\tSPI: 0 mask: 0xffffffff")
    action = int(rule["action"])
    print("\tAction: Drop\n" if action < 0 else f"\tAction: Direct to queue {action}\n")


def change_rules(device: Device, *words: str) -> int:
    if words[0] == "delete":
        error = device.rules_error() or (None if words[1] in device.state["rules"] else "Invalid argument")
        if device.state and device.state["stuck"]:
            error = "Device or resource busy"
        if error:
            say(f"rmgr: Cannot delete RX class rule: {error}", "Cannot delete classification rule")
            return 1
        device.change({number: rule for number, rule in device.state["rules"].items() if number != words[1]})
        return 0
    rule = dict(zip(words[::2], words[1::2], strict=True))
    location = rule.pop("loc", None)
    error = device.rules_error()
    chooses = device.state and device.state["chooses"] is not None
    if location is None:
        if error:
            say(f"rxclass: Cannot get RX class rule count: {error}", "Cannot insert classification rule")
            return 1
        first = device.state["chooses"] if chooses else 0
        free = [n for n in range(first, first + device.state["size"]) if str(n) not in device.state["rules"]]
        if not free:
            say("rmgr: Cannot find appropriate slot to insert rule", "Cannot insert classification rule")
            return 1
        location = str(free[0 if chooses else -1])
        chosen = not device.state["mute"]
    else:
        chosen = False
        if chooses:
            error = error or "Invalid argument"
    queues = (device.state["combined"] or 0) + (device.state["rx"] or 0) if device.state else 0
    beyond = not chooses and device.state and int(location) >= device.state["size"]
    if not error and (beyond or int(rule["action"]) >= queues or int(location) in device.state["elsewhere"]):
        error = "Invalid argument"
    if error := error or device.state["refuse"]:
        say(f"rmgr: Cannot insert RX class rule: {error}")
        return 0  # as the real one
    if device.state["alter"]:
        rule["dst-port"] = "1"
    device.change(device.state["rules"] | {location: rule})
    if chosen:
        print(f"Added rule with ID {location}")
    return 0


def main(option: str, name: str = "", *words: str) -> int:
    if option == "--version":
        print("ethtool version 6.1 (a stand-in)")
        return 0
    commands: dict[str, Callable[..., int]] = {
        "-l": show_channels,
        "-k": show_features,
        "-i": show_driver,
        "-n": show_rules,
        "-N": change_rules,
    }
    return commands[option](Device(name, option == "-N"), *words)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
