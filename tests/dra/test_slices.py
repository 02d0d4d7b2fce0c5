# SPDX-License-Identifier: BSD-3-Clause
"""What the scheduler hears of a node."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess

import psutil
import pytest

from lab.api_stand_in import failing, half, no_http, no_json
from lab.processes import eventually

NAME = "node-1-dra.mtlshm"


def spec(api):
    return eventually(lambda: NAME in api.slices and api.slices[NAME])["spec"]


def test_a_node_publishes_one_slice(driver, api):
    daemon = driver()
    published = spec(api)
    assert published["driver"] == "dra.mtlshm"
    assert published["nodeName"] == "node-1"
    assert published["pool"] == {"name": "node-1", "generation": 1, "resourceSliceCount": 1}
    first, second = published["devices"]
    assert first == {
        "name": "lcores-node0",
        "allowMultipleAllocations": True,
        "attributes": {"numaNode": {"int": 0}},
        "capacity": {
            "lcores": {"value": "4", "requestPolicy": {"default": "2", "validRange": {"min": "2", "step": "2"}}}
        },
    }
    assert (second["name"], second["capacity"]["lcores"]["value"]) == ("lcores-node1", "8")
    (owner,) = api.slices[NAME]["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("Node", "node-1", "uid-of-the-node")
    assert len(json.dumps(api.slices[NAME])) < 1200
    daemon.await_log(f"ResourceSlice {NAME} is published")
    assert daemon.end(signal.SIGTERM) == 0
    assert NAME in api.slices  # kubelet removes it if no driver comes back


def test_what_kubelet_deletes_is_published_again(driver, api):
    driver()
    for number in range(1, 4):
        spec(api)
        api.delete_slices()
        eventually(lambda number=number: api.writes == ["POST"] * (number + 1))
    spec(api)


def test_what_somebody_changes_is_put_right_and_a_later_field_is_left_alone(driver, api):
    driver()
    spec(api)
    changed = json.loads(json.dumps(api.slices[NAME]))
    changed["spec"]["devices"][0]["capacity"]["lcores"]["value"] = "400"
    api.change("MODIFIED", changed)
    eventually(lambda: api.writes == ["POST", "PUT"])
    assert spec(api)["devices"][0]["capacity"]["lcores"]["value"] == "4"
    assert spec(api)["pool"]["generation"] == 2
    later = json.loads(json.dumps(api.slices[NAME]))
    later["spec"]["devices"][0]["later"] = True
    api.change("MODIFIED", later)
    api.delete_slices()
    eventually(lambda: len(api.writes) > 2)
    assert api.writes == ["POST", "PUT", "POST"]


def test_a_driver_finds_its_slice_again_and_removes_others_of_its_own(driver, api):
    first = driver()
    spec(api)
    first.kill()
    other = json.loads(json.dumps(api.slices[NAME]))
    other["metadata"]["name"] = "node-1-earlier"
    api.change("ADDED", other)
    driver()
    eventually(lambda: "node-1-earlier" not in api.slices)
    assert api.writes == ["POST", "DELETE"]


def test_another_pool_is_another_generation(driver, api):
    first = driver()
    spec(api)
    first.kill()
    driver(pool="8-15")
    eventually(lambda: len(spec(api)["devices"]) == 1)
    assert spec(api)["pool"]["generation"] == 2


def test_a_server_that_drops_fields_gets_no_slice(driver, api):
    api.dropped.add("allowMultipleAllocations")
    daemon = driver()
    daemon.await_log("has it DRAConsumableCapacity?")
    eventually(lambda: api.writes[:2] == ["POST", "DELETE"])


@pytest.mark.parametrize(
    "fault",
    [*map(failing, (401, 403, 404, 409, 410, 429, 500)), half, no_http, no_json],
    ids=["401", "403", "404", "409", "410", "429", "500", "half", "no HTTP", "no JSON"],
)
def test_a_server_that_fails_is_asked_again(driver, api, fault):
    """At each of the requests: list, node, write, watch."""
    api.slice_faults.extend([fault, lambda handler: handler._serve("GET"), fault])
    driver()
    spec(api)
    api.slice_faults.extend([fault] * 2)
    api.delete_slices()
    spec(api)


def test_an_idle_driver_writes_nothing_and_does_not_wake_up(driver, api):
    daemon = driver()
    spec(api)
    daemon.await_log("is published")

    def switches():
        return psutil.Process(daemon.pid).num_ctx_switches().voluntary

    def quiet():
        before = switches()
        with pytest.raises(psutil.TimeoutExpired):
            psutil.Process(daemon.pid).wait(1)
        return switches() == before

    eventually(quiet)
    assert api.writes == ["POST"]


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl; not tested: TLS to the API server")
def test_tls_with_the_clusters_ca_and_the_token_of_the_moment(driver, api, tmp_path, node):
    account = tmp_path / "account"
    account.mkdir()
    certificate, key = account / "ca.crt", tmp_path / "key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", "/CN=stand-in", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    api.speak_tls(certificate, key)
    api.token = "first"
    (account / "token").write_text("old\n")
    daemon = driver(account=account)
    daemon.await_log("401: Unauthorized; it does not take the token in")
    (account / "token").write_text("first\n")
    spec(api)
    daemon.kill()
    certificate.write_text("no certificate")
    driver(account=account, ready=False).await_log("API server https://")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ("reservedSystemCPUs: 0-15\n", ""),
        ('reservedSystemCPUs: "4-7,8-15" # ours\n', ""),
        ("reservedSystemCPUs: 0-3\n", "kubelet's CPU policy static may give 4-15 to other pods"),
        ("reservedMemory: []\n", "kubelet's CPU policy static may give 4-15 to other pods"),
        ("reservedSystemCPUs: 3-1\n", "reservedSystemCPUs: the range '3-1' runs backwards"),
    ],
)
def test_the_pool_lies_in_kubelets_reserved_cpus(driver, place, settings, why):
    (place / "cpu_manager_state").write_text('{"policyName": "static", "defaultCpuSet": "0-15"}')
    (place / "config.yaml").write_text(f"kind: KubeletConfiguration\n{settings}")
    daemon = driver(ready=not why)
    if why:
        assert daemon.wait() == 2
        assert why in daemon.log()
