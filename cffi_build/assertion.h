/* SPDX-License-Identifier: BSD-3-Clause
 *
 * assert(3), in every build: Python's build of the core defines NDEBUG, and a lock that is not held is as wrong there.
 *
 * An assertion speaks only of this process's own memory. The table may hold anything, and must not end anyone.
 * None is on the path of a claim or release that just succeeds.
 */
#ifndef MTLSHM_ASSERTION_H
#define MTLSHM_ASSERTION_H

#undef NDEBUG
#include <assert.h>

#endif
