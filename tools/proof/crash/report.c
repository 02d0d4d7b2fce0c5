/* SPDX-License-Identifier: BSD-3-Clause */
#include "report.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct circumstances now;

void wrong(const char *format, ...)
{
	va_list arguments;

	printf("wrong\t%s\t%u\t%#lx\t%s\t", now.scenario, now.position, (unsigned long)now.ip, now.doing);
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf(" (variation %u)\n", now.variation);
	now.failures++;
}

void cannot_go_on(const char *file, int line, const char *what)
{
	fprintf(stderr, "crash: %s: %s, line %d: not so: %s (errno: %s)\n", now.scenario, strrchr(file, '/') + 1, line,
		what, strerror(errno));
	exit(2);
}
