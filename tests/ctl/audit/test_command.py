# SPDX-License-Identifier: BSD-3-Clause
"""audit names what disturbs an lcore. Each test plants something there, whatever else runs on this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import mtlshm.ctl.audit
from lab.networks import FAR4
from lab.processes import BIN, eventually, namespaces, needs_root
from lab.sysfs import Machine
from mtlshm import Host

SCHEMA = json.loads((Path(mtlshm.ctl.audit.__file__).parent / "audit.schema.json").read_text())
SHORT = ("--seconds", 0.2)
LCORE, OTHER = 1, 0

pytestmark = pytest.mark.skipif(
    not {LCORE, OTHER} <= os.sched_getaffinity(0), reason="needs CPUs 0 and 1; not tested: audit"
)

SPIN = """
import os, sys, threading
def spin():
    os.sched_setaffinity(0, {int(sys.argv[1])})
    print(threading.get_native_id(), flush=True)
    while True:
        pass
if sys.argv[2] == "thread":
    threading.Thread(target=spin, daemon=True).start()
    threading.Event().wait()
spin()
"""


@pytest.fixture
def audit(ctl: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., dict]:
    """Measures briefly; returns what --json prints of the lcore, and the whole."""

    def run(*words: object, status: set[int] = frozenset({0, 1})) -> dict:
        done = ctl("audit", *SHORT, "--json", *words)
        assert done.returncode in status, done.stderr
        data = json.loads(done.stdout)
        jsonschema.validate(data, SCHEMA)
        return data["lcores"][0] | {"whole": data, "status": done.returncode}

    return run


@pytest.fixture
def spinner() -> Iterator[Callable[..., tuple[int, int]]]:
    """Starts processes that keep a CPU busy; returns the PID, and the TID of the thread that does it."""
    started: list[subprocess.Popen[str]] = []

    def start(cpu: int, how: str = "process") -> tuple[int, int]:
        command = [sys.executable, "-c", SPIN, str(cpu), how]
        started.append(process := subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert process.stdout
        return process.pid, int(process.stdout.readline())

    yield start
    for process in started:
        with process:
            process.kill()


@pytest.fixture
def holder(start_ctl: Callable[..., subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """Has the lcore, and sleeps."""
    process = start_ctl("hold", LCORE)
    assert process.stdout
    assert process.stdout.readline() == f"{LCORE}\n"
    return process


def again(measure: Callable[[], Any], enough: Callable[[Any], object]) -> Any:
    """Until it is enough: a machine with much to do may let nothing run that was planted."""

    def once() -> tuple[Any] | None:
        result = measure()
        return (result,) if enough(result) else None

    return eventually(once)[0]


def test_an_owner_whose_cpus_were_taken_away_is_said(audit, holder):
    """The kernel takes the CPUs that leave a cpuset out of the affinity of all its threads."""
    text = f"its owner may run on {OTHER} only"
    assert not any(text in reason for reason in audit("--limit", 100)["reasons"])
    for thread in os.listdir(f"/proc/{holder.pid}/task"):
        os.sched_setaffinity(int(thread), {OTHER})
    result = audit("--limit", 100)
    assert (result["verdict"], result["status"]) == ("disturbed", 1)
    assert any(text in reason for reason in result["reasons"])


def named(threads: list[dict], tid: int) -> dict | None:
    return next((thread for thread in threads if thread["tid"] == tid), None)


# --- who else ran there ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["process", "thread"])
def test_a_busy_thread_is_named_and_how_to_keep_it_away(audit, ctl, holder, spinner, how):
    pid, tid = spinner(LCORE, how)
    assert (pid == tid) == (how == "process")
    result = again(lambda: audit("--limit", 0), lambda found: named(found["threads"], tid))
    thread = named(result["threads"], tid)
    assert (thread["pid"], thread["comm"], thread["kernel"], thread["exact"]) == (pid, comm(tid), False, True)
    assert thread["percent"] > 0
    assert thread["setting"].endswith(f" {tid}") or "AllowedCPUs" in thread["setting"]
    assert result["verdict"] == "disturbed"
    assert result["status"] == 1
    assert (result["lcore"], result["label"]) == (LCORE, "hold")
    lines = again(lambda: ctl("audit", *SHORT, "--limit", 0).stdout, lambda text: f"id {tid}): " in text)
    assert lines.startswith(f"lcore {LCORE}: disturbed (others had ")


def comm(tid: int) -> str:
    return Path(f"/proc/{tid}/comm").read_text().strip()


def test_what_the_setting_says_keeps_the_thread_away(audit, holder, spinner):
    _, tid = spinner(LCORE)
    thread = eventually(lambda: named(audit()["threads"], tid))
    if not thread["setting"].startswith("taskset"):
        pytest.skip("it is in a unit of systemd; not tested: taskset")
    subprocess.run(thread["setting"].split(), check=True, stdout=subprocess.DEVNULL)
    assert LCORE not in os.sched_getaffinity(tid)
    eventually(lambda: not named(audit()["threads"], tid))


def test_a_kernel_thread_is_named(audit, holder, spinner):
    """To move a thread away from a CPU where it runs, the kernel has migration/N run there."""
    _, tid = spinner(LCORE)
    own = os.sched_getaffinity(0)

    def planted() -> dict | None:
        mover = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"import os\nwhile True:\n for c in ({OTHER}, {LCORE}): os.sched_setaffinity({tid}, {{c}})",
            ]
        )
        with mover:
            try:
                threads = audit()["threads"]
            finally:
                mover.kill()
        return next((thread for thread in threads if thread["comm"] == f"migration/{LCORE}"), None)

    thread = eventually(planted)
    assert thread["kernel"]
    assert thread["exact"]
    assert thread["setting"] is None or thread["setting"].startswith("boot with ")
    assert os.sched_getaffinity(0) == own


def test_the_owner_and_what_it_starts_do_not_disturb_it(audit, start_ctl):
    code = "import os\nprint(os.getpid(), flush=True)\nif os.fork(): os.wait()\nwhile True: pass"
    process = start_ctl("run", "--lcores", 1, "--", sys.executable, "-c", code)
    pid = int(process.stdout.readline())
    result = again(audit, lambda found: found["own_percent"] > 0)
    assert comm(pid)
    assert pid not in {thread["pid"] for thread in result["threads"]}
    assert result["label"].startswith(sys.executable)


def test_that_the_owner_had_to_wait_is_told(audit, start_ctl, spinner):
    """Whoever made it wait, and however short it stayed."""
    code = "import os\nos.sched_setaffinity(0, {int(os.environ['MTLSHM_LCORES'])})\nprint(flush=True)\nwhile True: pass"
    process = start_ctl("run", "--lcores", 1, "--", sys.executable, "-c", code)
    process.stdout.readline()
    lcore = audit()["lcore"]
    spinner(lcore)
    result = again(lambda: audit("--limit", 0), lambda found: found["switches"] > 0)
    assert result["waited_percent"] > 0
    assert result["verdict"] == "disturbed"


def test_a_thread_of_another_instance_is_named_with_it(audit, start_ctl, holder):
    spin = f"import os\nos.sched_setaffinity(0, {{{LCORE}}})\nprint(os.getpid(), flush=True)\nwhile True: pass"
    other = start_ctl("run", "--lcores", 1, "--", sys.executable, "-c", spin)
    tid = int(other.stdout.readline())
    assert eventually(lambda: named(audit(LCORE)["threads"], tid))["instance"].startswith(sys.executable)


def test_an_owner_in_another_pid_namespace_is_found(audit, puppet):
    owner = puppet(prefix=namespaces("pid"))
    assert owner.claim(LCORE) == 0
    assert audit()["verdict"] != "unknown"


def test_from_another_pid_namespace_it_says_what_it_cannot_see(start_ctl, segment, holder):
    process = start_ctl("audit", *SHORT, "--json", within=namespaces("pid"))
    data = json.loads(process.communicate()[0])
    assert process.returncode == 0
    (result,) = data["lcores"]
    assert result["verdict"] == "unknown"
    assert "cannot be found from here" in result["reasons"][0]
    assert any("kernel threads" in text for text in data["missing"])


def test_too_many_threads_of_one_process_are_not_looked_at_and_told(audit, holder):
    code = (
        "import threading\nthreading.stack_size(65536)\nwait = threading.Event()\n"
        "for _ in range(1100): threading.Thread(target=wait.wait, daemon=True).start()\n"
        "print(flush=True)\ninput()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        missing = audit()["whole"]["missing"]
        process.communicate("\n")
    assert any(f"(pid {process.pid}): it has too many" in text for text in missing)


# --- interrupts ------------------------------------------------------------------------------------------


def softirqs(name: str) -> int:
    """Of that CPU, since boot."""
    head, *rows = Path("/proc/softirqs").read_text().splitlines()
    row = next(row.split() for row in rows if row.split()[0] == f"{name}:")
    return int(row[1 + head.split().index(f"CPU{LCORE}")])


@needs_root("soft interrupts of a network interface")
def test_soft_interrupts_of_a_network_interface_are_named(audit, holder, link):
    """What is sent through a veth on a CPU is received there, by a soft interrupt."""
    code = (
        f"import os, socket\nos.sched_setaffinity(0, {{{LCORE}}})\n"
        f"s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nwhile True: s.sendto(b'x', ('{FAR4}', 9))"
    )
    far = link.far_udp(socket.AF_INET)
    far.bind((FAR4, 9))  # else it answers by ICMP

    def planted() -> tuple[int, dict] | None:
        before = softirqs("NET_RX")
        found = next((s for s in audit()["soft_interrupts"] if s["name"] == "NET_RX"), None)
        return (softirqs("NET_RX") - before, found) if found else None

    with far, subprocess.Popen([sys.executable, "-c", code]) as sender:
        try:
            came, found = eventually(planted)
        finally:
            sender.kill()
    assert 0 < found["count"] <= came
    assert "rps_cpus" in found["setting"]


def test_timers_are_counted(audit, holder):
    code = (
        f"import os, signal\nos.sched_setaffinity(0, {{{LCORE}}})\nsignal.signal(signal.SIGALRM, lambda *_: None)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)\nwhile True: signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            result = again(audit, lambda found: found["ticks_per_second"])
        finally:
            process.kill()
    assert result["tick_setting"].startswith("boot with nohz_full=")
    assert "LOC" not in {source["name"] for source in result["interrupts"]}


# --- the core and its settings ---------------------------------------------------------------------------


def as_siblings(directory: Path) -> tuple[str, ...]:
    """The prefix of a command for which CPUs 0 and 1 are hardware threads of one core, with a governor."""
    Machine(cores=1, threads=2).write(directory)
    for cpu in OTHER, LCORE:
        (directory / f"devices/system/cpu/cpu{cpu}/cpufreq").mkdir()
        (directory / f"devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor").write_text("powersave\n")
    (directory / "devices/system/cpu/nohz_full").write_text(f"{LCORE}\n")
    script = f'mount --bind {directory}/devices/system/cpu /sys/devices/system/cpu && exec "$@"'
    return *namespaces("mount"), "sh", "-c", script, "sh"


def test_a_busy_smt_sibling_and_the_governor_are_named(start_ctl, holder, spinner, tmp_path):
    pid, tid = spinner(OTHER)
    within = as_siblings(tmp_path)

    def planted() -> dict | None:
        process = start_ctl("audit", *SHORT, "--limit", 0, "--json", within=within)
        data = json.loads(process.communicate()[0])
        jsonschema.validate(data, SCHEMA)
        (result,) = data["lcores"]
        (sibling,) = result["siblings"]
        return result if named(sibling["threads"], tid) else None

    result = eventually(planted)
    assert result["siblings"][0]["lcore"] == OTHER
    assert named(result["siblings"][0]["threads"], tid)["pid"] == pid
    assert result["verdict"] == "disturbed"
    assert any(f"of lcore {OTHER}, on the same core" in reason for reason in result["reasons"])
    assert (result["governor"], result["governor_setting"]) == (
        "powersave",
        f"cpupower -c {LCORE} frequency-set -g performance",
    )
    assert result["tick_setting"] is None  # as it is set


@needs_root("a /proc without what is no process's")
def test_without_counters_it_says_so_and_goes_on(start_ctl, holder):
    """As with ProcSubset=pid of systemd."""
    script = 'mount -t proc -o subset=pid proc /proc && exec "$@"'
    within = ("unshare", "--mount", "sh", "-c", script, "sh")
    data = json.loads(start_ctl("audit", *SHORT, "--json", within=within).communicate()[0])
    jsonschema.validate(data, SCHEMA)
    assert {path for path in ("/proc/stat", "/proc/interrupts", "/proc/softirqs")} <= {
        text.split(": ")[1] for text in data["missing"] if text.count(": ") > 1
    }
    (result,) = data["lcores"]
    assert (result["interrupts"], result["unseen_percent"], result["ticks_per_second"]) == ([], None, None)


# --- what is asked for -----------------------------------------------------------------------------------


def test_within_the_limit_the_exit_status_is_0(audit, holder, spinner):
    spinner(LCORE)
    result = audit("--limit", 100)
    assert result["status"] == 0
    assert result["verdict"] != "disturbed"


def test_lcores_can_be_named_whether_they_are_held_or_not(audit, ctl, holder):
    assert audit(OTHER)["owner"] is None
    lines = ctl("audit", *SHORT, "--limit", 100, "0-1").stdout
    assert f"lcore {OTHER}: " in lines
    assert "held by nobody" in lines
    assert f"lcore {LCORE}: " in lines
    assert "held by hold (pid " in lines


def test_that_nothing_is_held_is_said(ctl, segment):
    Host(segment).close()
    done = ctl("audit")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "no lcore is held")


@pytest.mark.parametrize(
    "words",
    [("x",), ("3-1",), ("1000",), ("--seconds", "nan"), ("--seconds", "0"), ("--limit", "nan"), ("--limit", 101)],
)
def test_what_cannot_be_is_wrong_usage(ctl, segment, words):
    Host(segment).close()
    assert ctl("audit", *words).returncode == 2


def test_without_a_segment_it_says_so(ctl, segment):
    done = ctl("audit")
    assert (done.returncode, done.stdout) == (3, "")
    assert segment in done.stderr


def test_names_cannot_write_on_the_terminal(ctl, holder):
    code = (
        "import os\nopen('/proc/self/comm', 'w').write('\\x1b]0;x\\n9: alone')\n"
        f"os.sched_setaffinity(0, {{{LCORE}}})\nprint(flush=True)\nwhile True: pass"
    )
    with subprocess.Popen([BIN / "python", "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            text = again(lambda: ctl("audit", *SHORT, "--limit", 0).stdout, lambda out: str(process.pid) in out)
        finally:
            process.send_signal(signal.SIGKILL)
    assert "\x1b" not in text
    assert "\n9: alone" not in text
