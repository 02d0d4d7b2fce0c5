# SPDX-License-Identifier: BSD-3-Clause
"""mtlshm-ctl: a module a family of verbs; app is the entry point."""
