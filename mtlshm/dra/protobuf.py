# SPDX-License-Identifier: BSD-3-Clause
"""Protocol buffers, as much of them as kubelet's interfaces use: encoded and decoded by tables.

A message is a dataclass whose fields name their numbers. By hand rather than with a package, since the packages cost
more memory than all the rest of this program.

What comes in may be anything. Fields that are not known are skipped, as the format wants it; bytes that are no message
raise ValueError.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache
from typing import Any, TypeVar

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_MOST_VARINT = 10  # bytes
_KEY, _VALUE = 1, 2  # fields of a map's entry

_Message = TypeVar("_Message")


class _Shape(Enum):
    NUMBER = auto()  # 64 bits with a sign, an enumeration, or a truth value
    TEXT = auto()
    TEXTS = auto()
    MESSAGE = auto()
    MESSAGES = auto()
    MAP = auto()  # from text to messages


@dataclass(frozen=True, slots=True)
class _Field:
    number: int
    shape: _Shape
    type: Any = None  # of a number, or of messages


def number(field: int, type: type[int] = int) -> Any:
    """A number, 0 if it is missing."""
    return _declared(_Field(field, _Shape.NUMBER, type), default=type(0))


def text(field: int) -> Any:
    """A text, empty if it is missing."""
    return _declared(_Field(field, _Shape.TEXT), default="")


def texts(field: int) -> Any:
    """Repeated text."""
    return _declared(_Field(field, _Shape.TEXTS), default_factory=list)


def message(field: int, type: type[Any]) -> Any:
    """A message, an empty one if it is missing."""
    return _declared(_Field(field, _Shape.MESSAGE, type), default_factory=type)


def messages(field: int, type: type[Any]) -> Any:
    """Repeated messages."""
    return _declared(_Field(field, _Shape.MESSAGES, type), default_factory=list)


def mapped(field: int, type: type[Any]) -> Any:
    """A map from text to messages."""
    return _declared(_Field(field, _Shape.MAP, type), default_factory=dict)


def _declared(field: _Field, **default: Any) -> Any:
    return dataclasses.field(metadata={"protobuf": field}, **default)


@cache
def _fields(type: Any) -> dict[int, tuple[str, _Field]]:
    found = ((each.name, each.metadata["protobuf"]) for each in dataclasses.fields(type))
    return {field.number: (name, field) for name, field in found}


def encode(message: Any) -> bytes:
    """The bytes of a message."""
    data = bytearray()
    kind: Any = type(message)
    for name, field in _fields(kind).values():
        value = getattr(message, name)
        match field.shape:
            case _Shape.NUMBER:
                if value:
                    data += _varint(field.number << 3 | _VARINT) + _varint(int(value) % 2**64)
            case _Shape.TEXT:
                if value:
                    data += _delimited(field.number, value.encode())
            case _Shape.TEXTS:
                for each in value:
                    data += _delimited(field.number, each.encode())
            case _Shape.MESSAGE:
                if inner := encode(value):
                    data += _delimited(field.number, inner)
            case _Shape.MESSAGES:
                for each in value:
                    data += _delimited(field.number, encode(each))
            case _Shape.MAP:
                for key, each in value.items():
                    entry = _delimited(_KEY, key.encode()) + _delimited(_VALUE, encode(each))
                    data += _delimited(field.number, entry)
    return bytes(data)


def decode(type: type[_Message], data: bytes) -> _Message:
    """The message in these bytes. ValueError if there is none in them."""
    result = type()
    kind: Any = type
    fields = _fields(kind)
    for number, value in _parts(data):
        if number not in fields:
            continue
        name, field = fields[number]
        if isinstance(value, int) != (field.shape is _Shape.NUMBER):
            raise ValueError(f"field {number} of {type.__name__} has another type")
        match field.shape:
            case _Shape.NUMBER:
                assert isinstance(value, int)
                setattr(result, name, field.type(value - 2**64 if value >= 2**63 else value))
            case _Shape.TEXT:
                setattr(result, name, _text(value))
            case _Shape.TEXTS:
                getattr(result, name).append(_text(value))
            case _Shape.MESSAGE:
                setattr(result, name, decode(field.type, _bytes(value)))
            case _Shape.MESSAGES:
                getattr(result, name).append(decode(field.type, _bytes(value)))
            case _Shape.MAP:
                key, inner = "", b""
                for part, each in _parts(_bytes(value)):
                    if part == _KEY:
                        key = _text(each)
                    elif part == _VALUE:
                        inner = _bytes(each)
                getattr(result, name)[key] = decode(field.type, inner)
    return result


def _parts(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers of fields with what is in them."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        number, wire = tag >> 3, tag & 7
        if not number:
            raise ValueError("a field has the number 0")
        if wire == _VARINT:
            value, at = _read_varint(data, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _read_varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"field {number} has wire type {wire}")
        if size > len(data) - at:
            raise ValueError(f"field {number} is cut short")
        yield number, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for position, byte in enumerate(data[at : at + _MOST_VARINT]):
        value |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return value % 2**64, at + position + 1
    raise ValueError("a number is cut short, or too long")


def _varint(value: int) -> bytes:
    data = bytearray()
    while value >= 0x80:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


def _delimited(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(data)) + data


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("there is a number where bytes should be")
    return value


def _text(value: int | bytes) -> str:
    return _bytes(value).decode()  # UnicodeDecodeError is a ValueError
