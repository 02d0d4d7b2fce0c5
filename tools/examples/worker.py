# SPDX-License-Identifier: BSD-3-Clause
"""A media process in Python: claims COUNT lcores wherever they fit best, moves there, and stays until it is stopped.

python worker.py [COUNT]
"""

import os
import signal
import sys

from mtlshm import Host

count = int(sys.argv[1]) if len(sys.argv) > 1 else 1
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})

with Host() as host, host.register("worker in Python") as me:
    lcores = me.claim_many(count)
    os.sched_setaffinity(0, lcores)
    print(f"worker in Python: at work on lcores {lcores}", flush=True)
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
