# SPDX-License-Identifier: BSD-3-Clause
"""Clients of all kinds claim and die by the thousands, and the daemon with them; no lcore has two owners or is lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from proof.arena import NAMESPACES, Order
from proof.plants import CORE, PROCESSES
from proof.proof import HERE, arguments, build, check_names, verdict

NAME = "torture"
KILLS = 10_000
KILLS_TO_FIND = 20_000  # a planted bug, at most; most take a few hundred

# Those that random deaths give away. Others need one at a certain instruction, or two that meet once in an hour: they
# are for tools/crashtest and tools/model.
BUGS = PROCESSES | {
    name: CORE[name]
    for name in (
        "claims-by-load-and-store",
        "collects-the-living",
        "takes-half",
        "takes-from-the-living",
        "live-before-the-lock",
        "lock-not-pinned",
        "no-takeover",
        "takeover-from-the-living",
        "releases-to-anybody",
        "rolls-back-to-anybody",
        "clears-to-anybody",
        "takes-what-is-not-lent",
        "keeps-no-parent",
        "leaves-without-a-look",
        "reserves-one-by-one",
    )
}


def compile_witness(library: Path) -> Path:
    command = ["cc", "-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", library, HERE / "witness.c"], check=True)
    return library


class Torture:
    def __init__(self, directory: Path, seed: int) -> None:
        self._directory = directory
        self._seed = seed
        self._library = compile_witness(directory / "witness.so")

    def run(self, bug: str, kills: int) -> dict[str, Any]:
        """With a bug planted, or with none (''); its figures."""
        directory = self._directory / (bug or "sound")
        directory.mkdir()
        plant = BUGS[bug] if bug else None
        program = build(directory / "torture", HERE / "torture", plant, str(HERE / "witness.c"), "-static")
        order = Order(str(directory), str(program), str(self._library), kills, str(self._seed))
        command = [*NAMESPACES, sys.executable, "-P", "-m", "proof.arena", json.dumps(asdict(order))]
        log = directory / "log"
        with (
            log.open("wb") as output,
            # It ends with its standard input, whatever becomes of us.
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output) as arena,
        ):
            arena.wait()
        result = directory / "result.json"
        if not result.exists():
            raise SystemExit(f"{NAME}: the arena ended with status {arena.returncode}\n{log.read_text()}")
        figures: dict[str, Any] = json.loads(result.read_text())
        return figures | {"said": log.read_text()}


def test_itself(torture: Torture, names: list[str], kills: int) -> dict[str, str]:
    """What gave away each planted bug."""
    found = {}
    for name in names:
        figures = torture.run(name, kills)
        found[name] = figures["wrong"].split("; ")[0]
        after = f"after {figures['kills']:,} kills, {figures['seconds']:.0f} s"
        print(f"{name} ({BUGS[name].what}): {found[name] or 'NOT FOUND'}; {after}", flush=True)
    return found


def main() -> int:
    parser = arguments(__doc__, NAME)
    parser.add_argument(
        "--kills", type=int, help=f"how many ({KILLS:,}; with --self-test {KILLS_TO_FIND:,} for each bug)"
    )
    parser.add_argument("names", nargs="*", metavar="BUG", help="with --self-test: which bugs (all)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    torture = Torture(options.directory, options.seed)
    if options.self_test:
        names = check_names(parser, options.names, BUGS)
        found = test_itself(torture, names, options.kills or KILLS_TO_FIND)
        caught = sum(map(bool, found.values()))
        sentence = f"{caught} of {len(found)} planted bugs found"
        return verdict(NAME, caught == len(found), sentence, {"found": found}, options.json)
    if options.names:
        parser.error("bugs are planted with --self-test")

    figures = torture.run("", options.kills or KILLS)
    if said := figures.pop("said"):
        print(said)
    for name, value in figures.items():
        print(f"{name}: {value}")
    processes = figures["kills"] + sum(figures["ended"].values())
    sentence = (
        f"{figures['kills']:,} of {processes:,} processes killed, the daemon {figures['restarts']} times; "
        f"{sum(figures['granted'].values()):,} lcores granted, {figures['inherited']:,} of them the dead's; "
        f"{figures['wrong'] or 'nothing wrong'} (seed {options.seed}, {figures['seconds']:.0f} s)"
    )
    return verdict(NAME, not figures["wrong"], sentence, {"seed": options.seed} | figures, options.json)


if __name__ == "__main__":
    sys.exit(main())
