/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A real process that does what a test tells it, so that tests can say what happens and in which order.
 *
 *     puppet SEGMENT [SYSFS]
 *
 * It reads commands from standard input, one a line, and answers each on standard output with a number: what the library's
 * function of that name returned, unless its comment here says otherwise. It has one segment open and any number of
 * instances, the last of which is the one that acts. See class Puppet in tools/lab/processes.py.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "puppet.h"

struct puppet puppet;

long number(const char *word)
{
	return word ? strtol(word, NULL, 0) : 0;
}

void answer(long long value)
{
	char line[32];
	int length = snprintf(line, sizeof(line), "%lld\n", value);

	if (write(STDOUT_FILENO, line, (size_t)length) != length)
		_exit(1);
}

/* Byte by byte, so that what was not read yet is still there after a fork or in another thread. */
static int read_line(char *line, size_t size)
{
	for (size_t i = 0; i < size; i++) {
		if (read(STDIN_FILENO, &line[i], 1) <= 0)
			return 0;
		if (line[i] == '\n') {
			line[i] = '\0';
			return 1;
		}
	}
	return 0;
}

static const struct command *find(const char *name)
{
	static const struct command *const tables[] = {library_commands, process_commands, semaphore_commands,
						       churn_commands, damage_commands};

	for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++)
		for (const struct command *each = tables[i]; each->name; each++)
			if (!strcmp(each->name, name))
				return each;
	return NULL;
}

void *obey(void *unused)
{
	char line[1024];

	while (read_line(line, sizeof(line))) {
		const struct command *command;
		char *words[8] = {0}, *rest = line;

		for (int n = 0; n < 7 && (words[n] = strtok_r(rest, " ", &rest)); n++)
			;
		command = words[0] ? find(words[0]) : NULL;
		EXPECT(command);
		answer(command->function(words));
	}
	exit(0);
	return unused;
}

int main(int argc, char **argv)
{
	if (argc < 2)
		return 2;
	puppet.path = argv[1];
	puppet.sysfs = argv[2];
	alarm(LIFETIME);
	obey(NULL);
	return 0;
}
