# SPDX-License-Identifier: BSD-3-Clause
"""tools/bench: one module for each family of figures."""
