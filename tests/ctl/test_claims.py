# SPDX-License-Identifier: BSD-3-Clause
"""run and hold: lcores are claimed for as long as a command, or we, last."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from lab.processes import BIN, DEADLINE, eventually, held, look, namespaces
from mtlshm import CpuSet, Host

CTL = str(BIN / "mtlshm-ctl")


def first_line(process) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def test_the_command_runs_on_its_lcores_and_knows_them(ctl, segment, own_cpus):
    code = "import os; print(os.environ['MTLSHM_LCORES']); print(sorted(os.sched_getaffinity(0)))"
    done = ctl("run", "--lcores", 1, "--", "python3", "-c", code)
    lcores, affinity = done.stdout.splitlines()
    assert affinity == str(sorted(CpuSet.parse(lcores)))
    assert done.returncode == 0
    assert held(segment) == set()


def test_its_exit_status_is_the_commands(ctl):
    assert ctl("run", "--lcores", 1, "--", "sh", "-c", "exit 7").returncode == 7
    assert ctl("run", "--lcores", 1, "--", "sh", "-c", "kill -KILL $$").returncode == 128 + signal.SIGKILL


def test_options_of_the_command_are_the_commands(ctl):
    assert ctl("run", "--lcores", 1, "echo", "--lcores", "9", "--help").stdout == "--lcores 9 --help\n"


@pytest.mark.parametrize(("command", "status"), [("/no/such/command", 127), ("/etc/passwd", 126)])
def test_a_command_that_cannot_be_run_has_the_shells_status(ctl, segment, command, status):
    done = ctl("run", "--lcores", 1, "--", command)
    assert done.returncode == status
    assert done.stderr.count("\n") == 1
    assert command in done.stderr
    assert held(segment) == set()


@pytest.mark.parametrize("count", [1024, 5000])
def test_what_could_never_be_had_is_refused_and_nothing_is_started(ctl, segment, count):
    done = ctl("run", "--lcores", count, "--", "echo", "started")
    assert done.returncode == 125
    assert done.stdout == ""
    assert f"{count} lcores" in done.stderr
    assert held(segment) == set()


def test_too_few_free_is_refused_and_nothing_is_started(ctl, segment, own_cpus):
    with Host(segment) as host, host.register("all of them") as me:
        me.claim_many(len(own_cpus))
        done = ctl("run", "--lcores", 1, "--", "echo", "started")
    assert (done.returncode, done.stdout) == (125, "")
    assert f"0 free of the {len(own_cpus)} " in done.stderr


def test_a_node_that_does_not_exist_is_refused(ctl):
    done = ctl("run", "--lcores", 1, "--numa", 63, "--", "true")
    assert done.returncode == 125
    assert "NUMA node" in done.stderr


_CANNOT_BE_CAUGHT = {signal.SIGKILL, signal.SIGSTOP}


def test_all_signals_but_sigchld_are_passed_on(start_ctl):
    code = (
        "import signal, sys\n"
        "every = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, every)\n"
        "print('up', flush=True)\n"
        "while True:\n    print(int(signal.sigwaitinfo(every).si_signo), flush=True)"
    )
    process = start_ctl("run", "--lcores", 1, BIN / "python", "-c", code)
    assert first_line(process) == "up"
    for number in sorted(signal.valid_signals() - _CANNOT_BE_CAUGHT - {signal.SIGCHLD}):
        process.send_signal(number)
        assert first_line(process) == str(int(number))
    process.send_signal(signal.SIGCHLD)
    process.send_signal(signal.SIGTERM)
    assert first_line(process) == str(int(signal.SIGTERM))
    assert process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGALRM, signal.SIGRTMIN + 3])
def test_a_command_that_dies_of_a_signal_gives_its_status(start_ctl, number):
    process = start_ctl("run", "--lcores", 1, "sh", "-c", "echo up; exec sleep 1000")
    assert first_line(process) == "up"
    process.send_signal(number)
    assert process.wait() == 128 + number


def test_an_alarm_set_before_it_was_started_reaches_the_command(environment):
    # Some use a small program in place of timeout(1): alarm(), then exec.
    code = (
        "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM}); "
        "signal.setitimer(signal.ITIMER_REAL, 0.001); os.execv(sys.argv[1], sys.argv[1:])"
    )
    inner = "import signal; print(signal.sigwait({signal.SIGALRM}).name)"
    command = [BIN / "python", "-c", code, CTL, "run", "--lcores", "1", BIN / "python", "-c", inner]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=DEADLINE)
    assert done.stdout == "SIGALRM\n"


def test_it_stops_and_goes_on_with_its_command(environment):
    # In a process group of its own, as a shell with job control does: in an orphaned one SIGTSTP stops nobody.
    command = [CTL, "run", "--lcores", "1", "sh", "-c", "echo up; exec sleep 1000"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, process_group=0) as process:
        try:
            assert first_line(process) == "up"
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
            assert len(family) == 2
            process.send_signal(signal.SIGTSTP)
            eventually(lambda: all(one.status() == psutil.STATUS_STOPPED for one in family))
            process.send_signal(signal.SIGCONT)
            eventually(lambda: all(one.status() != psutil.STATUS_STOPPED for one in family))
            process.terminate()
            assert process.wait(DEADLINE) == 128 + signal.SIGTERM
        finally:
            process.kill()  # and so its command


def test_it_does_not_stop_with_a_command_that_catches_the_stop(environment):
    script = "trap 'exit 9' TSTP; echo up; while :; do sleep 0.01; done"
    command = [CTL, "run", "--lcores", "1", "sh", "-c", script]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, process_group=0) as process:
        assert first_line(process) == "up"
        process.send_signal(signal.SIGTSTP)
        assert process.wait(DEADLINE) == 9


def test_that_pinning_is_denied_is_said(environment, segment):
    if os.uname().machine != "x86_64":
        pytest.skip("the filter of this test has system call numbers of x86-64; not tested: denied sched_setaffinity")
    # A seccomp filter: sched_setaffinity (203) is EPERM. See seccomp(2), linux/filter.h.
    code = (
        "import ctypes, os, struct, sys\n"
        "steps = [(0x20, 0, 0, 0), (0x15, 0, 1, 203), (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000)]\n"
        "filter = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *step) for step in steps))\n"
        "program = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', len(steps), ctypes.addressof(filter)))\n"
        "libc = ctypes.CDLL(None)\n"
        "assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [BIN / "python", "-c", code, CTL, "run", "--lcores", "1", "echo", "started"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE)
    assert (done.returncode, done.stdout) == (125, "")
    assert "sched_setaffinity" in done.stderr
    assert "not permitted" in done.stderr
    assert held(segment) == set()


def test_a_signal_from_the_terminal_reaches_the_command_once(environment):
    # It goes to the whole foreground group, so passing it on would make it two. A terminal of our own, and ^C.
    count = "n=0; trap 'n=$((n+1))' INT; echo up; sleep 1; sleep 0.3; exit $n"
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(CTL, [CTL, "run", "--lcores", "1", "sh", "-c", count], environment)
    output = b""
    while b"up" not in output:
        output += os.read(terminal, 1024)
    os.write(terminal, b"\x03")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 1


def test_the_claim_lasts_as_long_as_the_command(start_ctl, segment):
    process = start_ctl("run", "--lcores", 1, "sh", "-c", "echo up; exec sleep 1000")
    first_line(process)
    assert len(held(segment)) == 1
    (child,) = psutil.Process(process.pid).children()
    child.kill()
    assert process.wait() == 128 + signal.SIGKILL
    assert held(segment) == set()


def test_the_command_does_not_outlive_the_claim(start_ctl, segment):
    process = start_ctl("run", "--lcores", 1, "sleep", "1000")
    (child,) = eventually(lambda: [c for c in psutil.Process(process.pid).children() if c.name() == "sleep"])
    process.kill()
    process.wait()
    eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    with Host(segment) as host:
        assert host.sweep() == 1
    assert held(segment) == set()


def test_the_table_names_the_command(start_ctl, segment):
    process = start_ctl("run", "--lcores", 1, "sh", "-c", "echo up; exec sleep 1000")
    first_line(process)
    (lcore,) = look(segment).lcores
    assert lcore.owner.label == "sh -c echo up; exec sleep 1000"
    assert lcore.owner.pid == process.pid


def test_hold_keeps_given_lcores_until_it_is_stopped(start_ctl, segment, own_cpus):
    process = start_ctl("hold", own_cpus[-1])
    assert first_line(process) == str(own_cpus[-1])
    assert held(segment) == {own_cpus[-1]}
    process.terminate()
    assert process.wait() == 0
    assert held(segment) == set()


def test_hold_finds_lcores_by_policy(start_ctl, segment):
    process = start_ctl("hold", "--lcores", 1)
    assert CpuSet.parse(first_line(process)) == held(segment)


def test_hold_takes_all_or_none(ctl, segment, own_cpus):
    with Host(segment) as host, host.register("in the way") as me:
        me.claim(own_cpus[-1])
        done = ctl("hold", CpuSet(own_cpus))
        assert done.returncode == 4
        assert held(segment) == {own_cpus[-1]}


@pytest.mark.parametrize("words", [(), ("1", "--lcores", "1"), ("3-1",), ("one",), ("",)])
def test_hold_refuses_what_makes_no_sense(ctl, words):
    done = ctl("hold", *words)
    assert done.returncode == 2
    assert "Error" in done.stderr


def test_an_lcore_that_is_no_cpu_here_is_refused(ctl):
    absent = max(map(int, (d.name[3:] for d in Path("/sys/devices/system/cpu").glob("cpu[0-9]*")))) + 1
    done = ctl("hold", absent)
    assert done.returncode == 1
    assert "absent or offline" in done.stderr


def test_a_signal_from_outside_its_pid_namespace_is_passed_on(environment):
    # Its sender has no pid there.
    script = "trap 'exit 9' TERM; echo up; while :; do sleep 0.01; done"
    command = [*namespaces("pid"), CTL, "run", "--lcores", "1", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert first_line(process) == "up"
        family = psutil.Process(process.pid).children(recursive=True)
        next(p for p in family if p.name() == "mtlshm-ctl").terminate()
        assert process.wait() == 9


def test_it_ends_although_it_was_started_with_sigchld_ignored(environment):
    command = ["env", "--ignore-signal=CHLD", CTL, "run", "--lcores", "1", "--", "true"]
    assert subprocess.run(command, env=environment, timeout=DEADLINE).returncode == 0


def test_an_argument_may_be_any_bytes(environment):
    done = subprocess.run([CTL, "run", "--lcores", "1", "echo", b"\xff"], env=environment, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (0, b"\xff\n")


@pytest.mark.parametrize(
    "words",
    [
        ("hold", "4294967296"),
        ("hold", "0-999999999"),
        ("hold", "0", "--numa", "0"),
        ("run", "--lcores", "1", "--numa", "99999999999", "true"),
    ],
)
def test_numbers_that_cannot_be_meant_are_wrong_usage(ctl, words):
    done = ctl(*words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["run", "hold"])
@pytest.mark.parametrize("count", [0, -1])
def test_a_number_that_makes_no_sense_is_wrong_usage(ctl, verb, count):
    done = ctl(verb, "--lcores", count, *(["true"] if verb == "run" else []))
    assert done.returncode == 2
    assert "--lcores" in done.stderr
    assert f"{count} is not in the range" in done.stderr


def test_a_refusal_says_how_many_were_asked_for_how_many_are_free_and_who_has_the_rest(ctl, segment, own_cpus):
    with Host(segment) as host, host.register("encoder") as other:
        lcores = other.claim_many(len(own_cpus))
        done = ctl("run", "--lcores", 1, "true")
        assert done.returncode == 125
        assert f"1 lcores asked for, 0 free of the {len(own_cpus)} that this process may use" in done.stderr
        assert f"held: {lcores} by encoder (pid {os.getpid()}," in done.stderr
        assert ctl("hold", "--lcores", 1).returncode == 4
        done = ctl("hold", min(lcores))
        assert done.returncode == 4
        assert f"lcore {min(lcores)}: held by encoder (pid {os.getpid()}," in done.stderr


def test_a_number_that_there_could_never_be_is_told_what_there_is(ctl, own_cpus):
    for count in len(own_cpus) + 1, 100000:
        done = ctl("run", "--lcores", count, "true")
        assert done.returncode == 125
        assert f"{count} lcores asked for, {len(own_cpus)} free of the {len(own_cpus)}" in done.stderr
        assert "ask for fewer" in done.stderr
