# SPDX-License-Identifier: BSD-3-Clause
"""Figures for people: a page of Markdown and a picture."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from benchmarks.measure import Figure


@dataclass(frozen=True)
class Goal:
    """The most that is good enough, or the least."""

    of: str  # a field of Figure
    limit: float
    least: bool = False

    def __str__(self) -> str:
        return f"{self.of} {'≥' if self.least else '≤'} {self.limit:g}"

    def met(self, figure: Figure) -> bool:
        value = getattr(figure, self.of)
        return value is not None and (value >= self.limit if self.least else value <= self.limit)


GOALS = {
    "claim_c": [Goal("ratio", 1.5)],
    "claim_py": [Goal("ratio", 1.5)],
    "claim_tenant_c": [Goal("ratio", 1.1)],
    "claim8_c": [Goal("value", 1000)],
    "register_c": [Goal("value", 8000)],
    **{f"death_{n}": [Goal("value", 300), Goal("p99", 1000), Goal("ratio", 1.3)] for n in (1, 64, 250)},
    "death_grant": [Goal("ratio", 1)],
    "socket_death": [Goal("ratio", 1.2)],
    "register_pinned": [Goal("ratio", 2.5)],
    "hot_p99": [Goal("ratio", 3)],
    "ctl_start": [Goal("ratio", 4)],
    "status_250": [Goal("ratio", 10)],
    "daemon_start": [Goal("value", 250)],
    "daemon_rss": [Goal("value", 30)],
    "daemon_wakeups": [Goal("value", 0)],
    **{f"socket_1{how}": [Goal("ratio", 3)] for how in ("", "_pinned")},
    **{f"throughput_16{how}": [Goal("ratio", 0.4, least=True)] for how in ("", "_pinned")},
    **{f"xdp_{shape}{way}": [Goal("ratio", 0.6)] for shape in ("hit", "miss") for way in ("", "_fused")},
    **{f"vm_{shape}": [Goal("ratio", 0.5)] for shape in ("hit", "miss")},
}

_GROWING = re.compile(r"(socket|throughput|parallel|death)_(\d+)(_pinned)?$")


def write(
    directory: Path, machine: Mapping[str, object], figures: Sequence[Figure], number: Callable[[float | None], str]
) -> None:
    """figures.md and figures.png."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Figures",
        "",
        f"Measured on {date.today()} by `tools/bench --report`. Each is a median, and its ratio is to the median of a",
        "baseline measured by turns with it. Half of all turns were within the spread. Times do not carry over to",
        "other machines; ratios mostly do.",
        "",
        "Goals in units of time were set on a machine where the bare life lock takes 3.1 µs, see `register_c`. What",
        "BPF_PROG_TEST_RUN costs by itself, `xdp_empty`, is in all figures of XDP; so is, in the fused program's hits,",
        "the redirection, of which `xdp_redirect` shows the least, and which the gate beside it does not do.",
        "",
        *(f"- {key}: {value}" for key, value in machine.items()),
        "",
        "![ratios to the baselines, and growth](figures.png)",
        "",
        "| figure | value | spread | p99 | unit | baseline | its value | ratio | goal | met |",
        "|---|---:|---:|---:|---|---|---:|---:|---|---|",
    ]
    for figure in figures:
        goals = GOALS.get(figure.name, [])
        missed = not all(goal.met(figure) for goal in goals)
        cells = (
            figure.name,
            number(figure.value),
            " to ".join(map(number, figure.quartiles)) if figure.quartiles else "",
            number(figure.p99),
            figure.unit,
            figure.baseline or "",
            number(figure.baseline_value),
            "" if figure.ratio is None else f"{figure.ratio:.3g}",
            ", ".join(map(str, goals)),
            "**no**" if missed else "yes" if goals else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    (directory / "figures.md").write_text("\n".join(lines) + "\n")
    _draw(directory / "figures.png", figures)


def _draw(path: Path, figures: Sequence[Figure]) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    _, (left, right) = pyplot.subplots(1, 2, figsize=(14, 0.25 * len(figures) + 2), layout="constrained")
    shown = [(figure.name, figure.ratio) for figure in reversed(figures) if figure.ratio]
    left.barh([name for name, _ in shown], [ratio for _, ratio in shown], color="tab:blue")
    for row, (name, ratio) in enumerate(shown):
        left.text(ratio, row, f" {ratio:.3g}", va="center", fontsize=7)
        for goal in (goal for goal in GOALS.get(name, []) if goal.of == "ratio"):
            left.plot([goal.limit] * 2, [row - 0.5, row + 0.5], color="tab:red", linewidth=2)
    left.set_xscale("log")
    left.axvline(1, color="black", linewidth=0.5)
    left.tick_params(axis="y", labelsize=7)
    left.set_title("ratio to the baseline; red: the goal")
    left.margins(y=0.01)

    series: dict[str, list[tuple[int, float]]] = {}
    for figure in figures:
        if figure.ratio and (match := _GROWING.match(figure.name)):
            series.setdefault(match[1] + (match[3] or ""), []).append((int(match[2]), figure.ratio))
    for name, points in series.items():
        right.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_xlabel("clients, processes or instances")
    right.set_title("ratio to the baseline, as they become more")
    right.legend()
    pyplot.savefig(path, dpi=110)
