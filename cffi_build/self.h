/* SPDX-License-Identifier: BSD-3-Clause
 *
 * This process, as its records describe it.
 */
#ifndef MTLSHM_SELF_H
#define MTLSHM_SELF_H

#include "mtlshm.h"

/* Pid, name and the rest, valid until the next call with this host. `label` NULL: the command's name. Under the guard of
 * life.h, in host->self; what cannot change while the process lives is read from /proc once. */
const struct mtlshm_process *self_describe(struct mtlshm_host *host, const char *label);

#endif
