# SPDX-License-Identifier: BSD-3-Clause
"""The DRA driver of Kubernetes: a program of its own, which nothing else here imports."""
