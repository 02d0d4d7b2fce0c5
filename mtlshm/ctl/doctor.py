# SPDX-License-Identifier: BSD-3-Clause
"""doctor: what is wrong with the segment and what surrounds it, and putting it right; and what the host lacks.

Put right is only what takes nothing from anyone who lives; for the rest it says what a person can do. On the host
nothing is changed: see host/.
"""

from __future__ import annotations

import errno
import grp
import json
import os
import pwd
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from mtlshm import Busy, Host, MtlshmError, NoSegment, config
from mtlshm.ctl import host as the_host
from mtlshm.ctl import legacy, listening, logind
from mtlshm.ctl.options import key_option, lock_option
from mtlshm.ctl.verdict import State, Verdict
from mtlshm.damage import Damage, What, examine, mend
from mtlshm.errors import reason
from mtlshm.host import default_path
from mtlshm.legacy import LegacyError
from mtlshm.legacy.lending import bring_home
from mtlshm.manager_client import default_socket
from mtlshm.net import places
from mtlshm.segment import GROUP, change
from mtlshm.users import User, users

_SHM = "/dev/shm/"
_ROUNDS = 5  # what is put right can bring to light what it had hidden

_STOP_ALL = "stop all processes that use it, then run: mtlshm-ctl doctor --repair"
_ADVICE = {
    What.FOREIGN: "name another path, or remove the file",
    What.LAYOUT: "stop all its users, give them the same version of mtlshm, then run: mtlshm-ctl doctor --repair",
    What.SHORT: _STOP_ALL,
    What.HIDDEN: "stop that process and start it again",
    What.KIND: "it does no harm and disappears when that process ends",
}


@dataclass(frozen=True, slots=True)
class _Finding:
    what: str
    text: str
    advice: str
    repair: Callable[[], None] | None = None  # raises OSError if it cannot be done


@click.command()
@click.option("--repair", is_flag=True, help="Repair what costs no living process anything.")
@click.option("--json", "as_json", is_flag=True, help="One object: segment, sound, findings[], host[].")
@key_option("--legacy-key", "As of `legacy`.")
@lock_option("--legacy-lock", "As of `legacy`.")
@click.pass_context
def doctor(context: click.Context, repair: bool, as_json: bool, legacy_key: int, legacy_lock: Path) -> None:
    """Report what is wrong with the segment and the host.

    Looks at the file, its users and its permissions, and at the legacy table if a daemon has bridged it. Needs no
    daemon, and nothing is changed without --repair. Of the host, which it never changes, each check is ok, a warning,
    a failure, or not known. Exit status 0 if nothing is wrong (any more), 1 if the segment is faulty or a check of the
    host is a failure; warnings do not count.
    """
    path = os.path.abspath(context.obj or default_path())
    place = legacy.Place(path, legacy_key, legacy_lock)
    try:
        findings = list(_look(path, place))
    except MtlshmError:  # of the host, something can be said all the same
        _say_of_the_host(path, _check_host(path), as_json)
        raise
    repaired: list[_Finding] = []
    refused: dict[_Finding, str] = {}
    for _ in range(_ROUNDS if repair else 0):
        done = [finding for finding in findings if _repaired(finding, refused)]
        if not done:
            break
        repaired += done
        try:
            findings = list(_look(path, place))
        except NoSegment:  # that was the repair
            findings = []
    if as_json:
        rows = [{"what": f.what, "text": f.text, "repaired": True, "advice": None} for f in repaired]
        rows += [
            {"what": f.what, "text": f.text, "repaired": False, "advice": refused.get(f, f.advice)} for f in findings
        ]
        host = _check_host(path)
        click.echo(json.dumps(_object(path, not findings, rows, host), indent=2))
    else:
        for finding in repaired:
            click.echo(f"repaired: {finding.text}")
        for finding in findings:
            click.echo(f"{finding.text}; {refused.get(finding, finding.advice)}")
        if not findings:
            click.echo(f"{path}: nothing is wrong{' any more' if repaired else ''}")
        host = _check_host(path)
        _say_of_the_host(path, host, False)
    failed = any(verdict.state is State.FAILURE for verdict in host)
    context.exit(1 if findings or failed else 0)


