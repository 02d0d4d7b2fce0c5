/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The layout: what each header of ours says, and segments of other layouts, which other versions of this library made.
 */
#ifndef MTLSHM_LAYOUT_H
#define MTLSHM_LAYOUT_H

#include <stdbool.h>
#include <stdint.h>

#include "life.h"
#include "mtlshm.h"

/* What every header of this layout says. */
extern const char layout_magic[8];
uint64_t layout_fingerprint(void);

/* Is this layout that of the segment with this header? The magic is the same in all. */
bool layout_is_ours(const struct mtlshm_header *header);

/* Is an instance without a life lock in it, by what its records say? life->fd is the open file. 1, 0, or a negative errno. */
int layout_proxied(const struct life *life, const struct mtlshm_header *header);

/* Remove the segment of another layout at `path`, if nobody lives in it. Returns 0: look again, it is gone or about to go, by us or
 * by somebody else; LAYOUT_IN_USE; or a negative errno. *version: of what we have removed, else 0. */
enum { LAYOUT_IN_USE = 1 };
int layout_replace(const char *path, uint32_t *version);

#endif
