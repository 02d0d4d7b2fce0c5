# SPDX-License-Identifier: BSD-3-Clause
"""Gives libmtl lcores of its own: claimed first, then handed over as the core list of its init parameters.

    python libmtl_init.py [COUNT]

Three lines get the lcores. libmtl's Python binding (pymtl, from its own source tree) is used if it is installed; else
the list is shown, and the lcores are held until the program is interrupted.

WHICH LCORES A WORKER GETS. libmtl hands out every lcore but its main one. Given a core list, it adds a main lcore to
that, which is lcore 0: each lcore in the list is one worker, unless it is CPU 0. So that is not claimed here.
Given none, DPDK takes the affinity mask, and the main lcore is the lowest CPU in it: N + 1 lcores make N workers.
"""

import os
import signal
import sys

from mtlshm import Host, LcoreType

count = int(sys.argv[1]) if len(sys.argv) > 1 else 1

host = Host()
me = host.register("libmtl application", cpus=os.sched_getaffinity(0) - {0})
lcores = me.claim_many(count, type=LcoreType.SCH)

try:
    import pymtl as mtl
except ImportError:
    print(f"no pymtl here; mtl_init_params.lcores would be {str(lcores)!r}", flush=True)
else:
    parameters = mtl.mtl_init_params()
    parameters.lcores = str(lcores)  # EAL takes the same notation: 2-3,8
    # ports, addresses and queues of the application go here
    handle = mtl.mtl_init(parameters)

signal.sigwait({signal.SIGINT, signal.SIGTERM})
