/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The meaning of each errno here, and the remedy. Every condition of this library has an errno of its own. failure.h tells
 * what the operating system refuses.
 */
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "mtlshm.h"

static const struct {
	int error;
	const char *text;
} table[] = {
	{0, "no error"},
	{EALREADY, "this instance holds that lcore already"},
	{EBADF, "the instance was unregistered: register again"},
	{EBADMSG, "not a mtlshm segment, truncated or damaged: run mtlshm-ctl doctor"},
	{EBUSY, "held by a living owner, or not enough is free: see mtlshm-ctl status"},
	{ECHILD, "the instance belongs to the parent process: register in the child, after fork"},
	{EDOM,
	 "outside the CPUs this instance may claim: widen the affinity mask or cpuset, or register with a set of CPUs"},
	{EEXIST, "a daemon serves this segment already: stop it first, or name another segment"},
	{EINVAL, "invalid argument: a count of 0, an unknown type, policy or flag, or a path too long"},
	{ELOOP, "the chain of leases is longer than 8: start the process from an earlier member"},
	{ENODEV, "that CPU is absent or offline: see lscpu -e"},
	{ENOENT, "no segment there: start mtlshmd or any client that creates it, or set MTLSHM_PATH to its path"},
	{ENXIO, "no such NUMA node with CPUs: see mtlshm-ctl topology"},
	{EOPNOTSUPP, "that file system lacks O_TMPFILE or open-file-description locks: put the segment on a tmpfs"},
	{EPERM, "not held by this instance"},
	{EPROTO, "a segment of another version: install one version of libmtlshm for all processes, then restart them"},
	{ERANGE,
	 "more than this instance could ever have, or no such lcore: see its affinity mask and mtlshm-ctl topology"},
	{EROFS, "the segment was opened for reading only"},
	{ESRCH, "the owner has ended: read the table again"},
	{ESTALE,
	 "the segment was retired or replaced, or is from before the last boot or from another host: open it again; "
	 "if that fails too, run mtlshm-ctl doctor"},
	{ETIMEDOUT,
	 "the semaphore's holder did not give it back in time: continue or end it; mtlshm-ctl status --json names it"},
	{EUSERS, "all 256 instance records are held by living instances"},
};

const char *mtlshm_strerror(int error)
{
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
		if (table[i].error == (error < 0 ? -error : error))
			return table[i].text;
	return strerror(error < 0 ? -error : error);
}
