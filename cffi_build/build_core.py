# SPDX-License-Identifier: BSD-3-Clause
"""Builds mtlshm._core, the C core as a Python module (cffi, API mode); setup.py names `ffi` below.

The core is compiled in, not linked to: a Python package must work where no libmtlshm.so is installed. So is the
daemon's selector, which is no part of that library.
"""

import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
# Compiler and sdist alike want paths relative to setup.py, whose directory is the working directory of every build.
HERE_RELATIVE = HERE.name

sources = (HERE / "sources.txt").read_text().split()
sources += [str(path.relative_to(HERE)) for path in sorted((HERE / "selector").glob("*.c"))]
headers = ["mtlshm.h", "selector/selector.h"]

ffi = FFI()
for name in headers:
    declarations = re.search(r"/\* cffi: begin \*/(.*)/\* cffi: end \*/", (HERE / name).read_text(), re.DOTALL)
    if declarations is None:
        raise SystemExit(f"{name} has no part between 'cffi: begin' and 'cffi: end'")
    ffi.cdef(declarations[1])
ffi.set_source(
    "mtlshm._core",
    # What cffi generates has unused parameters; the core's own files are compiled without this pragma.
    '#pragma GCC diagnostic ignored "-Wunused-parameter"\n' + "".join(f'#include "{name}"\n' for name in headers),
    sources=[f"{HERE_RELATIVE}/{name}" for name in sources],
    depends=[f"{HERE_RELATIVE}/{path.relative_to(HERE)}" for path in sorted(HERE.rglob("*.h"))],
    include_dirs=[HERE_RELATIVE],
    # No -Werror here: a compiler that knows one warning more must not stop somebody's installation. meson has it.
    extra_compile_args=["-std=c11", "-O2", "-D_GNU_SOURCE", "-fvisibility=hidden", "-Wall", "-Wextra"],
    # The core is visible here too: bind our calls to our own functions, also where libmtlshm.so is loaded as well.
    extra_link_args=["-Wl,-Bsymbolic-functions"],
)
