# SPDX-License-Identifier: BSD-3-Clause
"""run and hold: lcores claimed for as long as something lasts.

`run` stays as the parent of its command, since exec() would end the instance: what keeps one alive is the address
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
import sys
from collections.abc import Callable
from contextlib import suppress
from errno import EACCES, ENOSYS, EPERM
from typing import Any

import click

from mtlshm import CpuSet, Host, Instance, MtlshmError, Smt
from mtlshm.config import ConfigError
from mtlshm.ctl.refusal import explained, holder_named
from mtlshm.errors import reason

_NODES = 1023  # the kernel's CONFIG_NODES_SHIFT allows no higher number
_NOT_STARTED, _NOT_EXECUTABLE, _NOT_FOUND = 125, 126, 127
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SI_KERNEL = 0x80  # asm-generic/siginfo.h
_CAUGHT = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
_JOB_CONTROL = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
_OF_THE_TERMINAL = _JOB_CONTROL | {signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGCONT, signal.SIGWINCH}
_ALLOW = "; let the container's seccomp profile allow sched_setaffinity(2)"


def _policy(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a claim by policy."""
    for option in (
        click.option(
            "--smt",
            type=click.Choice([policy.name.lower() for policy in Smt]),
            default="any",
            help="any: ignore SMT siblings. avoid: take no lcore whose sibling is held. whole: take whole physical "
            "cores; all their siblings count. Default any.",
        ),
        click.option("--numa", type=click.IntRange(0, _NODES), help="Take lcores of this NUMA node only."),
    ):
        function = option(function)
    return function


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--lcores", "count", type=click.IntRange(1), required=True, help="Number of lcores.")
@_policy
@click.argument("cmd", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def run(context: click.Context, count: int, numa: int | None, smt: str, cmd: tuple[str, ...]) -> None:
    """Run a command on lcores of its own.

    The lcores are claimed before CMD starts. They are its affinity mask, and in MTLSHM_LCORES (such as 0-3,8). They are
    free again when CMD ends. All signals that can be caught are passed on to CMD, except SIGCHLD. If job control stops
    CMD, run stops with it.
    """
    try:
        with Host(context.obj) as host, host.register(" ".join(cmd)) as me:
            with explained(host, count, numa, Smt[smt.upper()]):
                lcores = me.claim_many(count, node=numa, smt=Smt[smt.upper()])
            context.exit(_supervise(cmd, lcores))
    except (MtlshmError, ConfigError) as error:
        click.echo(f"mtlshm-ctl: {reason(error)}", err=True)
        context.exit(_NOT_STARTED)


def _supervise(cmd: tuple[str, ...], lcores: CpuSet) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # died before that
            os._exit(_NOT_STARTED)
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
        return _NOT_STARTED
    try:
        child = subprocess.Popen(cmd, env=os.environ | {"MTLSHM_LCORES": str(lcores)}, preexec_fn=prepare)
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
            return _NOT_STARTED
        if not ended:
            return None
        if os.WIFSTOPPED(status):
            # Not on SIGSTOP: who sends that to the command alone sends SIGCONT to it alone.
            if ended == pid and os.WSTOPSIG(status) in _JOB_CONTROL:
                os.kill(os.getpid(), signal.SIGSTOP)
        elif ended == pid:
            return os.waitstatus_to_exitcode(status)


@click.command()
@click.option("--lcores", "count", type=click.IntRange(1), help="Number of lcores, chosen by policy.")
@_policy
@click.argument("which", required=False)
@click.pass_context
def hold(context: click.Context, count: int | None, numa: int | None, smt: str, which: str | None) -> None:
    """Claim lcores and keep them until SIGINT or SIGTERM.

    Claims the lcores in WHICH (such as 2-3,8), or as many as --lcores says, and prints which. Nobody else can claim
    them meanwhile, for instance while something is measured or repaired.
    """
    if (which is None) == (count is None):
        raise click.UsageError("name the lcores (such as 2-3) or give --lcores N, one of the two")
    if which is not None and (numa is not None or smt != "any"):
        raise click.UsageError("--numa and --smt apply to --lcores N only")
    try:
        chosen = None if which is None else CpuSet.parse(which)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="WHICH") from error
    until = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, until)
    with Host(context.obj) as host, host.register("hold") as me:
        if chosen is None:
            with explained(host, count or 0, numa, Smt[smt.upper()]):
                chosen = me.claim_many(count or 0, node=numa, smt=Smt[smt.upper()])
        else:
            _claim_each(host, me, chosen)
        click.echo(str(chosen))
        sys.stdout.flush()
        signal.sigwait(until)


def _claim_each(host: Host, me: Instance, lcores: CpuSet) -> None:
    """All or none: closing the instance gives back what it got before one was refused."""
    if not lcores:
        raise click.BadParameter("names no lcore", param_hint="WHICH")
    for lcore in sorted(lcores):
        with holder_named(host, lcore):
            me.claim(lcore)
