/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What is wrong, and where the victim was: a line for crashtest.py, by which one finds the instruction again.
 */
#ifndef REPORT_H
#define REPORT_H

#include <stdint.h>

struct circumstances {
	const char *scenario;
	const char *doing;      /* what is being done with the victim, */
	uint32_t position;      /* where in its trace, */
	uint64_t ip;            /* which is at this address */
	unsigned int variation; /* of what others do then */
	uint32_t failures;      /* so far */
};

extern struct circumstances now;

/* Count it and say it. */
void wrong(const char *format, ...) __attribute__((format(printf, 1, 2)));

#define EXPECT(condition, ...)              \
	do {                                \
		if (!(condition))           \
			wrong(__VA_ARGS__); \
	} while (0)

/* The tool itself cannot go on. */
_Noreturn void cannot_go_on(const char *file, int line, const char *what);

#define NEEDED(what)                                             \
	do {                                                     \
		if (!(what))                                     \
			cannot_go_on(__FILE__, __LINE__, #what); \
	} while (0)

#endif
