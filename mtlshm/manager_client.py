# SPDX-License-Identifier: BSD-3-Clause
"""A client of the manager socket, as libmtl is one: for tests, for `mtlshm-ctl ping`, and for programs without libmtl.

    with Manager() as manager:
        manager.register()
        manager.get_lcore(3)

Lcores got here are the process's until it gives them back, closes the connection or dies. Programs that can map the
table do better with mtlshm.Host.
"""

from __future__ import annotations

import os
import socket
import time
from errno import ENOENT
from types import TracebackType

from mtlshm import config, wire
from mtlshm.wire import Dialect, Type

SYSTEM_SOCKET = "/var/run/imtl/mtl_manager.sock"


def default_socket() -> str:
    """Where clients find the manager: $MTL_MANAGER_SOCK_PATH, else `socket` in the settings file (see mtlshm.config),
    else a user's own socket if there is one, else /var/run/imtl/mtl_manager.sock.

    FileNotFoundError if the settings file says that there is none.
    """
    if path := os.environ.get("MTL_MANAGER_SOCK_PATH"):
        return path
    if (configured := config.configured("socket")) is not None:
        if not configured:
            raise FileNotFoundError(ENOENT, f"no manager socket is served: socket is empty in {config.file()}")
        return configured
    own = served_socket()
    return own if os.path.exists(own) else SYSTEM_SOCKET


def served_socket() -> str:
    """Where a daemon of this user serves by default, and libmtl of protocol 1.1 looks for it."""
    if os.geteuid() == 0:
        return SYSTEM_SOCKET
    directory = os.environ.get("XDG_RUNTIME_DIR")
    return f"{directory}/imtl/mtl_manager.sock" if directory else f"/tmp/imtl-{os.geteuid()}/mtl_manager.sock"


class Manager:
    """One connection, blocking. Methods raise OSError with the errno that the manager answered."""

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, dialect: Dialect = Dialect.B, timeout: float | None = None
    ) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._dialect = dialect
        try:
            self.socket.settimeout(timeout)
            self.socket.connect(default_socket() if path is None else os.fspath(path))
        except BaseException:
            self.socket.close()
            raise

    def register(self, interfaces: tuple[int, ...] = ()) -> None:
        """Say who we are; needed before anything but heartbeat()."""
        body = wire.Register(os.getpid(), os.getuid(), socket.gethostname(), interfaces, self._dialect)
        self._call(Type.REGISTER, body, Type.RESPONSE)

    def heartbeat(self, seq: int = 0) -> int:
        """Ask whether the manager is there; returns the number that was sent."""
        kind, answer = self.exchange(wire.encode(Type.HEARTBEAT, wire.Heartbeat(seq), self._dialect))
        if kind != Type.HEARTBEAT_ACK or not isinstance(answer, wire.Response):
            raise ConnectionError(f"an answer of type {kind} to a heartbeat")
        return answer.value & 0xFFFFFFFF

    def get_lcore(self, lcore: int) -> None:
        """Claim one; EBUSY if anybody holds it."""
        self._call(Type.GET_LCORE, wire.Lcore(lcore), Type.RESPONSE)

    def put_lcore(self, lcore: int) -> None:
        """Give one back; EINVAL if it was not got here."""
        self._call(Type.PUT_LCORE, wire.Lcore(lcore), Type.RESPONSE)

    def add_filter(self, ifindex: int, port: int) -> None:
        """Let UDP packets to the port through to AF_XDP."""
        self._call(Type.ADD_UDP_DP_FILTER, wire.Filter(ifindex, port), Type.RESPONSE)

    def del_filter(self, ifindex: int, port: int) -> None:
        """Take back one add_filter() of ours; EINVAL if there is none."""
        self._call(Type.DEL_UDP_DP_FILTER, wire.Filter(ifindex, port), Type.RESPONSE)

    def xsk_map_fd(self, ifindex: int) -> int | None:
        """The descriptor that the manager hands out, if it does."""
        self.socket.sendall(wire.encode(Type.IF_XSK_MAP_FD, wire.Interface(ifindex), self._dialect))
        data, descriptors, _, _ = socket.recv_fds(self.socket, 1, 1)
        if not data:
            raise ConnectionError("the manager closed the connection")
        return descriptors[0] if descriptors else None

    def get_queue(self, ifindex: int) -> int:
        """Claim the lowest free queue, 1 or more, of an interface named in register(); ENOSPC if none is free."""
        return self._call(Type.IF_GET_QUEUE, wire.Interface(ifindex), Type.IF_QUEUE_ID)

    def put_queue(self, ifindex: int, queue: int) -> None:
        """Give a queue back; EINVAL if it is not ours, EBUSY while flow rules of ours lead to it."""
        self._call(Type.IF_PUT_QUEUE, wire.Interface(ifindex, queue), Type.RESPONSE)

    def add_flow(self, flow: wire.Interface) -> int:
        """Returns the location of the rule."""
        return self._call(Type.IF_ADD_FLOW, flow, Type.IF_FLOW_ID)

    def del_flow(self, ifindex: int, flow_id: int) -> None:
        """Delete a rule by its location, as add_flow() returned it; EINVAL if it is not ours."""
        self._call(Type.IF_DEL_FLOW, wire.Interface(ifindex, flow_id=flow_id), Type.RESPONSE)

    def open_xsk(self, request: wire.OpenXsk) -> tuple[wire.Xsk, int, int]:
        """A queue, an AF_XDP socket bound to it, and the memfd of its UMEM; the descriptors are the caller's."""
        self.socket.sendall(wire.encode(Type.OPEN_XSK, request, self._dialect))
        data, descriptors, _, _ = socket.recv_fds(self.socket, wire.SIZE, 2)
        kind, answer = wire.decode(data)
        if isinstance(answer, wire.Xsk) and answer.value > 0 and len(descriptors) == 2:
            return answer, descriptors[0], descriptors[1]
        for descriptor in descriptors:
            os.close(descriptor)
        value = getattr(answer, "value", 0)
        if value >= 0:
            raise ConnectionError(f"an answer of type {kind} to {Type.OPEN_XSK.name}")
        raise OSError(-value, f"{Type.OPEN_XSK.name}: {os.strerror(-value)}")

    def exchange(self, record: bytes) -> tuple[int, wire.Body]:
        """Send what may be a record, and return the next one that comes."""
        self.socket.sendall(record)
        return self.receive()

    def receive(self) -> tuple[int, wire.Body]:
        """The next record that comes, whole before the time-out."""
        timeout = self.socket.gettimeout()
        deadline = None if timeout is None else time.monotonic() + timeout
        data = b""
        try:
            while len(data) < wire.SIZE:
                if data and deadline is not None:  # or whoever is there could send a byte now and then for ever
                    self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
                piece = self.socket.recv(wire.SIZE - len(data))
                if not piece:
                    raise ConnectionError("the manager closed the connection")
                data += piece
        finally:
            if self.socket.gettimeout() != timeout:
                self.socket.settimeout(timeout)
        return wire.decode(data)

    def _call(self, kind: Type, body: wire.Body, expected: Type) -> int:
        got, answer = self.exchange(wire.encode(kind, body, self._dialect))
        if got != expected or not isinstance(answer, wire.Response):
            raise ConnectionError(f"an answer of type {got} to {kind.name}")
        if answer.value < 0:
            raise OSError(-answer.value, f"{kind.name}: {os.strerror(-answer.value)}")
        return answer.value

    def close(self) -> None:
        """Close the connection: the manager takes back all that was got through it. Idempotent."""
        self.socket.close()

    def __enter__(self) -> Manager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
