/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The default path of the segment.
 *
 * Two processes that disagree about it make two tables, and grant every lcore twice. So the library, the command line
 * and the daemon all take it from here: $MTLSHM_PATH, else the daemon's settings file, else /dev/shm/mtlshm.
 *
 * That file is TOML, of which this reads one line: segment = "/path", before the first [table]. TOML has more ways to
 * write the same. mtlshmd and mtlshm-ctl read the file with a whole parser, and refuse it if this one reads another
 * path than theirs; see mtlshm/config.py. A file that is there and cannot be read is an error, not a default: the
 * caller would be alone in a table of its own.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mtlshm.h"

#define DEFAULT_PATH "/dev/shm/mtlshm"
#define DEFAULT_FILE "/etc/mtlshm/mtlshmd.toml"
#define KEY "segment"
#define LARGEST_FILE 65536

static const char *environment(const char *name)
{
	const char *value = secure_getenv(name);

	return value && *value ? value : NULL;
}

/* The whole file and a zero byte in `text`, which has room for LARGEST_FILE + 1. */
static int read_text(const char *file, char *text)
{
	/* Nonblocking: to open a FIFO must not hang. */
	int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK), rc = 0;
	size_t length = 0;
	ssize_t got;

	if (fd < 0)
		return -errno;
	do {
		got = read(fd, text + length, LARGEST_FILE + 1 - length);
		length += got > 0 ? (size_t)got : 0;
	} while ((got > 0 && length <= LARGEST_FILE) || (got < 0 && errno == EINTR));
	if (got < 0)
		rc = -errno;
	else if (length > LARGEST_FILE)
		rc = -EFBIG;
	else
		text[length] = '\0';
	close(fd);
	return rc;
}

static const char *skip_blanks(const char *text)
{
	return text + strspn(text, " \t");
}

/* 1 and the path, if the line sets it; 0 if it is about something else, or sets it to nothing. */
static int parse_line(const char *line, char *path, size_t size)
{
	const char *end;
	size_t length;
	char quote;

	line = skip_blanks(line);
	if (strncmp(line, KEY, strlen(KEY)) != 0)
		return 0;
	line = skip_blanks(line + strlen(KEY));
	if (*line != '=')
		return 0;
	line = skip_blanks(line + 1);
	quote = *line;
	if (quote != '"' && quote != '\'')
		return -EINVAL;
	line++;
	end = strchr(line, quote);
	if (!end)
		return -EINVAL;
	length = (size_t)(end - line);
	end = skip_blanks(end + 1);
	if ((*end && *end != '#') || memchr(line, '\\', length))
		return -EINVAL;
	if (!length)
		return 0;
	if (*line != '/')
		return -EINVAL;
	if (length >= size)
		return -ENAMETOOLONG;
	memcpy(path, line, length);
	path[length] = '\0';
	return 1;
}

static int parse(char *text, char *path, size_t size)
{
	char *line, *rest = text;
	int rc = 0;

	while (!rc && (line = strsep(&rest, "\n"))) {
		size_t length = strlen(line);

		if (length && line[length - 1] == '\r')
			line[length - 1] = '\0';
		if (*skip_blanks(line) == '[')
			break;
		rc = parse_line(line, path, size);
	}
	return rc;
}

int mtlshm_configured_path(const char *file, char *path, size_t size)
{
	char *text = malloc(LARGEST_FILE + 1);
	int rc;

	if (!text)
		return -ENOMEM;
	rc = read_text(file, text);
	if (!rc)
		rc = parse(text, path, size);
	free(text);
	return rc;
}

const char *mtlshm_default_path(void)
{
	static _Thread_local char configured[PATH_MAX];
	const char *path = environment("MTLSHM_PATH"), *file = environment("MTLSHMD_CONFIG");
	int rc;

	if (path)
		return path;
	rc = mtlshm_configured_path(file ? file : DEFAULT_FILE, configured, sizeof(configured));
	if (rc == -ENOENT && !file) /* most hosts have none */
		rc = 0;
	if (rc < 0) {
		errno = -rc;
		return NULL;
	}
	return rc ? configured : DEFAULT_PATH;
}
