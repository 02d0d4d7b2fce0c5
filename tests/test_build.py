# SPDX-License-Identifier: BSD-3-Clause
"""meson.build and setup.py: what is installed is what a user needs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import setuptools

from lab.processes import BIN, DEADLINE, held, look
from mtlshm._core import lib

ROOT = Path(__file__).parent.parent
HEADER = ROOT / "cffi_build/mtlshm.h"
WITH_TOOLS = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]


def run(*command: object, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run it to its end and return what it said; what it said is shown if it fails."""
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(list(map(str, command)), **both, text=True, env=env, cwd=cwd)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_header_is_plain_c11() -> None:
    run("cc", "-std=c11", *STRICT, "-x", "c", HEADER)


def test_the_header_is_cpp_too() -> None:
    if not shutil.which("c++"):
        pytest.skip("no C++ compiler; not tested: the header in C++")
    run("c++", "-std=c++11", *STRICT, "-x", "c++", HEADER)


def test_the_c_sources_need_nothing_but_the_listed_files() -> None:
    listed = set((ROOT / "cffi_build/sources.txt").read_text().split())
    assert listed == {path.name for path in (ROOT / "cffi_build").glob("*.c") if path.name != "mtlshm._core.c"}


# --- the C library -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def installed(build_once: Callable[..., Path]) -> Path:
    """The prefix of an installed library, static and shared."""

    def install(prefix: Path) -> None:
        build = prefix.with_name("meson")
        run("meson", "setup", "--prefix", prefix, "--libdir", "lib", build, ROOT, env=WITH_TOOLS)
        run("meson", "install", "-C", build, env=WITH_TOOLS)

    return build_once("installed", install)


def symbols_of(library: Path) -> set[str]:
    lines = run("nm", "-D", "--defined-only", library).splitlines()
    return {line.split()[-1] for line in lines}


@pytest.mark.slow
def test_installation_is_complete(installed: Path) -> None:
    assert (installed / "include/mtlshm.h").read_bytes() == HEADER.read_bytes()
    names = {path.name for path in (installed / "lib").iterdir()}
    assert {"libmtlshm.so", "libmtlshm.so.0", "libmtlshm.a", "pkgconfig"} <= names
    assert {path.name for path in (installed / "lib/bpf").iterdir()} == {"mtl_dp_filter.o", "mtl_dp_fused.o"}
    pages = {path.name for path in (installed / "share/man").glob("man*/*")}
    assert pages == {path.name for path in (ROOT / "docs/man").iterdir()}
    assert "soname: [libmtlshm.so.0]" in run("readelf", "-d", installed / "lib/libmtlshm.so")


@pytest.mark.slow
def test_unit_files_name_programs_of_their_prefix(installed: Path) -> None:
    commands = {"mtlshmd": "mtlshmd", "mtlshmd-cores": "mtlshmd", "mtlshm-segment": "mtlshm-ctl create"}
    for name, command in commands.items():
        unit = (installed / f"lib/systemd/system/{name}.service").read_text()
        assert re.findall("^ExecStart=(.*)", unit, re.MULTILINE) == [f"{installed}/bin/{command}"]
        if command == "mtlshmd":
            for key in "ExecStartPre", "ExecReload":
                assert re.findall(f"^{key}=(.*)", unit, re.MULTILINE)[0] == f"{installed}/bin/mtlshmd --check"
    for kind in "sysusers", "tmpfiles":
        assert (installed / f"lib/{kind}.d/mtlshm.conf").read_text() == (ROOT / f"tools/mtlshm.{kind}").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here; not tested: what a service may do")
@pytest.mark.parametrize(("name", "most"), [("mtlshmd", 5), ("mtlshmd-cores", 1)])
def test_a_service_may_do_little_more_than_it_must(installed: Path, name: str, most: float) -> None:
    """By systemd's own measure, of 10."""
    unit = installed / f"lib/systemd/system/{name}.service"
    said = run("systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=100", unit)
    exposure = re.search(rf"Overall exposure level for {name}.service: ([\d.]+)", said)
    assert exposure
    assert float(exposure[1]) <= most


@pytest.mark.slow
def test_only_the_functions_of_the_header_are_visible(installed: Path) -> None:
    header = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    declared = set(re.findall(r"^\w[\w ]* \*?(mtlshm_\w+)\(", header, re.MULTILINE))
    assert len(declared) > 20
    assert declared == {name for name in dir(lib) if name.startswith("mtlshm_")}
    assert symbols_of(installed / "lib/libmtlshm.so") == declared


