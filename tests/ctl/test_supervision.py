# SPDX-License-Identifier: BSD-3-Clause
"""run hands signals on to its command, stops and ends with it, and returns its exit status."""

from __future__ import annotations

import os
import pty
import signal
import subprocess

import psutil
import pytest

from lab.processes import BIN, DEADLINE, eventually, held, namespaces
from mtlshm import Host

CTL = str(BIN / "mtlshm-ctl")


def first_line(process) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def test_its_exit_status_is_the_commands(ctl):
    assert ctl("run", "--lcores", 1, "--", "sh", "-c", "exit 7").returncode == 7
    assert ctl("run", "--lcores", 1, "--", "sh", "-c", "kill -KILL $$").returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize(("command", "status"), [("/no/such/command", 127), ("/etc/passwd", 126)])
def test_a_command_that_cannot_be_run_has_the_shells_status(ctl, segment, command, status):
    done = ctl("run", "--lcores", 1, "--", command)
    assert done.returncode == status
    assert done.stderr.count("\n") == 1
    assert command in done.stderr
    assert held(segment) == set()


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


def test_the_command_does_not_outlive_the_claim(start_ctl, segment):
    process = start_ctl("run", "--lcores", 1, "sleep", "1000")
    (child,) = eventually(lambda: [c for c in psutil.Process(process.pid).children() if c.name() == "sleep"])
    process.kill()
    process.wait()
    eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    with Host(segment) as host:
        assert host.sweep() == 1
    assert held(segment) == set()


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
