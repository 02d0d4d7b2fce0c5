# SPDX-License-Identifier: BSD-3-Clause
"""Nonsense for whoever reads text: the configuration file, what ethtool prints, lists of lcores, records of the wire.

Each takes anything and says either what it is or, in the way it promises, that it is nothing; and takes no longer than
what its length explains.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

RECORDED = Path(__file__).resolve().parents[2] / "tests/net/recorded"
_LONGEST = 5  # seconds of CPU time for one text

_CONFIG = """# a good one
segment = "/run/imtl/mtlshm"
log_level = 'debug'
socket_mode = "0660"
legacy = "4-7"
umem_limit = "256"
"""
_LISTS = ["0-3,8", "4-4", "1", "0-1023", "off", "", "7,6,5", "0-9999999999999999999"]


class Wrong(Exception):
    """What a reader may not do."""


class _Slow(BaseException):
    pass


def _config(directory: Path, text: bytes) -> None:
    from mtlshm import config

    file = directory / "mtlshmd.toml"
    file.write_bytes(text)
    try:
        settings = config.read(file, ("segment", "log_level", "socket_mode", "legacy", "umem_limit"))
    except config.ConfigError:
        return
    assert all(isinstance(value, str) for value in settings.values())


def _channels(_: Path, text: bytes) -> None:
    from mtlshm.net import ethtool

    number = ethtool.channels(text.decode(errors="replace"))
    assert number is None or number >= 0


def _rules(_: Path, text: bytes) -> None:
    from mtlshm.net import ethtool

    found = ethtool.rules(text.decode(errors="replace"))
    assert found is None or all(isinstance(rule, ethtool.Rule) for rule in found.values())


def _lcores(_: Path, text: bytes) -> None:
    from mtlshm.legacy import lending

    with suppress(ValueError):
        lending.parse(text.decode(errors="replace"))


def _wire(_: Path, text: bytes) -> None:
    from mtlshm import wire

    record = text[: wire.SIZE].ljust(wire.SIZE, b"\0")
    for dialect in wire.Dialect:
        try:
            kind, body = wire.decode(record, dialect)
        except wire.BadMagic:
            continue
        if body is not None and not isinstance(body, wire.TooManyInterfaces | wire.Register | wire.OpenXsk):
            again = wire.decode(wire.encode(kind, body, dialect), dialect)
            assert again == (kind, body), f"{body} was read again as {again[1]}"


def _recorded(option: str) -> list[bytes]:
    """What the tests have of real output of `ethtool OPTION`."""
    found = []
    for file in sorted(RECORDED.glob("*.json")):
        for one in json.loads(file.read_text())["records"]:
            if f" {option} " in one["command"] and not one["status"]:
                found.append(one["output"].encode())
    if not found:
        raise SystemExit(f"no recorded output of ethtool {option} in {RECORDED}")
    return found


def _records() -> list[bytes]:
    from proof.fuzz_socket import real_requests

    return [record.ljust(118, b"\0") for record in real_requests(3)]


READERS: dict[str, tuple[Callable[[Path, bytes], None], Callable[[], list[bytes]]]] = {
    "config": (_config, lambda: [_CONFIG.encode(), b"legacy = [[[4]]]\n"]),
    "channels": (_channels, lambda: _recorded("-l")),
    "rules": (_rules, lambda: _recorded("-n")),
    "lcores": (_lcores, lambda: [text.encode() for text in _LISTS]),
    "wire": (_wire, _records),
}


def mutate(text: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """Another text, near to this one or not."""
    data = bytearray(text)
    for _ in range(chance.choice([1, 1, 2, 5, 30])):
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + chance.choice([1, 2, 8, 64]))
        match chance.randrange(7):
            case 0:
                data[at:end] = chance.randbytes(chance.randrange(9))
            case 1:
                del data[at:end]
            case 2:
                data[at:at] = data[at:end] * chance.choice([1, 2, 100])
            case 3:
                other = chance.choice(others)
                cut = chance.randrange(len(other) + 1)
                data[at:] = other[cut:]
            case 4:
                digits = chance.choice(
                    [b"0", b"-1", b"65536", b"18446744073709551616", b"9" * 5000, b"n/a", b"\xc2\xb2"]
                )
                data[at:end] = digits
            case 5:
                nested = chance.choice(
                    [b"[", b"{", b"a.", b'"', b"\n", b"\0", b"Filter: 1\n", b": ", b" mask: ", b"\xff"]
                )
                data[at:at] = nested * chance.choice([1, 3, 3000])
            case 6:
                lines = data.split(b"\n")
                chance.shuffle(lines)
                data = bytearray(b"\n".join(lines))
    return bytes(data[:200_000])


def fuzz(directory: Path, seconds: float, seed: int, names: tuple[str, ...] = ()) -> dict[str, Any]:
    """How many texts each reader was given; raises Wrong."""
    directory.mkdir()
    chance = random.Random(seed)
    counts = {}
    names = names or tuple(READERS)

    def slow(_: int, __: FrameType | None) -> None:
        raise _Slow

    before = signal.signal(signal.SIGPROF, slow)
    try:
        for name in names:
            read, samples = READERS[name]
            corpus = samples()
            until = time.process_time() + seconds / len(names)
            counts[name] = 0
            while time.process_time() < until:
                text = mutate(chance.choice(corpus), corpus, chance)
                counts[name] += 1
                signal.setitimer(signal.ITIMER_PROF, _LONGEST)
                try:
                    read(directory, text)
                except (Exception, _Slow) as error:
                    signal.setitimer(signal.ITIMER_PROF, 0)
                    sample = directory / f"{name}.sample"
                    sample.write_bytes(text)
                    short = text if len(text) < 500 else text[:500] + b"..."
                    raise Wrong(f"{name}: {error!r} for {short!r}") from error
                finally:
                    signal.setitimer(signal.ITIMER_PROF, 0)
    finally:
        signal.signal(signal.SIGPROF, before)
    return counts


def main() -> None:
    """Arguments: package, directory, seconds, seed. Prints the figures, or what is wrong."""
    _, directory, seconds, seed = sys.argv[1:]
    try:
        print(json.dumps({"figures": fuzz(Path(directory), float(seconds), int(seed))}))
    except Wrong as wrong:
        print(json.dumps({"wrong": str(wrong)}))


if __name__ == "__main__":
    main()
