# SPDX-License-Identifier: BSD-3-Clause
"""Nonsense for the manager socket of a real daemon, which must answer each well-framed request, and stay as it was.

Each connection's records are sent split and joined at random; how many answers of which kind are due is known, whatever
is in the records. In between processes that hold lcores die, and this one claims and releases directly what its clients
ask for. At the end nothing of it may be left.

Twice: once with no interfaces, so that very much is asked; and, by root, once with a real one, in a network
namespace of its own, where the answers take their time.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from lab import networks
from proof.proof import ROOT

if TYPE_CHECKING:
    from mtlshm import Instance

_SIZE = 118
_MAGIC = bytes.fromhex("494d544c")
_PATIENCE = 120.0  # seconds, after which a request counts as not answered
_MOST = 40  # connections at once,
_MOST_AT_INTERFACE = 6  # if each request there may run a program
_QUEUES = 64  # more than they can all have
_VM = b"vm".ljust(64, b"\0")


def real_requests(ifindex: int) -> list[bytes]:
    """What a real libmtl sends, up to the end of the body; and what asks for a socket."""
    number = f"{ifindex:08x}"
    texts = (
        f"494d544c 00000065 6a000000 00005dfa 00000000 {_VM.hex()} 0000",
        f"494d544c 00000065 0000006a 00005dfa 00000000 {_VM.hex()} 0000",
        f"494d544c 00000065 6a000000 00001d7e 00000000 {_VM.hex()} 0001 {number}",
        "494d544c 00000066 00000004 00000001",
        "494d544c 00000067 00000002 0001",
        "494d544c 00000068 02000000 0001",
        f"494d544c 00000069 00000006 {number} 7530",
        f"494d544c 0000006a 00000006 {number} 7530",
        f"494d544c 0000006b 0000001a {number}",
        f"494d544c 0000006c 0000001a {number}",
        f"494d544c 0000006d 0000001a {number} 0001",
        f"494d544c 0000006e 0000001a {number} 0001 00000000 00000002 024da8c0 014da8c0 0000 7530",
        f"494d544c 0000006f 0000001a {number} c832 0000000f",
        f"494d544c 000003e9 00000000 {number} {bytes(16).hex()} 00000800 00000010 00000008 00000008 00000008 00000000",
    )
    return [bytes.fromhex(text.replace(" ", "")) for text in texts]


_HEARTBEAT, _XSK_MAP_FD, _GET_QUEUE, _OPEN_XSK = 102, 107, 108, 1001
_ANSWERS = {_HEARTBEAT: 204, _GET_QUEUE: 202, 110: 203, _OPEN_XSK: 1201}  # all others: 201

# What may be more at the end than when all had been done once.
_DESCRIPTORS, _KILOBYTES = 2, 4096


class Wrong(Exception):
    """What the daemon may not do."""


class Client:
    """A connection, and what is still to come on it."""

    def __init__(self, path: Path, chance: random.Random, real: list[bytes]) -> None:
        self._chance = chance
        self._real = real
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))
        self.socket.setblocking(False)
        self.due: list[bytes] = []  # requests not yet answered
        self.granted = 0  # of what there is of interfaces
        self._unsent = b""
        self._got = b""
        self._closes = False  # what was sent last is no record

    def ask(self) -> int:
        """Make up some requests; returns how many."""
        chance = self._chance
        count = chance.choice([1, 1, 1, 2, 5, 50])
        for _ in range(count):
            record = self._record()
            self._unsent += record
            self.due.append(record)
        if chance.random() < 0.02:
            self._unsent += chance.choice([chance.randbytes(_SIZE), b"\0" * _SIZE, b"GET / HTTP/1.0\r\n".ljust(_SIZE)])
            self._closes = True
        elif chance.random() < 0.1:
            self._unsent += self._record()[: chance.randrange(_SIZE)]  # half a record, and then the end
            self._closes = True
        return count

    def _record(self) -> bytes:
        """A real one, changed more or less, but its magic."""
        chance = self._chance
        record = bytearray(chance.choice(self._real).ljust(_SIZE, b"\0"))
        if chance.random() < 0.3:
            record[4:8] = struct.pack(
                ">I", chance.choice([0, 100, 105, 112, 200, 201, 204, 1001, 1201, 54321, 2**32 - 1])
            )
        for _ in range(chance.choice([0, 1, 1, 3, 20])):
            at = chance.randrange(8, _SIZE)
            width = chance.choice([1, 2, 4])
            edges = [0, 1, 7, 8, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), chance.randrange(2 ** (8 * width))]
            record[at : at + width] = chance.choice(edges).to_bytes(width, "big")
        return bytes(record[:_SIZE])

    def send_some(self) -> None:
        size = self._chance.choice([1, 11, 12, 13, _SIZE - 1, _SIZE, _SIZE + 1, 10 * _SIZE, 10**6])
        try:
            sent = self.socket.send(self._unsent[:size], socket.MSG_NOSIGNAL)
            self._unsent = self._unsent[sent:]
        except BlockingIOError:
            pass
        except ConnectionError as error:
            if not self._closes:
                raise Wrong(f"closed amid requests: {error}") from error
            self._unsent = b""  # it has read what is no record

    def read(self) -> None:
        """Take what has come, and compare it with what is due."""
        while self.due:
            request = self.due[0]
            kind = int.from_bytes(request[4:8], "big")
            size = 1 if kind == _XSK_MAP_FD else _SIZE
            try:
                data, descriptors, _, _ = socket.recv_fds(self.socket, size - len(self._got), 4)
            except BlockingIOError:
                return
            except ConnectionError as error:
                raise Wrong(f"closed without an answer to {request.hex()}: {error}") from error
            for fd in descriptors:
                os.close(fd)
            if not data:
                raise Wrong(f"closed without an answer to {request.hex()}")
            self._got += data
            if len(self._got) == size:
                self._compare(request, kind)
                self._got = b""
                del self.due[0]

    def _compare(self, request: bytes, kind: int) -> None:
        if kind == _XSK_MAP_FD:
            return
        wanted = _MAGIC + _ANSWERS.get(kind, 201).to_bytes(4, "big")
        if self._got[:8] != wanted:
            raise Wrong(f"{request.hex()} was answered with {self._got.hex()}")
        if kind in (_GET_QUEUE, _OPEN_XSK) and int.from_bytes(self._got[12:16], "big", signed=True) > 0:
            self.granted += 1
        if kind == _HEARTBEAT and self._got[12:16] != request[12:16]:
            raise Wrong(f"the heartbeat {request.hex()} was answered with {self._got.hex()}")

    @property
    def may_ask(self) -> bool:
        return not self._unsent and not self._closes and len(self.due) < 200

    @property
    def finished(self) -> bool:
        return self._closes and not self.due and not self._unsent

    def finish(self) -> None:
        """Send and read all; TimeoutError is a Wrong."""
        deadline = time.monotonic() + _PATIENCE
        while self._unsent or self.due:
            if self._unsent:
                self.send_some()
            self.read()
            if self.due and not self._unsent:
                select.select([self.socket], [], [], 0.1)
            if time.monotonic() > deadline:
                raise Wrong(f"no answer to {self.due[0].hex() if self.due else 'what is not even read'}")


class Daemon:
    """mtlshmd, of the package in `package`, in a directory of its own."""

    def __init__(self, package: Path, directory: Path, xdp: str) -> None:
        directory.mkdir(parents=True)
        self.state = directory / "state"
        self.pins = Path("/sys/fs/bpf/mtlshm")  # of the sandbox
        self.socket = directory / "s"
        self.segment = directory / "segment"
        self.log = directory / "log"
        settings = {
            "PYTHONPATH": str(package),
            "MTLSHMD_CONFIG": os.devnull,
            "MTLSHM_PATH": str(self.segment),
            "MTLSHM_BPF_PATH": str(ROOT / "build/bpf"),
        }
        flags = {"socket": self.socket, "xdp": xdp, "legacy": "off", "log-level": "error", "state": self.state}
        command = [sys.executable, "-P", "-c", "from mtlshm.daemon.app import main; main()", "--pins", str(self.pins)]
        command += [f"--{name}={value}" for name, value in flags.items()]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=os.environ | settings, stderr=log, stdin=subprocess.DEVNULL)
        self.watched = psutil.Process(self.process.pid)
        deadline = time.monotonic() + _PATIENCE
        while not self.socket.exists() or not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Wrong(f"the daemon does not start: {self.log.read_text()}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, suppress(OSError):
            probe.connect(str(self.socket))
            return True
        return False

    def check(self) -> None:
        if (status := self.process.poll()) is not None:
            raise Wrong(f"the daemon ended, with {status}: {self.log.read_text()[-2000:]}")
        if "Traceback" in (said := self.log.read_text()):
            raise Wrong(f"the daemon stumbled: {said[-2000:]}")

    def spent(self) -> float:
        """Seconds of CPU time, ours and its. (Once it was ours alone, and where each answer takes the daemon long, a
        minute took ten.)"""
        its = ~self.process.pid << 3 | 2  # its clock, by clock_getcpuclockid(3)
        with suppress(OSError):  # it has ended; check() says so
            return time.process_time() + time.clock_gettime(its)
        return time.process_time()

    def used(self) -> tuple[int, int]:
        """Descriptors, and kilobytes."""
        return self.watched.num_fds(), self.watched.memory_info().rss // 1024

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _victim(path: Path, ifindex: int) -> int:
    """A process that has registered and holds lcores, and keeps asking for sockets if there is an interface; returns
    its PID."""
    readable, writable = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as mine:
                mine.connect(str(path))
                requests = [record.ljust(_SIZE, b"\0") for record in real_requests(ifindex)]
                _ask(mine, requests[2] if ifindex else requests[0])
                for lcore in range(60, 64):
                    _ask(mine, requests[4][:13] + bytes([lcore]) + requests[4][14:])
                os.write(writable, b"x")
                while ifindex:
                    queue = _ask(mine, requests[13])
                    _ask(mine, requests[10][:16] + queue.to_bytes(2, "big") + requests[10][18:])
                signal.pause()
        finally:
            os._exit(1)
    os.close(writable)
    os.read(readable, 1)
    os.close(readable)
    return pid


def _ask(manager: socket.socket, record: bytes) -> int:
    """What the answer says; 0 instead of what is wrong."""
    manager.sendall(record)
    answer, descriptors, _, _ = socket.recv_fds(manager, _SIZE, 2)
    for fd in descriptors:
        os.close(fd)
    return max(0, int.from_bytes(answer[12:16], "big", signed=True))


def _round(
    daemon: Daemon, chance: random.Random, until: float, ifindex: int, claim: Callable[[], None]
) -> tuple[int, int]:
    """Do things at random, then end all there is; returns how many requests there were, and what was granted of an
    interface."""
    clients: list[Client] = []
    victims: list[int] = []
    asked = granted = 0
    real, most = real_requests(ifindex or 3), _MOST_AT_INTERFACE if ifindex else _MOST
    try:
        while daemon.spent() < until:
            if len(clients) < most and chance.random() < 0.1:
                clients.append(Client(daemon.socket, chance, real))
            if len(victims) < 4 and chance.random() < 0.005:
                victims.append(_victim(daemon.socket, ifindex))
            if chance.random() < 0.01:
                claim()
            if victims and chance.random() < 0.005:
                os.kill(victims[0], signal.SIGKILL)
                os.waitpid(victims.pop(0), 0)
            if not clients:
                continue
            client = chance.choice(clients)
            if client.finished or chance.random() < 0.01:
                if chance.random() < 0.5:  # else it goes with requests unanswered
                    client.finish()
                if chance.random() < 0.3:
                    with suppress(OSError):
                        client.socket.shutdown(chance.choice([socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR]))
                client.socket.close()
                clients.remove(client)
                granted += client.granted
                continue
            if client.may_ask:
                asked += client.ask()
            client.send_some()
            client.read()
        for client in clients:
            client.finish()
    finally:
        for client in clients:
            client.socket.close()
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return asked, granted + sum(client.granted for client in clients)


def _is_clean(daemon: Daemon) -> bool:
    from mtlshm import Host, Kind
    from mtlshm.net.ledger import Ledger

    with Host(daemon.segment, create=False, read_only=True) as host:
        snapshot = host.snapshot()
        if snapshot.lcores or any(info.kind == Kind.SOCKET for info in snapshot.instances):
            return False
    if not (daemon.state / "ledger").exists():
        return True
    with Ledger(daemon.state, read_only=True) as ledger:
        if any(astuple(ledger.state())):
            return False
    # Nor is anything still being unloaded, or a socket held; the observer and the opener stay a while.
    with suppress(psutil.NoSuchProcess):  # one ends this moment
        direct = daemon.watched.children()
        everyone = daemon.watched.children(recursive=True)
        children = [child for child in everyone if child not in direct or "-I" not in child.cmdline()]
        return not any(daemon.pins.glob("*")) and not children
    return False


def _claim_or_release(direct: Instance) -> None:
    """What clients of this process ask for most, and may have: then it is not ours to release."""
    from mtlshm import MtlshmError

    with suppress(MtlshmError):
        if 1 in direct.lcores:
            direct.release(1)
        else:
            direct.claim(1)


def fuzz(package: Path, directory: Path, seconds: float, seed: int, ifindex: int) -> dict[str, Any]:
    """Figures; raises Wrong. With an interface, unless its index is 0."""
    from mtlshm import Host

    chance = random.Random(seed)
    daemon = Daemon(package, directory, "fused" if ifindex else "off")
    begin = daemon.spent()
    asked, granted, rounds, before = 0, 0, 0, (0, 0)
    host = Host(daemon.segment, create=False)
    direct = host.register("fuzz", cpus=range(64))
    claim = partial(_claim_or_release, direct)
    try:
        while rounds < 3 or daemon.spent() < begin + seconds:
            more = _round(daemon, chance, daemon.spent() + max(0.5, seconds / 6), ifindex, claim)
            asked, granted = asked + more[0], granted + more[1]
            daemon.check()
            deadline = time.monotonic() + _PATIENCE
            while direct.release_all() or not _is_clean(daemon):
                if time.monotonic() > deadline:
                    raise Wrong("what clients had is not given back after they went")
                time.sleep(0.01)
            rounds += 1
            if rounds == 2:  # by now it has done everything once
                before = daemon.used()
        after = daemon.used()
        for what, had, has, limit in zip(
            ("descriptors", "KiB of memory"), before, after, (_DESCRIPTORS, _KILOBYTES), strict=True
        ):
            if has > had + limit:
                raise Wrong(f"it had {had} {what} after two rounds, and {has} after {rounds}")
    finally:
        host.close()
        daemon.end()
    if "Traceback" in (said := daemon.log.read_text()):  # when it stopped
        raise Wrong(f"the daemon stumbled: {said[-2000:]}")
    used = {"descriptors": [before[0], after[0]], "kib": [before[1], after[1]]}
    return {"requests": asked, "granted": granted, "rounds": rounds, **used}


def fuzz_all(package: Path, directory: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Figures; raises Wrong."""
    figures = fuzz(package, directory / "alone", seconds / 2, seed, 0)
    if os.geteuid() == 0:
        with networks.sandbox(), networks.veth(queues=_QUEUES) as link:
            figures["at an interface"] = fuzz(package, directory / "interface", seconds / 2, seed, link.index)
    return figures


def main() -> None:
    """Arguments: package, directory, seconds, seed. Prints the figures, or what is wrong."""
    package, directory, seconds, seed = sys.argv[1:]
    try:
        print(json.dumps({"figures": fuzz_all(Path(package), Path(directory), float(seconds), int(seed))}))
    except Wrong as wrong:
        print(json.dumps({"wrong": str(wrong)}))


if __name__ == "__main__":
    main()
