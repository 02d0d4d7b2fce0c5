# SPDX-License-Identifier: BSD-3-Clause
"""Alerts and the dashboard ask for metrics that there are, with labels that these have."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lab.scraper import scrape

ROOT = Path(__file__).parents[2]
RULES = ROOT / "contrib/prometheus/mtlshm.rules.yml"
DASHBOARD = ROOT / "contrib/grafana/mtlshm.json"


def rules() -> list[dict]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return group["rules"]


def panels() -> list[dict]:
    return json.loads(DASHBOARD.read_text())["panels"]


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in rules())
    yield from (target["expr"] for panel in panels() for target in panel["targets"])
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        yield variable.get("definition", "")


def test_all_metrics_that_are_asked_for_are_told_and_most_are_asked_for(daemon, manager_socket):
    place = manager_socket.with_name("metrics.sock")
    daemon("--metrics", f"unix:{place}")
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", scrape(place, "text/plain"), re.MULTILINE))
    asked = {name for text in expressions() for name in re.findall(r"\bmtlshm_\w+", text)}
    assert {name.removesuffix("_bucket") for name in asked} == set(kinds)
    for text in expressions():
        for name in re.findall(r"(?:rate|increase)\((mtlshm_\w+)", text):
            assert kinds[name.removesuffix("_bucket")] in ("counter", "histogram"), text


def test_each_alert_says_what_to_do():
    assert len({rule["alert"] for rule in rules()}) == len(rules())
    for rule in rules():
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}


@pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool (Debian: prometheus); not tested: its opinion")
def test_promtool_has_no_complaint_about_the_alerts():
    checked = subprocess.run(["promtool", "check", "rules", RULES], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_panels_of_the_dashboard_do_not_overlap_and_have_a_unit():
    board = json.loads(DASHBOARD.read_text())
    assert (board["uid"], board["title"]) == ("mtlshm", "mtlshm")
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            assert 'instance=~"$instance"' in target["expr"]
    assert len({panel["id"] for panel in panels()}) == len(panels())
