# SPDX-License-Identifier: BSD-3-Clause
"""Default places. A module of its own, so that naming them imports nothing else, not even pathlib."""

STATE = "/run/mtlshm"  # the ledger and the lock; gone with the next boot, as is what they speak of
BPFFS = "/sys/fs/bpf"
PINS = f"{BPFFS}/mtlshm"
