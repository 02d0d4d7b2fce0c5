/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One clock for all processes that share the table. In a time namespace, as some containers have, CLOCK_MONOTONIC is shifted, and
 * the kernel tells by how much. CLOCK_REALTIME is the same for all, but an administrator or NTP may set it.
 */
#ifndef MTLSHM_CLOCK_H
#define MTLSHM_CLOCK_H

#include <stdint.h>

/* CLOCK_MONOTONIC of this process, in ns. */
uint64_t clock_own(void);

/* How far that is ahead of the host's, modulo 2^64; 0 if the kernel has no time namespaces, or if there is no /proc. */
uint64_t clock_shift(void);

#endif
