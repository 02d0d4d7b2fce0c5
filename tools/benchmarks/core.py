# SPDX-License-Identifier: BSD-3-Clause
"""The figures of the table, as C and as Python programs see it."""

import os
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import posix_ipc
from cffi import FFI

from benchmarks.measure import ROOT, Bench, Figure, Measure, Run, figure, pinned, take_turns
from mtlshm import CpuSet, Host, Instance

ROUNDS = 21
LCORE = 5


def pairs(baseline: str) -> Measure:
    return lambda bench, name: figure(name, "ns", baseline, bench.turns("pairs", name, ROUNDS))


def parallel(processes: int) -> Measure:
    return lambda bench, name: figure(
        name, "million claims/s", "bare CAS by as many processes", bench.turns("parallel", processes, 3)
    )


def noop_library() -> Any:
    """An extension module of one function that does nothing, made as the core's is."""
    ffi = FFI()
    ffi.cdef("int noop(void *pointer, int number);")
    ffi.set_source(
        "bench_noop",
        "static int noop(void *pointer, int number) { (void)pointer; (void)number; return 0; }",
        extra_compile_args=["-O2"],
    )
    spec = spec_from_file_location("bench_noop", ffi.compile(tmpdir=str(ROOT / "build" / "bench")))
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def claims(instance: Instance, n: int) -> None:
    for _ in range(n):
        instance.claim(LCORE)
        instance.release(LCORE)


def two_noops(lib: Any, pointer: Any, n: int) -> None:
    for _ in range(n):
        lib.noop(pointer, LCORE)
        lib.noop(pointer, LCORE)


def semaphore_pairs(semaphore: posix_ipc.Semaphore, n: int) -> None:
    for _ in range(n):
        semaphore.acquire()
        semaphore.release()


def from_python(bench: Bench, name: str, baseline: str, other: Run) -> Figure:
    with (
        pinned(0),
        Host(bench.segment, sysfs=bench.sysfs) as host,
        host.register("bench", cpus=CpuSet(range(64))) as instance,
    ):
        return figure(name, "ns", baseline, take_turns(ROUNDS, 100_000, lambda n: claims(instance, n), other))


def claim_py(bench: Bench, name: str) -> Figure:
    module = noop_library()
    pointer = module.ffi.new("char[]", 1)
    return from_python(bench, name, "two empty cffi calls", lambda n: two_noops(module.lib, pointer, n))


def claim_py_vs_posix_ipc(bench: Bench, name: str) -> Figure:
    semaphore = posix_ipc.Semaphore(f"/{bench.directory.name}-{os.getpid()}", posix_ipc.O_CREX, initial_value=1)
    semaphore.unlink()  # what is open stays usable, and nothing can be left behind
    try:
        return from_python(bench, name, "posix_ipc.Semaphore pair", lambda n: semaphore_pairs(semaphore, n))
    finally:
        semaphore.close()


FIGURES: dict[str, Measure] = {
    "claim_c": pairs("bare CAS pair"),
    "claim_c_vs_robust_mutex": pairs("robust mutex pair"),
    "claim_c_vs_flock": pairs("open+flock+close"),
    "claim_c_vs_socket": pairs("two 118-byte socket round trips"),
    "claim_py": claim_py,
    "claim_py_vs_posix_ipc": claim_py_vs_posix_ipc,
    "claim_tenant_c": pairs("the same by an instance without a parent"),
    "claim8_c": pairs("eight bare CAS pairs"),
    "register_c": pairs("bare life lock: open, lock, map, close, unmap"),
    "parallel_2": parallel(2),
    "parallel_8": parallel(8),
    "parallel_16": parallel(16),
}
