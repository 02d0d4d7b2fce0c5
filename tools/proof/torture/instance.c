/* SPDX-License-Identifier: BSD-3-Clause */
#include "instance.h"

#include <errno.h>
#include <string.h>

#include "client.h"

struct mtlshm_host *host;
struct mtlshm_instance *me;

void open_segment(void)
{
	int rc = mtlshm_open(&host, self.segment, MTLSHM_CREATE, self.sysfs);

	if (rc)
		witness_wrong("could not open the segment:", rc);
}

int become_tenant(uint64_t parent)
{
	struct mtlshm_cpuset all;
	const struct mtlshm_identity identity = {
		.label = self.kind == WITNESS_JANITOR ? "janitor" : "torture", .cpus = &all, .parent = parent};
	int rc;

	memset(&all, 0xff, sizeof(all));
	rc = mtlshm_register(&me, host, &identity);
	if (rc && (rc != -ESRCH || parent == MTLSHM_NO_PARENT))
		witness_wrong("could not register:", rc);
	return rc;
}

void become_instance(void)
{
	become_tenant(MTLSHM_NO_PARENT);
}

void leave(void)
{
	int rc;

	give_all();
	rc = mtlshm_unregister(me);
	if (rc)
		witness_wrong("could not unregister:", rc);
	mtlshm_instance_free(me);
	me = NULL;
}

void not_had_since(uint64_t before)
{
	if (__atomic_load_n(&self.witness->semaphores, __ATOMIC_SEQ_CST) == before)
		witness_wrong("nobody could have the semaphore for so many ms:", WITNESS_PATIENCE_MS);
}

int claim_several(uint32_t count, uint32_t type, uint16_t *given)
{
	const struct mtlshm_want want = {
		.count = count, .type = type, .numa_node = MTLSHM_ANY_NODE, .timeout_ms = WITNESS_PATIENCE_MS};
	uint64_t before = __atomic_load_n(&self.witness->semaphores, __ATOMIC_SEQ_CST), parent = 0;
	int rc = mtlshm_claim_many(me, &want, given);

	if (rc == -ETIMEDOUT)
		not_had_since(before);
	else
		witness_count(&self.witness->semaphores);
	if (rc == -ERANGE)
		mtlshm_parent(host, mtlshm_owner(me), &parent);
	if (rc && rc != -EBUSY && rc != -ETIMEDOUT && !parent)
		witness_wrong("claim of several said", rc);
	return rc;
}

void sweep(void)
{
	int rc = mtlshm_sweep(host);

	if (rc < 0)
		witness_wrong("sweep said", rc);
}
