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
from typing import Any

import click

from mtlshm import CpuSet, Host, Instance, MtlshmError, Smt
from mtlshm.config import ConfigError

_NODES = 1023  # the kernel's CONFIG_NODES_SHIFT allows no higher number
_NOT_STARTED, _NOT_EXECUTABLE, _NOT_FOUND = 125, 126, 127
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SI_KERNEL = 0x80  # asm-generic/siginfo.h
_PASSED_ON = {signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}


def _policy(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a claim by policy."""
    for option in (
        click.option(
            "--smt",
            type=click.Choice([policy.name.lower() for policy in Smt]),
            default="any",
            help="any: SMT siblings do not matter. avoid: none whose sibling is held. whole: whole physical "
            "cores, all their siblings count. Default any.",
        ),
        click.option("--numa", type=click.IntRange(0, _NODES), help="Only from this NUMA node."),
    ):
        function = option(function)
    return function


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--lcores", "count", type=int, required=True, help="How many.")
@_policy
@click.argument("cmd", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def run(context: click.Context, count: int, numa: int | None, smt: str, cmd: tuple[str, ...]) -> None:
    """Run CMD on lcores of its own: claimed first, in its affinity mask and in MTLSHM_LCORES (such as 0-3,8).

    They are free again when CMD ends. SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGUSR1 and SIGUSR2 are passed on to it.
    """
    try:
        with Host(context.obj) as host, host.register(" ".join(cmd)) as me:
            context.exit(_supervise(cmd, me.claim_many(count, node=numa, smt=Smt[smt.upper()])))
    except (MtlshmError, ConfigError) as error:
        click.echo(f"mtlshm-ctl: {error.strerror}", err=True)
        context.exit(_NOT_STARTED)


def _supervise(cmd: tuple[str, ...], lcores: CpuSet) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()
    waited_for = _PASSED_ON | {signal.SIGCHLD}

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # died before that
            os._exit(_NOT_STARTED)
        os.sched_setaffinity(0, lcores)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it was ignored, nobody would tell us of the end
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    try:
        child = subprocess.Popen(cmd, env=os.environ | {"MTLSHM_LCORES": str(lcores)}, preexec_fn=prepare)
    except OSError as error:
        click.echo(f"mtlshm-ctl: {cmd[0]}: {error.strerror}", err=True)
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
    except subprocess.SubprocessError as error:
        click.echo(f"mtlshm-ctl: {cmd[0]}: could not be prepared on lcores {lcores}: {error}", err=True)
        return _NOT_STARTED
    while (status := _reap(child.pid)) is None:
        received = signal.sigwaitinfo(waited_for)
        # One from the terminal has reached the command as well. (A pid of 0 would not tell: so has a sender in another
        # PID namespace.)
        if received.si_signo != signal.SIGCHLD and received.si_code != _SI_KERNEL:
            os.kill(child.pid, received.si_signo)
    child.returncode = status
    return 128 - status if status < 0 else status


def _reap(pid: int) -> int | None:
    """The exit status of that child, as subprocess gives it, if it has ended. Reaps others too: we may be PID 1."""
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return _NOT_STARTED
        if ended == pid:
            return os.waitstatus_to_exitcode(status)
        if not ended:
            return None


@click.command()
@click.option("--lcores", "count", type=int, help="How many, wherever they fit.")
@_policy
@click.argument("which", required=False)
@click.pass_context
def hold(context: click.Context, count: int | None, numa: int | None, smt: str, which: str | None) -> None:
    """Claim lcores, those in WHICH (such as 2-3,8) or --lcores of them, and keep them until SIGINT or SIGTERM.

    Prints which. For keeping them out of others' hands, while something is measured or repaired.
    """
    if (which is None) == (count is None):
        raise click.UsageError("say either which lcores (such as 2-3) or --lcores N")
    if which is not None and (numa is not None or smt != "any"):
        raise click.UsageError("--numa and --smt are for --lcores N")
    try:
        chosen = None if which is None else CpuSet.parse(which)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="WHICH") from error
    until = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, until)
    with Host(context.obj) as host, host.register("hold") as me:
        if chosen is None:
            chosen = me.claim_many(count or 0, node=numa, smt=Smt[smt.upper()])
        else:
            _claim_each(me, chosen)
        click.echo(str(chosen))
        sys.stdout.flush()
        signal.sigwait(until)


def _claim_each(me: Instance, lcores: CpuSet) -> None:
    """All or none: closing the instance gives back what it got before one was refused."""
    if not lcores:
        raise click.BadParameter("names no lcore", param_hint="WHICH")
    for lcore in sorted(lcores):
        me.claim(lcore)
