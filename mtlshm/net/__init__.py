# SPDX-License-Identifier: BSD-3-Clause
"""Interfaces: XDP programs, queues, flow rules. Used by mtlshmd and mtlshm-ctl alike; knows neither."""
