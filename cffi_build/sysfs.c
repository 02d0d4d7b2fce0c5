/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One file of sysfs, read without allocation. What it holds is checked to the last character.
 */
#include "sysfs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "cpuset.h"
#include "failure.h"

#define END (-1)
/* Far above any CPU, node or package number, and far below overflow. */
#define NUMBER_MAX 99999999

struct file {
	const char *path;
	int fd;
	int error;
	size_t at, length;
	char text[512]; /* a list can be longer: 20 KiB for every second of 8,192 CPUs */
};

static int file_open(struct file *file, int directory, const char *path)
{
	file->error = 0;
	file->at = file->length = 0;
	file->path = path;
	file->fd = openat(directory, path, O_RDONLY | O_CLOEXEC);
	return file->fd < 0 ? failure("open", path) : 0;
}

/* The next character, or END at the end of the file or on an error, which is then in file->error. */
static int file_next(struct file *file)
{
	ssize_t length;

	if (file->at == file->length) {
		do
			length = read(file->fd, file->text, sizeof(file->text));
		while (length < 0 && errno == EINTR);
		if (length < 0)
			file->error = failure("read", file->path);
		if (length <= 0)
			return END;
		file->at = 0;
		file->length = (size_t)length;
	}
	return (unsigned char)file->text[file->at++];
}

static bool is_digit(int c)
{
	return c >= '0' && c <= '9';
}

/* A number that begins with `*c`; *c is the character after it then. */
static int parse_number(struct file *file, int *c, uint32_t *number)
{
	if (!is_digit(*c))
		return -EBADMSG;
	for (*number = 0; is_digit(*c); *c = file_next(file)) {
		*number = *number * 10 + (uint32_t)(*c - '0');
		if (*number > NUMBER_MAX)
			return -EBADMSG;
	}
	return 0;
}

/* The end of the file, with or without a newline before it. */
static int parse_end(struct file *file, int c)
{
	if (c == '\n')
		c = file_next(file);
	return c == END ? 0 : -EBADMSG;
}

/* What "%*pbl\n" prints (bitmap_list_string() in lib/vsprintf.c): ascending numbers and ranges with commas
 * between them, nothing for the empty set. Numbers too high for the set are checked and left out. */
static int parse_list(struct file *file, struct mtlshm_cpuset *set)
{
	uint32_t first, last, floor = 0;
	int c = file_next(file), rc;

	memset(set, 0, sizeof(*set));
	if (c == '\n' || c == END)
		return parse_end(file, c);
	for (;; c = file_next(file)) {
		rc = parse_number(file, &c, &first);
		if (rc)
			return rc;
		last = first;
		if (c == '-') {
			c = file_next(file);
			rc = parse_number(file, &c, &last);
			if (rc)
				return rc;
		}
		if (first < floor || last < first)
			return -EBADMSG;
		floor = last + 1;
		for (; first <= last && first < MTLSHM_LCORES; first++)
			cpuset_add(set, first);
		if (c != ',')
			return parse_end(file, c);
	}
}

/* An error while reading explains the broken text, not the other way round. */
static int file_close(struct file *file, int rc)
{
	close(file->fd);
	if (rc && !file->error)
		failure_is(rc, file->path, "is not what the kernel writes there: is something mounted over it?");
	return file->error ? file->error : rc;
}

int sysfs_list(int directory, const char *path, struct mtlshm_cpuset *set)
{
	struct file file;
	int rc = file_open(&file, directory, path);

	return rc ? rc : file_close(&file, parse_list(&file, set));
}

/* A number, which may be negative. */
int sysfs_number(int directory, const char *path, int32_t *number)
{
	struct file file;
	bool negative;
	uint32_t value;
	int c, rc = file_open(&file, directory, path);

	if (rc)
		return rc;
	c = file_next(&file);
	negative = c == '-';
	if (negative)
		c = file_next(&file);
	rc = parse_number(&file, &c, &value);
	if (!rc)
		rc = parse_end(&file, c);
	if (!rc)
		*number = negative ? -(int32_t)value : (int32_t)value;
	return file_close(&file, rc);
}

int sysfs_first(int directory, const char *path, int *c)
{
	struct file file;
	int rc = file_open(&file, directory, path);

	if (rc)
		return rc;
	*c = file_next(&file);
	return file_close(&file, 0);
}
