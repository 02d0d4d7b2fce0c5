# SPDX-License-Identifier: BSD-3-Clause
"""fleet: the lcores of many hosts, as their daemons tell Prometheus.

A HOST THAT DOES NOT ANSWER is not one with nothing to tell. Prometheus drops what a host told when it does not answer
any more, so such a host is only missed by somebody who knows of it. It is known by what it told in the last day, or as
a target of a job whose other targets told something.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from errno import EIO
from typing import Any
from urllib.parse import urlencode

import click

from mtlshm.ctl.table import Column, draw
from mtlshm.errors import reason
from mtlshm.snapshot import printable

_NOW = "sum by (instance, state) (mtlshm_lcores)"
_TOLD = "last_over_time(mtlshm_build_info[1d])"
_KNOWN = f"count by (instance) ({_TOLD} or on (instance) (up == 0 and on (job) {_TOLD}))"
_STATES = ("free", "held", "reserved", "lent", "dead")
_DEADLINE = 30.0  # seconds
_MOST = 64 << 20  # bytes


@click.command()
@click.option(
    "--prometheus",
    "url",
    envvar="MTLSHM_PROMETHEUS",
    default="http://127.0.0.1:9090",
    help="URL of Prometheus; default http://127.0.0.1:9090.  [env: MTLSHM_PROMETHEUS]",
)
@click.option("--json", "as_json", is_flag=True, help="One object: hosts[], each with host, answers, lcores.")
def fleet(url: str, as_json: bool) -> None:
    """Show the lcores of all hosts that Prometheus knows.

    These are hosts whose daemons told it their metrics in the last day, and targets of the same jobs that do not
    answer. A host that tells nothing now is shown as silent, without numbers. Needs no segment.
    """
    hosts: dict[str, dict[str, int] | None] = {_host(each): None for each in _query(url, _KNOWN)}
    for each in _query(url, _NOW):
        lcores = hosts.get(_host(each)) or dict.fromkeys(_STATES, 0)
        lcores[printable(str(each["metric"].get("state", "")))] = int(float(each["value"][1]))
        hosts[_host(each)] = lcores
    if as_json:
        told = [
            {"host": name, "answers": lcores is not None, "lcores": lcores} for name, lcores in sorted(hosts.items())
        ]
        click.echo(json.dumps({"prometheus": url, "hosts": told}, indent=2))
        return
    for line in _lines(hosts):
        click.echo(line)


def _lines(hosts: dict[str, dict[str, int] | None]) -> list[str]:
    answering = {name: lcores for name, lcores in hosts.items() if lcores is not None}
    silent = sorted(hosts.keys() - answering.keys())
    sums = [f"{sum(lcores[state] for lcores in answering.values())} {state}" for state in _STATES]
    summary = f"{len(answering)} hosts answer: {', '.join(sums)}"
    if silent:
        summary += f"; {len(silent)} silent: {', '.join(silent)}"
    if not hosts:
        return [f"{summary}; set `metrics` of mtlshmd, and have Prometheus scrape it"]
    rows = sorted(hosts.items())
    columns = [Column("host", [name for name, _ in rows])]
    for state in _STATES:
        columns.append(Column(state, [str(lcores[state]) if lcores else "?" for _, lcores in rows]))
    columns.append(Column("", ["" if lcores else "silent" for _, lcores in rows]))
    return [summary, "", *draw(columns)]


def _host(result: Any) -> str:
    return printable(str(result["metric"].get("instance", "?")))


def _query(url: str, text: str) -> list[dict[str, Any]]:
    """What an instant query answers. OSError if Prometheus does not."""
    target = f"{url.rstrip('/')}/api/v1/query?{urlencode({'query': text})}"
    try:
        with urllib.request.urlopen(target, timeout=_DEADLINE) as answer:
            body = answer.read(_MOST + 1)
    except urllib.error.HTTPError as error:
        raise OSError(EIO, f"Prometheus at {url}: {error.code} {printable(str(error.reason))}") from None
    except urllib.error.URLError as error:
        why = reason(error.reason) if isinstance(error.reason, OSError) else error.reason
        raise OSError(EIO, f"Prometheus at {url}: {why}; --prometheus names another") from None
    except (OSError, ValueError) as error:  # a URL that is none; half an answer
        raise OSError(EIO, f"Prometheus at {url}: {error}; --prometheus names another") from None
    try:
        data = json.loads(body)
        results = data["data"]["result"]
        if data["status"] != "success" or data["data"]["resultType"] != "vector":
            raise ValueError
        for each in results:  # has it the form that is used?
            each["metric"].get, int(float(each["value"][1]))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OverflowError):
        raise OSError(EIO, f"Prometheus at {url}: its answer is no vector; is it Prometheus?") from None
    return list(results)
