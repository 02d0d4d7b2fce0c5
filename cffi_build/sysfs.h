/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Files of sysfs, named from an open directory. Each returns 0; -EBADMSG: not what the kernel writes; or why the file could
 * not be read.
 */
#ifndef MTLSHM_SYSFS_H
#define MTLSHM_SYSFS_H

#include <stdint.h>

#include "mtlshm.h"

/* A list of CPUs or nodes. */
int sysfs_list(int directory, const char *path, struct mtlshm_cpuset *set);

/* A number, which may be negative. */
int sysfs_number(int directory, const char *path, int32_t *number);

/* The first character, or -1 of an empty file. */
int sysfs_first(int directory, const char *path, int *c);

#endif
