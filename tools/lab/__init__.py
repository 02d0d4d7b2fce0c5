# SPDX-License-Identifier: BSD-3-Clause
"""What tests and tools share: real processes, networks and sockets, made-up hosts, and damage done on purpose."""
