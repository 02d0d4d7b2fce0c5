# SPDX-License-Identifier: BSD-3-Clause
"""A command that runs on claimed lcores, its signals and its end.

We stay as the parent of the command, since exec() would end the instance: what keeps one alive is the address
space. The other way round, the command must not outlive the claim, so it is killed if we are (PR_SET_PDEATHSIG,
prctl(2)). Between our death and its own there are some microseconds in which its lcores are free already. A setuid
command, sudo say, escapes that: the kernel forgets the wish when it is executed. What the command itself has started is
its own affair: the claim ends with the command.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from contextlib import suppress
from errno import EACCES, ENOSYS, EPERM

import click

from mtlshm import CpuSet
from mtlshm.errors import reason

NOT_STARTED = 125
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SI_KERNEL = 0x80  # asm-generic/siginfo.h
_CAUGHT = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
_JOB_CONTROL = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
_OF_THE_TERMINAL = _JOB_CONTROL | {signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGCONT, signal.SIGWINCH}
_ALLOW = "; let the container's seccomp profile allow sched_setaffinity(2)"


def supervise(cmd: tuple[str, ...], lcores: CpuSet, lease: str) -> int:
    """Run a command on these lcores, with this lease; returns its exit status, or what stands for it."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # died before that
            os._exit(NOT_STARTED)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it was ignored, nobody would tell us of the end
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _CAUGHT)
    own = os.sched_getaffinity(0)
    try:
        # The command inherits it. Set here, where an error can be told, and not kept: what spins on these lcores with
        # real-time priority would not let us pass anything on.
        os.sched_setaffinity(0, lcores)
    except OSError as error:
        advice = _ALLOW if error.errno in (EPERM, EACCES, ENOSYS) else ""
        click.echo(f"mtlshm-ctl: cannot pin the command to lcores {lcores}: {reason(error)}{advice}", err=True)
        return NOT_STARTED
    try:
        child = subprocess.Popen(cmd, env=_environment(lcores, lease), preexec_fn=prepare)
    except OSError as error:
        click.echo(f"mtlshm-ctl: {cmd[0]}: {reason(error)}", err=True)
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
    finally:
        with suppress(OSError):  # none of them is online any more
            os.sched_setaffinity(0, own)
    status = _pass_on_until_it_ends(child)
    # In the table an access can be SIGBUS, which must reach its handler (see fault.c of the core).
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGBUS})
    return 128 - status if status < 0 else status


def _environment(lcores: CpuSet, lease: str) -> dict[str, str]:
    """The lease comes first: of another process's environment a daemon reads the beginning only."""
    ours = {"MTLSHM_LEASE": lease, "MTLSHM_LCORES": str(lcores)}
    return ours | {name: value for name, value in os.environ.items() if name not in ours}


def _pass_on_until_it_ends(child: subprocess.Popen[bytes]) -> int:
    while (status := _reap(child.pid)) is None:
        received = signal.sigwaitinfo(_CAUGHT)
        if received.si_signo == signal.SIGCHLD:
            continue
        # One from the terminal has reached the command as well. (A pid of 0 would not tell: so has a sender in another
        # PID namespace. And not all that the kernel sends is from the terminal: think of alarm().)
        if received.si_code != _SI_KERNEL or received.si_signo not in _OF_THE_TERMINAL:
            with suppress(ProcessLookupError):
                os.kill(child.pid, received.si_signo)
    child.returncode = status
    return status


def _reap(pid: int) -> int | None:
    """The exit status of that child, as subprocess gives it, if it has ended. Reaps others too: we may be PID 1.

    If job control has stopped it, we stop as well, for the shell to see that the job has; with SIGCONT it goes on.
    """
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        except ChildProcessError:
            return NOT_STARTED
        if not ended:
            return None
        if os.WIFSTOPPED(status):
            # Not on SIGSTOP: who sends that to the command alone sends SIGCONT to it alone.
            if ended == pid and os.WSTOPSIG(status) in _JOB_CONTROL:
                os.kill(os.getpid(), signal.SIGSTOP)
        elif ended == pid:
            return os.waitstatus_to_exitcode(status)
