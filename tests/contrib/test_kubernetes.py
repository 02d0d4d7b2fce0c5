# SPDX-License-Identifier: BSD-3-Clause
"""The manifests: kubectl builds them, the published schemas know their fields, and they ask for no more than needed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from functools import cache
from pathlib import Path

import pydantic
import pytest
import yaml
from kubernetes.client import models

from lab.processes import BIN, daemon_settings, eventually, look
from mtlshm.daemon.app import command as mtlshmd
from mtlshm.dra import naming, slices
from mtlshm.dra.app import command as driver

ROOT = Path(__file__).parents[2]
CONTRIB = ROOT / "contrib/kubernetes"
PROFILES = ("base", "interfaces", "dra")


@cache
def built(profile: str) -> list[dict]:
    done = subprocess.run([BIN / "kubectl", "kustomize", CONTRIB / profile], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def example() -> list[dict]:
    return list(yaml.safe_load_all((CONTRIB / "dra/example.yaml").read_text()))


def the(profile: str, kind: str) -> dict:
    (found,) = [each for each in built(profile) if each["kind"] == kind]
    return found


def pod(profile: str) -> dict:
    return the(profile, "DaemonSet")["spec"]["template"]["spec"]


def container(profile: str) -> dict:
    (only,) = pod(profile)["containers"]
    return only


# --- schemas -------------------------------------------------------------------------------------------


def validate(made: dict) -> None:
    """By the published client's model, which is made from the schemas."""
    getattr(models, f"V1{made['kind']}").model_validate(made)


@pytest.mark.parametrize(
    "made", [*(each for name in PROFILES for each in built(name)), *example()], ids=lambda m: m["kind"]
)
def test_the_published_schemas_have_all_of_it(made):
    validate(made)


def test_a_fault_is_found():
    made = yaml.safe_load(yaml.safe_dump(the("base", "DaemonSet")))
    only = made["spec"]["template"]["spec"]["containers"][0]
    only["securityContext"]["readOnlyRootFileSystem"] = True
    only["livenessProbe"]["periodSeconds"] = "30"
    del made["spec"]["selector"]
    with pytest.raises(pydantic.ValidationError, match="3 validation errors"):
        validate(made)


# --- what they ask for ---------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_a_container_has_as_little_as_it_can(profile):
    allowed = container(profile)["securityContext"]
    assert allowed["capabilities"]["drop"] == ["ALL"]
    assert allowed["readOnlyRootFilesystem"]
    assert not allowed["privileged"]
    text = (ROOT / "docs/interfaces.md").read_text()
    said = set(re.findall(r"CAP_(\w+)", next(line for line in text.splitlines() if "in a container CAP_" in line)))
    assert set(allowed["capabilities"].get("add", [])) == (said if profile == "interfaces" else set())
    # Kubernetes refuses the one beside the other.
    assert allowed["allowPrivilegeEscalation"] == ("SYS_ADMIN" in allowed["capabilities"].get("add", []))


def test_for_lcores_nothing_of_the_host_is_mounted_but_one_directory():
    assert [volume["hostPath"]["path"] for volume in pod("base")["volumes"]] == ["/run/imtl"]
    assert not pod("base").get("hostNetwork")
    assert not pod("base").get("hostIPC")


@pytest.mark.parametrize("profile", PROFILES)
def test_what_is_mounted_is_a_volume_of_the_same_path(profile):
    volumes = {volume["name"]: volume["hostPath"]["path"] for volume in pod(profile)["volumes"]}
    assert {mount["name"]: mount["mountPath"] for mount in container(profile)["volumeMounts"]} == volumes


@pytest.mark.parametrize(("profile", "program"), [("base", mtlshmd), ("interfaces", mtlshmd), ("dra", driver)])
def test_variables_are_those_of_the_program(profile, program):
    known = {param.envvar for param in program.params}
    assert {each["name"] for each in container(profile)["env"]} <= known


def test_the_driver_may_do_what_it_does_and_no_more():
    rules = {rule["resources"][0]: rule["verbs"] for rule in the("dra", "ClusterRole")["rules"]}
    assert rules == {
        "resourceclaims": ["get"],
        "resourceslices": ["list", "watch", "create", "update", "delete"],
        "nodes": ["get"],
    }
    assert slices.SLICES == "/apis/resource.k8s.io/v1/resourceslices"


def test_names_are_the_drivers():
    policy = the("dra", "ValidatingAdmissionPolicy")["spec"]
    account = the("dra", "ServiceAccount")["metadata"]
    user = f"system:serviceaccount:{account['namespace']}:{account['name']}"
    assert policy["matchConditions"][0]["expression"] == f'request.userInfo.username == "{user}"'
    assert any(f"'{naming.DRIVER}'" in each["expression"] for each in policy["validations"])
    assert pod("dra")["serviceAccountName"] == account["name"]
    (selector,) = the("dra", "DeviceClass")["spec"]["selectors"]
    assert selector["cel"]["expression"] == f'device.driver == "{naming.DRIVER}"'
    template, made = example()
    (request,) = template["spec"]["spec"]["devices"]["requests"]
    assert request["exactly"]["deviceClassName"] == the("dra", "DeviceClass")["metadata"]["name"]
    assert request["exactly"]["capacity"]["requests"].keys() == {naming.CAPACITY}
    assert made["spec"]["containers"][0]["resources"]["claims"] == [{"name": "encoder"}]


def test_defaults_of_the_driver_are_where_the_host_is_mounted():
    mounts = {mount["mountPath"] for mount in container("dra")["volumeMounts"]}
    defaults = {param.name: param.default for param in driver.params}
    assert str(defaults["cdi"]) in mounts
    for name in (f"plugins/{naming.DRIVER}", "plugins_registry", "cpu_manager_state", "config.yaml"):
        assert f"{defaults['kubelet']}/{name}" in mounts


# --- the next daemon waits for the old one -------------------------------------------------------------


def test_a_daemon_that_surges_is_ready_and_takes_over(segment, manager_socket, tmp_path):
    """As two pods on one node, while the DaemonSet is updated."""
    assert the("base", "DaemonSet")["spec"]["updateStrategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    settings = os.environ | daemon_settings(segment, manager_socket, tmp_path / "state")
    settings["PATH"] = f"{BIN}:{settings['PATH']}"
    ready = container("base")["readinessProbe"]["exec"]["command"]

    def healthy():
        return subprocess.run(ready, env=settings, capture_output=True).returncode == 0

    def start():
        pods.append(subprocess.Popen(container("base")["command"], env=settings, stderr=subprocess.DEVNULL))

    def serving():
        return look(segment).daemon.pid if os.path.exists(segment) and look(segment).daemon else 0

    pods: list[subprocess.Popen] = []
    try:
        start()
        eventually(healthy)
        first = serving()
        start()
        assert healthy()
        pods[0].send_signal(signal.SIGTERM)
        assert pods[0].wait() == 0
        eventually(lambda: serving() not in (0, first))
        eventually(healthy)
        pods[1].send_signal(signal.SIGTERM)
        assert pods[1].wait() == 0
        assert serving() == 0
    finally:
        for each in pods:
            each.kill()
            each.wait()