def _object(path: str, sound: bool | None, findings: list[dict[str, Any]], host: list[Verdict]) -> dict[str, Any]:
    return {"segment": path, "sound": sound, "findings": findings, "host": [verdict.as_json() for verdict in host]}


def _check_host(path: str) -> list[Verdict]:
    try:
        socket = default_socket()
    except FileNotFoundError:  # none is served
        socket = None
    state = os.environ.get("MTLSHMD_STATE") or config.configured("state") or places.STATE
    pins = os.environ.get("MTLSHMD_PINS") or config.configured("pins") or places.PINS
    group = os.environ.get("MTLSHMD_SOCKET_GROUP") or config.configured("socket_group") or GROUP
    return the_host.look(the_host.Place(path, socket, group, Path(state), Path(pins)))


def _say_of_the_host(path: str, host: list[Verdict], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(_object(path, None, [], host), indent=2))
        return
    click.echo("host:")
    for verdict in host:
        click.echo(f"  {verdict.state:9}  {verdict.check:14} {verdict}")


def _repaired(finding: _Finding, refused: dict[_Finding, str]) -> bool:
    if finding.repair is None:
        return False
    try:
        finding.repair()
    except Busy:
        refused[finding] = f"not repaired, as a living process would lose by it; {finding.advice}"
    except OSError as error:
        if error.errno == errno.ESRCH:  # somebody else has, or the lcore is another's meanwhile
            return True
        if error.errno != errno.EOPNOTSUPP:
            refused[finding] = f"not repaired: {reason(error)}; {finding.advice}"
    else:
        return True
    return False


def _look(path: str, place: legacy.Place) -> Iterator[_Finding]:
    present = sorted(users(path), key=lambda user: user.pid)
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        yield from _elsewhere(path, present, 0)
        if not present:
            examine(path)  # to fail as everything does where there is no segment
        return
    yield from _elsewhere(path, [user for user in present if user.inode != status.st_ino], status.st_ino)
    here = [user for user in present if user.inode == status.st_ino and not user.removed]
    damages = examine(path)
    if not {What.FOREIGN, What.LAYOUT} & {damage.what for damage in damages}:  # else its access is not ours to judge
        yield from _permissions(path, status, here)
        yield from _logout(path, status)
    sound = True
    for damage in damages:
        sound = sound and damage.what in (What.DEAD, What.TOKEN, What.SEMAPHORE, What.RECORD, What.KIND, What.HIDDEN)
        yield _of(path, damage, here)
    if sound:
        yield from _socket(path)
        yield from _legacy(path, place)


def _of(path: str, damage: Damage, here: list[User]) -> _Finding:
    text, advice = str(damage), _ADVICE.get(damage.what, "to put that right: mtlshm-ctl doctor --repair")
    if damage.what in (What.SHORT, What.LAYOUT, What.BOOT) and here:
        text += f"; used by {_names(here)}"
    # How those of another layout show that they live is not known: whoever has it in his memory may.
    repair = _refuse if damage.what is What.LAYOUT and here else partial(mend, path, damage)
    return _Finding(damage.what.name.lower(), text, advice, repair)


def _refuse() -> None:
    raise Busy(errno.EBUSY, "in use")


def _names(those: list[User]) -> str:
    return ", ".join(map(str, those))


def _elsewhere(path: str, those: list[User], inode: int) -> Iterator[_Finding]:
    if those:
        how = "replaced" if inode else "removed"
        text = f"{path} was {how} under {_names(those)}: what they hold is not in the table that others see"
        yield _Finding(how, text, "stop them, and start them again")


