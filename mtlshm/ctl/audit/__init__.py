# SPDX-License-Identifier: BSD-3-Clause
"""audit: is a held lcore really alone?

`threads` and `counters` measure, `verdict` joins what they measured with the table, `settings` names what would mend
it, and `command` words it.
"""
