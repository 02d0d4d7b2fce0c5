# SPDX-License-Identifier: BSD-3-Clause
"""The driver, between a stand-in for kubelet and one for the API server."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
from pathlib import Path

import grpc
import pytest

from lab.api_stand_in import claim, failing, half, hang, no_http, no_json
from lab.processes import eventually, held, look
from mtlshm import Host, Kind, LcoreType

NODE = "node-1"
UID = "0b5a9c9e-4c2b-4b7e-9d8e-1f4f6a7b8c9d"


def named(uid: str = UID, namespace: str = "studio") -> tuple[str, str, str]:
    return namespace, f"claim-of-{uid}", uid


@pytest.fixture
def allocate(api):
    """allocate(("lcores-node1", 2)) makes a claim that the API server knows; returns its name."""

    def make(*shares, uid=UID, node=NODE, **more):
        path, made = claim(uid, node, *(shares or [("lcores-node1", 2)]), **more)
        api.objects[path] = made
        return named(uid)

    return make


def reservations(segment):
    return {info.key: set(info.lcores) for info in look(segment).instances if info.kind == Kind.RESERVATION}


def variables(cdi: Path, uid: str = UID) -> dict[str, str]:
    (device,) = json.loads((cdi / f"dra.mtlshm-claim-{uid}.json").read_text())["devices"]
    assert device["name"] == uid
    return dict(each.split("=", 1) for each in device["containerEdits"]["env"])


# --- registration --------------------------------------------------------------------------------------


def test_kubelet_finds_the_driver_and_hears_of_its_devices(driver, node, place):
    daemon = driver()
    info = node.info()
    assert (info.type, info.name) == ("DRAPlugin", "dra.mtlshm")
    assert info.endpoint == str(place / "plugins/dra.mtlshm/dra.sock")
    assert list(info.supported_versions) == ["v1.DRAPlugin", "v1alpha1.DRAResourceHealth", "v1.DRAResourceHealth"]
    for version in ("v1alpha1", "v1"):
        devices = [(each.device.device_name, each.health.name) for each in node.health(version).devices]
        assert devices == [("lcores-node0", "HEALTHY"), ("lcores-node1", "HEALTHY")]
    node.tell_status(True)
    daemon.await_log("kubelet has registered dra.mtlshm")
    node.tell_status(False, "another one is there")
    daemon.await_log("kubelet does not register dra.mtlshm: another one is there")
    assert daemon.end(signal.SIGTERM) == 0
    assert node.sockets() == []


def test_a_killed_drivers_sockets_are_replaced(driver, node):
    driver().kill()
    assert len(node.sockets()) == 1
    driver()
    assert node.info().name == "dra.mtlshm"


def test_a_second_driver_on_a_node_refuses(driver, node):
    first = driver()
    second = driver(ready=False)
    assert second.wait() == 1
    assert f"(pid {first.pid}) serves this node" in second.log()
    assert node.info().name == "dra.mtlshm"


@pytest.mark.parametrize(
    ("pool", "why"),
    [
        ("4-5,7", "a pool has whole cores only; CPU 6 is on the core of CPU 7"),
        ("4-99", "there is no CPU 16-99 online"),
        ("", "a pool has at least one lcore"),
    ],
)
def test_a_pool_that_cannot_be_shared_out_is_refused(driver, pool, why):
    daemon = driver(pool=pool, ready=False)
    assert daemon.wait() == 2
    assert why in daemon.log()


# --- claims --------------------------------------------------------------------------------------------


def test_a_claim_becomes_a_reservation_and_ends(driver, node, segment, cdi, allocate, machine):
    driver()
    one = allocate(("lcores-node1", 4))
    prepared = node.prepare(one)[UID]
    assert prepared.error == ""
    (device,) = prepared.devices
    assert (device.pool_name, device.device_name, device.share_id) == (NODE, "lcores-node1", "share-0")
    assert list(device.request_names) == ["request-0"]
    assert list(device.cdi_device_ids) == [f"dra.mtlshm/claim={UID}"]

    (lcores,) = reservations(segment).values()
    assert len(lcores) == 4
    assert lcores < set(range(8, 16))
    assert all(lcore.type == LcoreType.LEASE for lcore in look(segment).lcores)
    (info,) = [info for info in look(segment).instances if info.kind == Kind.RESERVATION]
    assert (info.key, info.label) == (f"claim-{UID}", f"studio/claim-of-{UID}")

    told = variables(cdi)
    with Host(segment, sysfs=machine) as host:
        tenant = host.register(parent=host.parse_lease(told["MTLSHM_LEASE"]), cpus=range(16))
        assert set(tenant.claim_many(4)) == lcores
        tenant.close()
    suffix = f"CLAIM_OF_{UID.upper().replace('-', '_')}"
    assert told[f"MTLSHM_LEASE_{suffix}"] == told["MTLSHM_LEASE"]
    assert told[f"MTLSHM_LCORES_{suffix}"] == told["MTLSHM_LCORES"]

    assert node.unprepare(one)[UID].error == ""
    assert held(segment) == set()
    assert list(cdi.iterdir()) == []


def test_the_pods_name_for_a_claim_is_in_its_variables(driver, node, cdi, allocate, api):
    driver()
    one = allocate()
    (made,) = api.objects.values()
    made["metadata"]["annotations"] = {"resource.kubernetes.io/pod-claim-name": "my.cores-1"}
    node.prepare(one)
    assert {"MTLSHM_LCORES_MY_CORES_1", "MTLSHM_LEASE_MY_CORES_1"} < variables(cdi).keys()


def test_both_calls_may_be_repeated(driver, node, segment, cdi, allocate, api):
    daemon = driver()
    one = allocate()
    first = node.prepare(one)
    there, told = reservations(segment), variables(cdi)
    assert node.prepare(one) == first
    daemon.kill()
    (cdi / f"dra.mtlshm-claim-{UID}.json").unlink()
    driver()
    assert node.prepare(one, one) == first
    assert (reservations(segment), variables(cdi)) == (there, told)
    api.objects.clear()  # from its checkpoint, kubelet ends claims that are gone
    assert node.unprepare(one)[UID].error == ""
    assert node.unprepare(one)[UID].error == ""
    assert held(segment) == set()


def test_one_claim_has_cores_of_two_nodes_beside_devices_of_others(driver, node, segment, allocate, api):
    driver()
    one = allocate(("lcores-node0", 2), ("lcores-node1", 2), ("lcores-node1", 4))
    (made,) = api.objects.values()
    made["status"]["allocation"]["devices"]["results"].append(
        {"request": "gpu", "driver": "gpu.example.com", "pool": "somewhere", "device": "gpu-0"}
    )
    prepared = node.prepare(one)[UID]
    assert [(d.device_name, d.share_id) for d in prepared.devices] == [
        ("lcores-node0", "share-0"),
        ("lcores-node1", "share-1"),
        ("lcores-node1", "share-2"),
    ]
    (lcores,) = reservations(segment).values()
    assert len(lcores & set(range(4, 8))) == 2
    assert len(lcores & set(range(8, 16))) == 6


def test_claims_have_different_lcores_and_a_failing_one_hurts_no_other(driver, node, segment, allocate):
    driver()
    claims = [allocate(uid=f"uid-{number}") for number in range(4)]
    results = node.prepare(*claims, named("unknown"))
    assert {uid: result.error != "" for uid, result in results.items()} == {
        "uid-0": False,
        "uid-1": False,
        "uid-2": False,
        "uid-3": False,
        "unknown": True,
    }
    assert held(segment) == set(range(8, 16))
    error = node.prepare(allocate(uid="uid-4"))["uid-4"].error
    assert "2 lcores of lcores-node1 (8-15) are not free" in error
    results = node.unprepare(*claims, named("unknown"))
    assert {result.error for result in results.values()} == {""}
    assert held(segment) == set()


# --- what is refused -----------------------------------------------------------------------------------


def edit(path, value):
    def apply(made):
        *way, last = path
        for step in way:
            made = made[step]
        made[last] = value

    return apply


RESULT = ("status", "allocation", "devices", "results", 0)
OPAQUE = [{"source": "FromClaim", "opaque": {"driver": "dra.mtlshm", "parameters": {}}}]
REFUSED = {
    "made anew": (edit(("metadata", "uid"), "other"), "has the UID other now: it was made anew"),
    "unallocated": (edit(("status",), {}), "it is not allocated; the scheduler does that"),
    "foreign": (edit((*RESULT, "driver"), "gpu.example.com"), "it has no device of dra.mtlshm"),
    "other node": (edit((*RESULT, "pool"), "node-2"), "allocated to the pool node-2, and this node is node-1"),
    "unknown device": (edit((*RESULT, "device"), "queue-7"), "no device queue-7 on this node, but lcores-node0"),
    "count 0": (edit((*RESULT, "consumedCapacity"), {"lcores": "0"}), "it is to have no lcore of lcores-node1"),
    "no count": (edit((*RESULT, "consumedCapacity"), {}), "does not say how many lcores it consumes"),
    "above the pool": (edit((*RESULT, "consumedCapacity"), {"lcores": "10"}), "10 lcores of lcores-node1, which has 8"),
    "a thousand": (edit((*RESULT, "consumedCapacity"), {"lcores": "1k"}), "1000 lcores of lcores-node1, which has 8"),
    "half a core": (
        edit((*RESULT, "consumedCapacity"), {"lcores": "3"}),
        "3 lcores of lcores-node1, whose cores have 2",
    ),
    "half an lcore": (edit((*RESULT, "consumedCapacity"), {"lcores": "500m"}), "'500m' is no number of lcores"),
    "parameters": (edit((*RESULT[:3], "config"), OPAQUE), "parameters for dra.mtlshm, which takes none"),
    "another form": (edit(("status", "allocation", "devices"), []), "another form than resource.k8s.io/v1"),
    "control characters": (edit((*RESULT, "pool"), "a\nb"), "allocated to the pool a\N{REPLACEMENT CHARACTER}b"),
}


@pytest.mark.parametrize(("change", "why"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_in_one_line(driver, node, segment, cdi, allocate, api, change, why):
    daemon = driver()
    one = allocate()
    (made,) = api.objects.values()
    change(made)
    error = node.prepare(one)[UID].error
    assert error.startswith(f"claim studio/claim-of-{UID} is not prepared: ")
    assert why in error
    assert "\n" not in error
    daemon.await_log(error)
    assert held(segment) == set()
    assert not cdi.exists()


@pytest.mark.parametrize("uid", ["", "../../etc/x", "a" * 57, "a\nb", "-"])
def test_a_uid_that_can_be_none_is_refused(driver, node, segment, uid):
    driver()
    assert "is no UID of a claim" in node.prepare(named(uid))[uid].error
    assert "is no UID of a claim" in node.unprepare(named(uid))[uid].error


def test_other_reservations_are_not_the_drivers(driver, node, segment, machine):
    driver()
    with Host(segment, sysfs=machine) as host:
        host.reserve("studio-1", 2, cpus=range(4))
    assert node.unprepare(named("studio-1"))["studio-1"].error == ""
    assert reservations(segment).keys() == {"studio-1"}


FAULTS = {
    "401": (failing(401, "Unauthorized"), "401: Unauthorized; it does not take the token in "),
    "403": (failing(403, "no"), "403: no; apply the RBAC of contrib/kubernetes"),
    "404": (failing(404), "the API server has no such claim"),
    "409": (failing(409), ": 409: it is so"),
    "410": (failing(410), ": 410: it is so"),
    "429": (failing(429), ": 429: it is so"),
    "500": (failing(500), ": 500: it is so"),
    "503": (failing(503, "x" * 1000), ": 503: " + "x" * 300),
    "half": (half, "half an answer, or none in HTTP"),
    "no HTTP": (no_http, "half an answer, or none in HTTP"),
    "no JSON": (no_json, "is no object in JSON"),
}


@pytest.mark.parametrize(("fault", "why"), FAULTS.values(), ids=FAULTS)
def test_an_api_server_that_fails_fails_the_claim_only(driver, node, segment, allocate, api, fault, why):
    driver()
    one = allocate()
    api.faults.append(fault)
    assert why in node.prepare(one)[UID].error
    assert held(segment) == set()
    assert node.prepare(one)[UID].error == ""


def test_a_call_that_kubelet_gives_up_leaves_nothing(driver, node, segment, allocate, api):
    driver()
    one = allocate()
    api.faults.append(hang)
    with pytest.raises(grpc.RpcError) as caught:
        node.prepare(one, timeout=0.5)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert node.unprepare(one)[UID].error == ""
    api.ended.set()
    assert node.prepare(one)[UID].error == ""
    assert len(held(segment)) == 2


def test_no_api_server_fails_the_claim_only(driver, node, allocate, api):
    driver()
    one = allocate()
    api.server_close()
    assert "Connection re" in node.prepare(one)[UID].error  # refused, or reset by one that was about to accept


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="not tested: no room for CDI files")
def test_a_full_directory_fails_that_claim_and_leaves_nothing(driver, node, segment, cdi, allocate):
    daemon = driver()
    one = allocate()
    cdi.mkdir()
    new = cdi / f".dra.mtlshm-claim-{UID}.json.new"
    new.symlink_to("/dev/full")
    error = node.prepare(one)[UID].error
    assert "No space left on device" in error
    assert held(segment) == set()
    assert list(cdi.iterdir()) == []
    assert daemon.running()
    assert node.prepare(one)[UID].error == ""


def test_an_unwritable_directory_fails_that_claim_and_takes_nothing_from_it(driver, node, segment, cdi, allocate):
    driver()
    one = allocate()
    assert node.prepare(one)[UID].error == ""
    (file,) = cdi.iterdir()
    file.unlink()
    cdi.rmdir()
    cdi.write_text("no directory")
    assert f"{cdi}" in node.prepare(one)[UID].error
    assert len(held(segment)) == 2  # a container may run with them
    assert f"{cdi}" in node.prepare(allocate(uid="second"))["second"].error
    assert len(held(segment)) == 2


def test_a_damaged_segment_fails_claims_until_it_is_replaced(driver, node, segment, allocate):
    driver()
    one = allocate()
    os.truncate(segment, 0)
    assert segment in node.prepare(one)[UID].error
    assert segment in node.unprepare(one)[UID].error
    for device in node.health("v1").devices:
        assert device.health.name == "UNHEALTHY"
        assert segment in device.message
    os.unlink(segment)
    assert node.prepare(one)[UID].error == ""
    assert {device.health.name for device in node.health("v1alpha1").devices} == {"HEALTHY"}


# --- nonsense ------------------------------------------------------------------------------------------


def test_nonsense_at_the_sockets_changes_nothing(driver, node, segment, allocate):
    daemon = driver()
    endpoint = node.info().endpoint
    source = random.Random(14)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for path in (endpoint, str(node.sockets()[0])):
        for number in range(40):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(path)
                start = preface if number % 2 else b""
                try:
                    connection.sendall(start + source.randbytes(source.randrange(2000)))
                except BrokenPipeError:
                    continue
    with grpc.insecure_channel(f"unix:{endpoint}") as channel:
        for method in ("NodePrepareResources", "NodeUnprepareResources"):
            call = channel.unary_unary(f"/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/{method}")
            with pytest.raises(grpc.RpcError) as caught:
                call(b"\xff\xff\xff")
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/no.Such/Thing")(b"")
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert node.prepare(allocate())[UID].error == ""
    eventually(daemon.running)
