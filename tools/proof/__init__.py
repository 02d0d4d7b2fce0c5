# SPDX-License-Identifier: BSD-3-Clause
"""The tools that prove: each module with a main() is run by the script of its name in tools/."""
