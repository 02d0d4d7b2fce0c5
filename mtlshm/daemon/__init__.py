# SPDX-License-Identifier: BSD-3-Clause
"""mtlshmd: collects dead instances and serves libmtl. Each duty is a module; app wires them together."""