@pytest.mark.slow
@pytest.mark.parametrize("way", ["shared", "static"])
def test_a_c_program_is_built_with_pkg_config_and_claims(
    installed: Path, segment: str, tmp_path: Path, way: str
) -> None:
    """The example, built as it says itself."""
    paths = {"PKG_CONFIG_PATH": str(installed / "lib/pkgconfig"), "LD_LIBRARY_PATH": str(installed / "lib")}
    environment = os.environ | paths | {"MTLSHM_PATH": segment}
    static = way == "static"
    flags = run("pkg-config", "--cflags", "--libs", *["--static"] * static, "mtlshm", env=environment)
    worker = tmp_path / "worker"
    run("cc", *["-static"] * static, ROOT / "tools/examples/worker.c", *flags.split(), "-o", worker)
    assert ("libmtlshm.so.0" in run("readelf", "-d", worker)) == (not static)

    lcore = min(os.sched_getaffinity(0))
    with subprocess.Popen([worker, str(lcore)], stdout=subprocess.PIPE, env=environment, text=True) as process:
        try:
            assert process.stdout
            assert f"lcore {lcore}" in process.stdout.readline()
            assert held(segment) == {lcore}
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE) == 0
        finally:
            process.kill()
    assert look(segment).instances == ()


# --- the Python package --------------------------------------------------------------------------------

SAYS = """
import os, sys, mtlshm, mtlshm.daemon.app
with mtlshm.Host(sys.argv[1]) as host, host.register(cpus=range(128)) as me:
    me.claim(5)
    print(os.path.dirname(mtlshm.__file__), *me.lcores)
"""


def copy_of_the_sources(tree: Path) -> Path:
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "*.so")
    shutil.copytree(ROOT, tree, ignore=ignored)
    return tree


@pytest.mark.slow
@pytest.mark.parametrize("version", [None, "(1, 15, 0)"])
def test_build_without_cffi_names_the_missing_package(tmp_path: Path, version: str | None) -> None:
    """As with pip's --no-build-isolation. It must not make a package without its core."""
    tree = copy_of_the_sources(tmp_path / "tree")
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "empty")
    (site,) = (tmp_path / "empty").glob("lib/python*/site-packages")
    for part in Path(setuptools.__file__).parents[1].glob("*"):
        if part.name.startswith(("setuptools", "_distutils_hack", "pkg_resources")):
            (site / part.name).symlink_to(part)
    if version:
        (site / "cffi.py").write_text(f"__version_info__ = {version}\n__version__ = 'too old'\n")
    pip = [sys.executable, "-m", "pip", "--python", tmp_path / "empty/bin/python", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", tmp_path, tree]
    done = subprocess.run(wheel, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode != 0
    assert "pip install 'cffi>=" in done.stdout
    assert not list(tmp_path.glob("*.whl"))


@pytest.mark.slow
def test_a_source_distribution_becomes_a_wheel_that_works_in_an_empty_environment(segment: str, tmp_path: Path) -> None:
    """With no network: what is needed for building and running comes from the environment of the tests."""
    tree = copy_of_the_sources(tmp_path / "tree")
    sdist = "import sys, setuptools.build_meta; setuptools.build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", sdist, tmp_path, cwd=tree)
    (archive,) = tmp_path.glob("mtlshm-*.tar.gz")
    shutil.unpack_archive(archive, tmp_path)
    run("meson", "setup", tmp_path / "meson", tmp_path / archive.name.removesuffix(".tar.gz"), env=WITH_TOOLS)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    run(*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", tmp_path, archive)
    (wheel,) = tmp_path.glob("mtlshm-*.whl")

    empty = tmp_path / "empty"
    run(sys.executable, "-m", "venv", "--without-pip", empty)
    (site,) = empty.glob("lib/python*/site-packages")
    run(*pip, "install", "--no-deps", "--target", site, wheel)
    # The packages it depends on; mtlshm itself is there in a form that does not work by way of a .pth file.
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    python = empty / "bin/python"
    assert run(python, "-c", SAYS, segment, cwd=tmp_path).split() == [str(site / "mtlshm"), "5"]
    assert (site / "mtlshm/py.typed").exists()
    assert "mtlshmd" in run(python, "-c", "import mtlshm.daemon.app as app; app.main()", "--help", cwd=tmp_path)
