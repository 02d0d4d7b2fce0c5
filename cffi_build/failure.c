/* SPDX-License-Identifier: BSD-3-Clause */
#include "failure.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "mtlshm.h"

/* Of a longer one people read the beginning. Small, as each thread has one on its stack. */
#define PATH 512

static _Thread_local struct {
	int error;        /* negative, or 0 for none */
	const char *step; /* of a system call; or NULL, and then */
	const char *words;
	char path[PATH];
	char text[PATH + 256];
} noted;

static void set_path(const char *path)
{
	size_t length = strnlen(path, PATH - 1);

	memcpy(noted.path, path, length);
	noted.path[length] = '\0';
}

static void note(int error, const char *step, const char *words, const char *path)
{
	noted.error = error;
	noted.step = step;
	noted.words = words;
	set_path(path);
}

int failure(const char *step, const char *path)
{
	int error = -errno;

	note(error, step, NULL, path);
	return error;
}

int failure_is(int error, const char *path, const char *words)
{
	note(error, NULL, words, path);
	return error;
}

void failure_below(const char *directory)
{
	char path[2 * PATH];

	snprintf(path, sizeof(path), "%.*s/%s", PATH - 1, directory, noted.path);
	set_path(path);
}

void failure_forget(void)
{
	noted.error = 0;
}

static const char *advice(int error)
{
	switch (-error) {
	case EMFILE: return ": raise the limit (ulimit -n)";
	case ENOSPC: return ": enlarge that file system (in a container, /dev/shm)";
	default: return "";
	}
}

const char *mtlshm_failure(int error)
{
	char reason[128];

	error = error < 0 ? error : -error;
	if (!noted.error || noted.error != error)
		return NULL;
	if (noted.step)
		snprintf(noted.text, sizeof(noted.text), "cannot %s%s%s: %s%s", noted.step, *noted.path ? " " : "",
			 noted.path, strerror_r(-error, reason, sizeof(reason)), advice(error));
	else
		snprintf(noted.text, sizeof(noted.text), "%s %s", noted.path, noted.words);
	return noted.text;
}
