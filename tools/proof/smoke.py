# SPDX-License-Identifier: BSD-3-Clause
"""The package built, imported and run once with the oldest versions that setup.py allows, once with the newest.

All other tests run with the versions that .venv got when it was made, which are neither. Environments are kept in
.venv/smoke: the oldest until setup.py changes, the newest for a day.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / ".venv/smoke"
PARTS = ("setup.py", "pyproject.toml", "VERSION", "README.md", "MANIFEST.in", "LICENSE", "cffi_build", "mtlshm")
DEADLINE = 60.0  # seconds, only so that nothing hangs
LOWEST_PYTHON = (3, 11)  # newer ones may have no build of the oldest versions

IMPORT_ALL = """
import importlib, pkgutil, mtlshm
for module in pkgutil.walk_packages(mtlshm.__path__, "mtlshm."):
    importlib.import_module(module.name)
"""


SCRAPE = """
import os, socket
from prometheus_client.openmetrics.parser import text_string_to_metric_families
scraper = socket.socket(socket.AF_UNIX)
scraper.connect(os.environ["MTLSHMD_METRICS"].removeprefix("unix:"))
scraper.sendall(b"GET /metrics HTTP/1.1\\r\\nAccept: application/openmetrics-text\\r\\n\\r\\n")
answer = b""
while piece := scraper.recv(65536):
    answer += piece
