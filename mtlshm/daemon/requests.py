# SPDX-License-Identifier: BSD-3-Clause
"""The table of request types at the manager socket, and what answers each.

REQUESTS is the only place where the type of a request decides anything. The bytes are in wire.py; what a client has is
in its session (session.py); what its interfaces have is in interfaces.py.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple

from mtlshm import wire
from mtlshm.daemon.counts import COUNTS, UNKNOWN
from mtlshm.daemon.process import Client
from mtlshm.daemon.reply import Reply, response
from mtlshm.daemon.session import Session
from mtlshm.wire import Dialect, Type

if TYPE_CHECKING:
    from mtlshm.daemon.interfaces import Interfaces

_Value = int | Reply  # 0, an id, or a negative errno


class Request(NamedTuple):
    """A type of request: the function that answers it, and the type of the reply. Slow answers are coroutines."""

    answer: Callable[[Session, Any], _Value | Coroutine[Any, Any, _Value]]
    reply: int = int(Type.RESPONSE)


def answer(session: Session, record: bytes) -> Reply | Coroutine[Any, Any, Reply]:
    """A whole record's reply, or the work that leads to it, which raises nothing. Raises wire.BadMagic."""
    kind, body = wire.lcore_request(record) or wire.decode(record, session.dialect or Dialect.A)
    request = REQUESTS.get(kind, _UNKNOWN)
    value = request.answer(session, body)
    if isinstance(value, (int, Reply)):
        return _counted(kind, request, value)
    return _reply_later(session, kind, request, value)


async def _reply_later(session: Session, kind: int, request: Request, work: Awaitable[_Value]) -> Reply:
    """Awaits the work and makes a reply of the result, or of the error."""
    try:
        value = await work
    except OSError as error:
        session.warn_failed(Type(kind).name, error)
        value = -(error.errno or errno.EIO)
    except Exception:
        session.warn_broken(Type(kind).name)
        value = -errno.EIO
    return _counted(kind, request, value)


def _counted(kind: int, request: Request, value: _Value) -> Reply:
    """Its reply. A reply that is more than a number is one that says yes."""
    COUNTS.request(UNKNOWN if request is _UNKNOWN else kind, value if isinstance(value, int) else 0)
    return response(request.reply, value) if isinstance(value, int) else value


def _served(
    ask: Callable[[Interfaces, Client, Any], Awaitable[int]],
    reply: int = int(Type.RESPONSE),
    unserved: int = errno.ENODEV,
) -> Request:
    """A request about an interface that a client named in its REGISTER. Nothing is started for it."""

    async def work(session: Session, client: Client, body: wire.Filter | wire.Interface) -> int:
        served = await session.interfaces.now()
        if served is None or not served.in_use(body.ifindex):
            text = f"interface {body.ifindex} is in use by no client; name it in REGISTER first"
            raise OSError(unserved, text)
        return await ask(served, client, body)

    def answer_registered(session: Session, body: wire.Filter | wire.Interface) -> int | Coroutine[Any, Any, int]:
        return work(session, session.client, body) if session.client else -errno.EPERM

    return Request(answer_registered, reply)


def _heartbeat(_: Session, body: wire.Heartbeat) -> Reply:
    return Reply(wire.encode(Type.HEARTBEAT_ACK, body))


_UNKNOWN = Request(lambda _session, _body: -errno.ENOTSUP)

REQUESTS: dict[int, Request] = {
    Type.REGISTER: Request(Session.register),
    Type.HEARTBEAT: Request(_heartbeat),
    Type.GET_LCORE: Request(Session.get),
    Type.PUT_LCORE: Request(Session.put),
    Type.IF_XSK_MAP_FD: Request(Session.map_of),
    Type.OPEN_XSK: Request(Session.open_xsk, int(Type.XSK)),
    Type.ADD_UDP_DP_FILTER: _served(lambda interfaces, *asked: interfaces.add_port(*asked)),
    Type.DEL_UDP_DP_FILTER: _served(lambda interfaces, *asked: interfaces.drop_port(*asked)),
    Type.IF_GET_QUEUE: _served(lambda interfaces, *asked: interfaces.claim_queue(*asked), int(Type.IF_QUEUE_ID)),
    Type.IF_PUT_QUEUE: _served(lambda interfaces, *asked: interfaces.put_queue(*asked)),
    Type.IF_ADD_FLOW: _served(lambda interfaces, *asked: interfaces.add_flow(*asked), int(Type.IF_FLOW_ID)),
    Type.IF_DEL_FLOW: _served(lambda interfaces, *asked: interfaces.delete_flow(*asked), unserved=errno.EINVAL),
}
