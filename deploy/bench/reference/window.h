/* What the references share: windows on demand, pinning, clocks. Each is two processes that share memory. */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

struct between {			/* lies in memory that both share */
	int quiet;			/* the window is over: whoever spins goes to sleep */
	int go;				/* an eventfd that starts the one who serves */
};
static struct between *between;

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void pin(int core)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(core, &set);
	sched_setaffinity(0, sizeof set, &set);
}

static void *share(size_t size)
{
	void *at = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED)
		exit(1);
	return at;
}

static void ring_bell(int bell)
{
	uint64_t one = 1;
	if (write(bell, &one, sizeof one) < 0)
		exit(1);
}

static void hear_bell(int bell)
{
	uint64_t any;
	if (read(bell, &any, sizeof any) < 0)
		exit(1);
}

static int is_quiet(void) { return __atomic_load_n(&between->quiet, __ATOMIC_ACQUIRE); }

static void set_quiet(int quiet) { __atomic_store_n(&between->quiet, quiet, __ATOMIC_RELEASE); }

/* Start the process that serves, on its own core: whenever it is told to, until the window is over. */
static void start(int core, void (*serve)(void))
{
	pid_t parent = getpid();

	between = share(sizeof *between);
	between->go = eventfd(0, 0);
	if (fork())
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		exit(1);
	pin(core);
	for (;;) {
		hear_bell(between->go);
		serve();
	}
}

/* Answer every line of seconds with what `window` prints of so many. */
static int windows(int core, void (*window)(double seconds))
{
	char line[64];

	pin(core);
	while (fgets(line, sizeof line, stdin)) {
		set_quiet(0);
		ring_bell(between->go);
		window(atof(line));
		set_quiet(1);
		fflush(stdout);
	}
	return 0;
}