names = [family.name for family in text_string_to_metric_families(answer.decode().partition("\\r\\n\\r\\n")[2])]
assert "mtlshm_lcores" in names, answer
"""


class Failed(Exception):
    """Something does not work; the text says what."""


def run(*command: object, **how: Any) -> str:
    """Run it to its end and return what it printed."""
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **how)
    if done.returncode:
        raise Failed(f"{' '.join(map(str, command))}\n{done.stdout}")
    return str(done.stdout)


def requirements() -> list[str]:
    """What setup.py and pyproject.toml ask for, each as NAME>=VERSION."""
    code = (
        "import json, runpy, setuptools\n"
        "extras = ('top', 'kubernetes')\n"
        "both = lambda **given: sum((given['extras_require'][extra] for extra in extras), given['install_requires'])\n"
        "setuptools.setup = lambda **given: print(json.dumps(both(**given)))\n"
        "runpy.run_path('setup.py')"
    )
    needed: list[str] = json.loads(run(sys.executable, "-c", code, cwd=ROOT))
    for each in tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]:
        if each not in needed:
            needed.append(each)
    return needed


def oldest(needed: list[str]) -> list[str]:
    """The lowest version of each."""
    for each in needed:
        if each.count(">=") != 1 or any(char in each for char in ",;<~!"):
            raise Failed(f"{each}: say it as NAME>=VERSION, or tools/smoke does not know the lowest version")
    return [each.replace(">=", "==") for each in needed]


def environment(name: str) -> Path:
    """An environment of its own, with what is needed and the package; returns its programs."""
    place = PLACE / name
    needed = requirements()
    wanted = oldest(needed) if name == "oldest" else [*needed, f"as of {datetime.now(UTC):%F}"]
    if _stamp(place, "needed") != wanted:
        print(f"smoke: installing the {name} versions", flush=True)
        if not (place / "bin/python").exists() or name == "oldest":
            shutil.rmtree(place, ignore_errors=True)
            run(sys.executable, "-m", "venv", "--without-pip", place)
        _install(place, "--upgrade", "--upgrade-strategy", "eager", *(oldest(needed) if name == "oldest" else needed))
        _set_stamp(place, "needed", wanted)
        _set_stamp(place, "package", None)
    sources = _digest()
    if _stamp(place, "package") != sources:
        with tempfile.TemporaryDirectory(prefix="mtlshm-smoke-") as tree:
            for part in PARTS:
                source = ROOT / part
                if source.is_dir():
                    ignored = shutil.ignore_patterns("*.so", "__pycache__", "_core.c", "mtlshm._core.*")
                    shutil.copytree(source, Path(tree) / part, ignore=ignored)
                else:
                    shutil.copy(source, tree)
            _install(place, "--no-build-isolation", "--no-deps", "--force-reinstall", tree)
        _set_stamp(place, "package", sources)
    return place / "bin"


def _install(place: Path, *what: str) -> None:
    pip = [sys.executable, "-m", "pip", "--python", place / "bin/python", "--disable-pip-version-check", "--no-input"]
    run(*pip, "install", *what)


def _digest() -> str:
    digest = hashlib.sha256()
    for part in PARTS:
        for path in sorted([ROOT / part, *(ROOT / part).rglob("*")]):
            if path.suffix in {".py", ".pyi", ".json", ".typed", ".c", ".h", ".txt", ".toml", ".in"} and path.is_file():
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _stamp(place: Path, name: str) -> Any:
    try:
        return json.loads((place / f"{name}.json").read_text())
    except (OSError, ValueError):
        return None


def _set_stamp(place: Path, name: str, value: Any) -> None:
    (place / f"{name}.json").write_text(json.dumps(value))


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for it."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"{what}: did not happen in {DEADLINE:.0f} s")
        time.sleep(0.02)


def smoke(programs: Path) -> None:
    """Everything imported; a daemon that serves and collects; each family of verbs."""
    run(programs / "python", "-c", IMPORT_ALL, cwd="/")
    with tempfile.TemporaryDirectory(prefix="mtlshm-smoke-") as directory:
        key = f"{random.SystemRandom().randrange(1 << 28, 1 << 30):#x}"
        segment = f"/dev/shm/{Path(directory).name}"
        settings = {
            "MTLSHM_PATH": segment,
            "MTLSHMD_CONFIG": "/dev/null",
            "MTLSHMD_STATE": f"{directory}/state",
            "MTLSHMD_PINS": f"{directory}/pins",
            "MTL_MANAGER_SOCK_PATH": f"{directory}/manager.sock",
            "MTLSHM_LEGACY_KEY": key,
            "MTLSHM_LEGACY_LOCK": f"{directory}/legacy.lock",
            "MTLSHMD_LEGACY": "0",
            "MTLSHMD_METRICS": f"unix:{directory}/metrics.sock",
        }
        try:
            how = {"env": os.environ | settings, "timeout": DEADLINE, "cwd": "/"}
            _serve_and_ask(programs, Path(directory) / "log", how)
        finally:
            clean_up = (
                "import contextlib, sysv_ipc, mtlshm\n"
                "with contextlib.suppress(OSError): mtlshm.Host(create=False).unlink()\n"
                f"with contextlib.suppress(sysv_ipc.Error): sysv_ipc.SharedMemory({key}).remove()"
            )
            run(programs / "python", "-c", clean_up, env=os.environ | settings, cwd="/")
        if os.path.exists(segment):
            raise Failed(f"{segment} could not be removed")


def _serve_and_ask(programs: Path, log: Path, how: dict[str, Any]) -> None:
    ctl = programs / "mtlshm-ctl"
    with log.open("w") as file:
        daemon = subprocess.Popen([programs / "mtlshmd"], stderr=file, env=how["env"], cwd="/")
    try:
        until(lambda: "ready:" in log.read_text() or daemon.poll() is not None, "mtlshmd is ready")
        run(ctl, "ping", **how)
        if run(ctl, "run", "--lcores", 1, "--", "printenv", "MTLSHM_LCORES", **how).strip() == "":
            raise Failed("run claimed nothing")
        with subprocess.Popen([ctl, "hold", "--lcores", "1"], stdout=subprocess.PIPE, env=how["env"]) as holder:
            assert holder.stdout
            held = holder.stdout.readline().decode().strip()
            if f"\n {held} " not in run(ctl, "status", **how):
                raise Failed(f"status does not show lcore {held}, which is held")
            holder.kill()
        until(lambda: not json.loads(run(ctl, "status", "--json", **how))["lcores"], "a dead one's lcore is free again")
        for verb in (("topology",), ("doctor",), ("legacy", "info"), ("xdp", "status"), ("gc",), ("--help",)):
            run(ctl, *verb, **how)
        run(programs / "python", "-c", SCRAPE, **how)
        daemon.send_signal(signal.SIGTERM)
        if status := daemon.wait(DEADLINE):
            raise Failed(f"mtlshmd ended with {status}")
    except Failed as error:
        raise Failed(f"{error}\nThe log of mtlshmd:\n{log.read_text()}") from None
    finally:
        daemon.kill()
        daemon.wait()
    if "Traceback" in log.read_text():
        raise Failed(log.read_text())


def main() -> int:
    """Exit status: 0 if both work."""
    failed = False
    for name in sys.argv[1:] or ["oldest", "newest"]:
        if name == "oldest" and sys.version_info[:2] > LOWEST_PYTHON:
            wanted = ".".join(map(str, LOWEST_PYTHON))
            print(f"smoke: {name}: not tried, as this is not Python {wanted}")
            continue
        try:
            smoke(environment(name))
            print(f"smoke: {name}: PASSED", flush=True)
        except (Failed, subprocess.TimeoutExpired) as error:
            print(f"{error}\nsmoke: {name}: FAILED", flush=True)
            failed = True
    return failed


if __name__ == "__main__":
    sys.exit(main())
