/* What the references share: windows on demand, pinning, clocks. Each is two or three processes that share memory. */
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

enum { MOST_SERVERS = 2, ANY_CORE = -1 };
struct between {			/* lies in memory that all share */
	int quiet;			/* the window is over: whoever spins goes to sleep */
	int go[MOST_SERVERS];		/* eventfds that start those who serve */
};
static struct between *between;
static int nr_servers;

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void pin(int core)
{
	cpu_set_t set;

	if (core == ANY_CORE)
		return;
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

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

/* Print the median and the 99th percentile of seconds, in microseconds. */
static void print_quantiles(double *times, size_t count)
{
	qsort(times, count, sizeof *times, compare);
	printf("%.4f %.4f\n", times[count / 2] * 1e6, times[count * 99 / 100] * 1e6);
}

static int is_quiet(void) { return __atomic_load_n(&between->quiet, __ATOMIC_ACQUIRE); }

static void set_quiet(int quiet) { __atomic_store_n(&between->quiet, quiet, __ATOMIC_RELEASE); }

/* Start a process that serves, on a core: whenever it is told to, until the window is over. */
static void start(int core, void (*serve)(void))
{
	pid_t parent = getpid();
	int go = eventfd(0, 0);

	if (!between)
		between = share(sizeof *between);
	between->go[nr_servers++] = go;
	if (fork())
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		exit(1);
	pin(core);
	for (;;) {
		hear_bell(go);
		serve();
	}
}

/* Answer every line of seconds with what `window` prints of so many. */
static int windows(int core, void (*window)(double seconds))
{
	char line[64];
	int i;

	pin(core);
	while (fgets(line, sizeof line, stdin)) {
		set_quiet(0);
		for (i = 0; i < nr_servers; i++)
			ring_bell(between->go[i]);
		window(atof(line));
		set_quiet(1);
		fflush(stdout);
	}
	return 0;
}
