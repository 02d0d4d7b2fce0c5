/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Where a network interface is attached. sysfs shows the network namespace in which it was mounted, so an interface of
 * another one is not found, or one of the same name is.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <net/if.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "failure.h"
#include "host.h"
#include "sysfs.h"

static int read_node(const char *path, int32_t *node)
{
	int directory = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC), rc;

	if (directory < 0)
		return errno == ENOENT ? -ENODEV : failure("open", path);
	rc = sysfs_number(directory, "device/numa_node", node);
	close(directory);
	if (rc == -ENOENT) { /* no device behind it, or a kernel without NUMA */
		failure_forget();
		*node = MTLSHM_ANY_NODE;
		return 0;
	}
	if (!rc && *node < 0)
		*node = MTLSHM_ANY_NODE;
	return rc;
}

int mtlshm_interface_node(struct mtlshm_host *host, const char *interface, int32_t *node)
{
	char path[PATH_MAX];
	int cancel_state, rc;

	failure_forget();
	if (!*interface || strlen(interface) >= IFNAMSIZ || strchr(interface, '/') || interface[0] == '.' ||
	    snprintf(path, sizeof(path), "%s/class/net/%s", host->sysfs ? host->sysfs : "/sys", interface) >= PATH_MAX)
		return failure_is(-ENODEV, interface, "is no network interface: see ip link");
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
	rc = read_node(path, node);
	pthread_setcancelstate(cancel_state, NULL);
	return rc == -ENODEV ? failure_is(rc, interface, "is no network interface here: see ip link") : rc;
}