def _permissions(path: str, status: os.stat_result, here: list[User]) -> Iterator[_Finding]:
    mode, inode = stat.S_IMODE(status.st_mode), (status.st_dev, status.st_ino)
    if mode & 0o660 != 0o660:
        text = f"its mode is {mode:04o}: its group cannot use it"
        yield _Finding("mode", text, f"chmod ug+rw {path}", partial(change, path, inode, mode=mode | 0o660))
    if mode & 0o002:
        yield _Finding(
            "mode", f"its mode is {mode:04o}: anybody may write it", f"chmod o-w {path}, unless they are meant to"
        )
    with suppress(KeyError):
        wanted = grp.getgrnam(GROUP)
        if status.st_gid == wanted.gr_gid:
            return
        text = f"it belongs to group {_group(status.st_gid)}, not to {GROUP}, whose members cannot use it"
        if status.st_uid in (0, os.geteuid()) or _is_member(status.st_uid, wanted):
            # They open it again by its path each time they ask whether an owner lives.
            repair = _refuse if _need_group(path, status, here) else partial(change, path, inode, gid=wanted.gr_gid)
            advice = f"chgrp {GROUP} {path}" if repair is not _refuse else f"stop its users, then: chgrp {GROUP} {path}"
            yield _Finding("group", text, advice, repair)
        else:  # mtlshmd would believe him if the file had the group
            text += f"; and was made by uid {status.st_uid}, who is none of them"
            yield _Finding("group", text, f"stop who uses it (fuser -v {path}) and remove it")


def _need_group(path: str, status: os.stat_result, here: list[User]) -> bool:
    """Whether a living process may use the file only through its present group."""
    uids = set()
    for user in here:
        with suppress(OSError):
            uids.add(os.stat(f"/proc/{user.pid}").st_uid)
    with suppress(MtlshmError), Host(path, create=False, read_only=True) as host:  # and those that we cannot see
        uids |= {info.uid for info in host.snapshot().instances}
    return not uids <= {0, status.st_uid}


def _logout(path: str, status: os.stat_result) -> Iterator[_Finding]:
    """systemd-logind removes the file under those who use it."""
    if path.startswith(_SHM) and logind.deletes_files_of(status.st_uid):
        whose = f"it belongs to {_user(status.st_uid)}"
        text = f"{whose}: systemd-logind deletes it when that user logs out (RemoveIPC=yes)"
        yield _Finding("logout", text, "stop its users, remove it, and have root make it: sudo mtlshm-ctl create")


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _is_member(uid: int, group: grp.struct_group) -> bool:
    with suppress(KeyError):
        user = pwd.getpwuid(uid)
        return user.pw_gid == group.gr_gid or user.pw_name in group.gr_mem
    return False


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _socket(path: str) -> Iterator[_Finding]:
    try:
        with Host(path, create=False, read_only=True) as host:
            daemon = host.snapshot().daemon
    except MtlshmError:
        return
    for text in listening.troubles(daemon, ask=True):
        yield _Finding("socket", text, "stop who took it, and mtlshmd listens there again; or restart mtlshmd")


def _legacy(path: str, place: legacy.Place) -> Iterator[_Finding]:
    """Only of a table that a daemon has bridged: others are as they are."""
    try:
        with place.table() as table:
            lcores = legacy.both(place, table)
    except (LegacyError, MtlshmError):  # there is none, or not for us
        return
    if not any(lcore.entry and lcore.entry.reserved for lcore in lcores):
        return
    for lcore in lcores:
        if words := _OUT_OF_STEP.get(lcore.state):
            text = f"lcore {lcore.number}: {words}"
            repairable = lcore.state in ("unprotected", "between")
            advice = "mtlshmd puts that right" if lcore.state != "clash" else "stop one of them: mtlshm-ctl legacy info"
            repair = partial(_put_in_step, path, place, lcore.number) if repairable else None
            yield _Finding("legacy", text, advice, repair)


_OUT_OF_STEP = {
    "unprotected": "a legacy process could take it any time, as their table does not show that it is ours",
    "between": "neither a legacy process nor one of ours can have it, as a process was killed while it moved it",
    "not taken over": "a legacy process has it, and our table does not know",
    "clash": "has two owners, one in each table",
}


def _put_in_step(path: str, place: legacy.Place, number: int) -> None:
    with Host(path, create=False) as host, place.table() as table:
        lcore = legacy.both(place, table)[number]
        if lcore.state == "unprotected":
            table.reserve(number)
        elif lcore.state == "between" and lcore.owner:
            bring_home(host, table, number, lcore.owner.owner)
