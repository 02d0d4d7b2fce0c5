# SPDX-License-Identifier: BSD-3-Clause
"""Our codec against the one that everybody else uses."""

from __future__ import annotations

import random

import pytest
from pydra.core.generated.dra import dra_pb2
from pydra.core.generated.pluginregistration import pluginregistration_pb2

from mtlshm.dra import messages
from mtlshm.dra.protobuf import decode, encode

TEXT = "studio \N{SNOWMAN}"
PAIRS = [
    (
        messages.PrepareRequest([messages.Claim(TEXT, "uid", "name"), messages.Claim()]),
        dra_pb2.NodePrepareResourcesRequest(
            claims=[dra_pb2.Claim(namespace=TEXT, uid="uid", name="name"), dra_pb2.Claim()]
        ),
    ),
    (
        messages.PrepareResponse(
            {
                "one": messages.Prepared([messages.Device(["a", "b"], "pool", "device", ["x/y=z"], "share")]),
                "two": messages.Prepared(error=TEXT * 100),
                "": messages.Prepared(),
            }
        ),
        dra_pb2.NodePrepareResourcesResponse(
            claims={
                "one": dra_pb2.NodePrepareResourceResponse(
                    devices=[
                        dra_pb2.Device(
                            request_names=["a", "b"],
                            pool_name="pool",
                            device_name="device",
                            cdi_device_ids=["x/y=z"],
                            share_id="share",
                        )
                    ]
                ),
                "two": dra_pb2.NodePrepareResourceResponse(error=TEXT * 100),
                "": dra_pb2.NodePrepareResourceResponse(),
            }
        ),
    ),
    (
        messages.UnprepareResponse({"one": messages.Unprepared("no"), "two": messages.Unprepared()}),
        dra_pb2.NodeUnprepareResourcesResponse(
            claims={
                "one": dra_pb2.NodeUnprepareResourceResponse(error="no"),
                "two": dra_pb2.NodeUnprepareResourceResponse(),
            }
        ),
    ),
    (
        messages.PluginInfo("DRAPlugin", "name", "/a/path", ["v1", "v2"]),
        pluginregistration_pb2.PluginInfo(
            type="DRAPlugin", name="name", endpoint="/a/path", supported_versions=["v1", "v2"]
        ),
    ),
    (
        messages.RegistrationStatus(True, TEXT),
        pluginregistration_pb2.RegistrationStatus(plugin_registered=True, error=TEXT),
    ),
    (messages.InfoRequest(), pluginregistration_pb2.InfoRequest()),
]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda pair: type(pair).__name__)
def test_each_reads_what_the_other_writes(ours, theirs):
    assert decode(type(ours), theirs.SerializeToString()) == ours
    assert type(theirs).FromString(encode(ours)) == theirs


def test_all_fields_of_the_interface_are_there():
    """Neither more nor fewer, under the same numbers."""
    for ours, theirs in PAIRS:
        numbers = {each.metadata["protobuf"].number for each in ours.__dataclass_fields__.values()}
        assert numbers == {field.number for field in theirs.DESCRIPTOR.fields}


def test_numbers_have_signs_and_64_bits():
    for number in (0, 1, -1, 127, 128, 2**31, 2**63 - 1, -(2**63)):
        health = messages.DeviceHealth(last_updated_time=number)
        assert decode(messages.DeviceHealth, encode(health)).last_updated_time == number


def test_fields_of_a_later_version_are_skipped():
    later = b"\xa0\x06\x05" + b"\xaa\x06\x02hi" + b"\xb1\x06" + bytes(8) + b"\xbd\x06" + bytes(4)
    assert decode(messages.Claim, later + b"\x12\x03uid" + later) == messages.Claim(uid="uid")


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",
        b"\x0a\x05abcd",
        b"\x0a\x01\xff",  # no UTF-8
        b"\x08\x01",  # a number where text should be
        b"\x00\x01",  # field 0
        b"\x0b",  # a group
        b"\xff" * 11,
        b"\x0a" + b"\xff" * 9 + b"\x01",  # longer than all memory
    ],
)
def test_what_is_no_message_is_a_value_error(data):
    with pytest.raises(ValueError, match=r"."):
        decode(messages.Claim, data)


def test_nonsense_is_a_message_or_a_value_error():
    source = random.Random(14)
    good = encode(PAIRS[1][0])
    for _ in range(3000):
        data = bytearray(good if source.random() < 0.7 else source.randbytes(source.randrange(64)))
        for _ in range(source.randrange(4)):
            if data:
                data[source.randrange(len(data))] = source.randrange(256)
        try:
            decode(messages.PrepareResponse, bytes(data))
        except ValueError:
            continue
