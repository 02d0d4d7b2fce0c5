/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Events: what happened last, for people. How an entry is written and read, event.c says.
 */
#ifndef MTLSHM_EVENT_H
#define MTLSHM_EVENT_H

#include <stdint.h>

#include "mtlshm.h"

/* Who it is about, as the record of `owner` says: so before that record goes FREE. An owner that the table does not know has
 * no name. lcores and text are empty. */
struct mtlshm_event event_about(const struct mtlshm_host *host, enum mtlshm_event_kind kind, uint64_t owner);

/* Put it into the ring, with its number and the time. After the deed: what is told has happened. Killed inside: it is there,
 * or is told as lost. */
void event_write(struct mtlshm_host *host, struct mtlshm_event *event);

#endif
