# SPDX-License-Identifier: BSD-3-Clause
"""mtlshmd: collects what the dead left. Each duty is a module; app wires them together."""
