/* SPDX-License-Identifier: BSD-3-Clause */
#include "table.h"

#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "report.h"

struct mtlshm_segment *segment;
static const char *file;

void map_table(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);

	NEEDED(fd >= 0);
	if (segment)
		munmap(segment, sizeof(*segment));
	segment = mmap(NULL, sizeof(*segment), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	NEEDED(segment != MAP_FAILED);
	close(fd);
	file = path;
}

uint64_t owner_of_record(uint32_t index)
{
	return control_of(index) >> 8 << (MTLSHM_TYPE_BITS + MTLSHM_INDEX_BITS) | (uint64_t)index << MTLSHM_TYPE_BITS;
}

bool known(uint64_t owner)
{
	uint32_t index = index_in(owner);

	return owner && index < MTLSHM_INSTANCES && control_of(index) >> 8 == generation_in(owner) &&
	       state_of(index) != MTLSHM_FREE;
}

bool descends(uint64_t owner, uint64_t ancestor)
{
	for (int depth = 0; depth < MTLSHM_DEPTH && known(owner); depth++) {
		if (owner == ancestor)
			return true;
		owner = segment->instances[index_in(owner)].parent;
	}
	return false;
}

bool has_tenants(uint64_t owner)
{
	for (uint32_t i = 0; i < MTLSHM_INSTANCES; i++)
		if (state_of(i) != MTLSHM_FREE && segment->instances[i].parent == owner)
			return true;
	return false;
}

uint32_t lcores_of(uint64_t owner)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < MTLSHM_LCORES; i++)
		count += owner && owner_in(segment->lcores[i].owner) == owner;
	return count;
}

bool locked(uint32_t index, short against)
{
	struct flock lock = {.l_type = against, .l_start = (off_t)MTLSHM_LIFE_BASE + index, .l_len = 1};
	int fd = open(file, O_RDWR | O_CLOEXEC);

	NEEDED(fd >= 0 && !fcntl(fd, F_OFD_GETLK, &lock));
	close(fd);
	return lock.l_type != F_UNLCK;
}

bool header_is_still(const struct mtlshm_header *then)
{
	return !memcmp(&segment->header, then, offsetof(struct mtlshm_header, state));
}
