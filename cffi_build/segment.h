/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef MTLSHM_SEGMENT_H
#define MTLSHM_SEGMENT_H

#include <stdint.h>

#include "life.h"
#include "mtlshm.h"

/* Is the open file, which has this header, left over from another boot or host? 1, 0 or a negative errno. */
int segment_stale(const struct life *life, const struct mtlshm_header *header);

int segment_lcores(const char *sysfs, uint32_t *lcores);

/* The segment's file cannot be opened in this mode, or is no file: note why, see failure.h. Returns -EBADMSG for what is
 * no file, else -errno. */
int segment_no_file(const char *path, int mode);

#endif
