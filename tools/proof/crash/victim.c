/* SPDX-License-Identifier: BSD-3-Clause */
#include "victim.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "report.h"
#include "scenario.h"

#ifndef __x86_64__
#error "knows the breakpoints of x86-64 only"
#endif

enum { SYSCALL = 0x050f };

extern const char crash_end[];

/* What is traced lies between the two breakpoints. */
static __attribute__((noinline)) void act(const struct scenario *scenario)
{
	__asm__ volatile("int3" ::: "memory");
	scenario->call(world.victim);
	__asm__ volatile(".globl crash_end\ncrash_end: int3" ::: "memory");
}

pid_t start_victim(const struct scenario *scenario)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (scenario->before)
			scenario->before(world.victim);
		NEEDED(!ptrace(PTRACE_TRACEME, 0, NULL, NULL));
		act(scenario);
		for (;;)
			pause();
	}
	NEEDED(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP);
	return pid;
}

void kill_victim(pid_t pid)
{
	kill(pid, SIGKILL);
	await_death(pid);
}

uint64_t ip_of(pid_t pid)
{
	errno = 0;
	return (uint64_t)ptrace(PTRACE_PEEKUSER, pid, offsetof(struct user_regs_struct, rip), NULL);
}

bool at_end(uint64_t ip)
{
	return ip == (uint64_t)(uintptr_t)crash_end;
}

bool enters_kernel(pid_t pid, uint64_t ip)
{
	return (ptrace(PTRACE_PEEKTEXT, pid, ip, NULL) & 0xffff) == SYSCALL;
}

bool about_to_sleep(pid_t pid, uint64_t ip)
{
	struct user_regs_struct registers;

	if (!enters_kernel(pid, ip) || ptrace(PTRACE_GETREGS, pid, NULL, &registers))
		return false;
	return (registers.rax == SYS_futex && !(registers.rsi & 0x7f)) || registers.rax == SYS_clock_nanosleep;
}

/* Until it traps. It does not come to an end by itself. */
static void go(pid_t pid, int request)
{
	int status;

	for (long signal = 0;; signal = WSTOPSIG(status)) {
		NEEDED(!ptrace(request, pid, NULL, signal));
		NEEDED(waitpid(pid, &status, 0) == pid);
		if (!WIFSTOPPED(status)) {
			wrong("it ended by itself: status %#x", (unsigned int)status);
			exit(1);
		}
		if (WSTOPSIG(status) == SIGTRAP)
			return;
		if (WSTOPSIG(status) == SIGABRT || WSTOPSIG(status) == SIGSEGV || WSTOPSIG(status) == SIGBUS) {
			wrong("it was ended by signal %d", WSTOPSIG(status));
			kill(pid, SIGKILL);
			exit(1);
		}
	}
}

void step(pid_t pid)
{
	go(pid, PTRACE_SINGLESTEP);
}

void go_on(pid_t pid)
{
	go(pid, PTRACE_CONT);
}

/* Of the processor's, on execution; in its debug register 7. */
enum { BREAKPOINT_0 = 1, BREAKPOINT_1 = 4 };

static void set_register(pid_t pid, size_t offset, uint64_t value)
{
	NEEDED(!ptrace(PTRACE_POKEUSER, pid, offset, value));
}

/* Off such a breakpoint the kernel helps by itself (RF), so each time costs one stop. */
bool run_to(pid_t pid, const struct place *place, const struct place *end)
{
	uint32_t left = place->nth - (ip_of(pid) == place->ip), left_to_end = end->nth;

	set_register(pid, offsetof(struct user, u_debugreg[0]), place->ip);
	set_register(pid, offsetof(struct user, u_debugreg[1]), end->ip);
	set_register(pid, offsetof(struct user, u_debugreg[7]), BREAKPOINT_0 | BREAKPOINT_1);
	while (left) {
		go_on(pid);
		if (ip_of(pid) == place->ip)
			left--;
		else if (ip_of(pid) != end->ip || !--left_to_end)
			return false;
	}
	set_register(pid, offsetof(struct user, u_debugreg[7]), 0);
	return true;
}

uint64_t offset_of(uint64_t ip)
{
	extern const char __executable_start[];

	return ip - (uint64_t)(uintptr_t)__executable_start;
}

bool ours(uint64_t ip)
{
	extern const char etext[];

	return offset_of(ip) < offset_of((uint64_t)(uintptr_t)etext);
}
