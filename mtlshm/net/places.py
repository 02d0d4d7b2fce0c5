# SPDX-License-Identifier: BSD-3-Clause
"""Where things are by default. Imported by those who do not want the rest yet, not even pathlib."""

STATE = "/run/mtlshm"  # the ledger and the lock; gone with the next boot, as is what they speak of
BPFFS = "/sys/fs/bpf"
PINS = f"{BPFFS}/mtlshm"
