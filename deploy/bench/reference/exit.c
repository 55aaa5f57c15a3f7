/*
 * Round trips of a 32-byte ioreq between two processes that look at shared memory all the time: microseconds, the median
 * and the 99th percentile.
 *
 *	exit CORE CORE
 */
#include "window.h"
#define __XEN_INTERFACE_VERSION__ 0x00040d00
#include <xen/xen.h>
#include <xen/hvm/ioreq.h>

enum { ROOM = 1 << 20 };
static struct slot { volatile ioreq_t request; volatile uint32_t state; } *slot;
static double times[ROOM];

static void set_state(uint32_t state) { __atomic_store_n(&slot->state, state, __ATOMIC_RELEASE); }
static uint32_t state(void) { return __atomic_load_n(&slot->state, __ATOMIC_ACQUIRE); }

static void serve(void)
{
	for (;;) {
		ioreq_t got;

		while (state() != STATE_IOREQ_READY) {
			if (is_quiet())
				return;
			__builtin_ia32_pause();
		}
		got = slot->request;
		slot->request.data = got.data + got.addr;
		set_state(STATE_IORESP_READY);
	}
}

static void window(double seconds)
{
	double start = now(), before = start, after = start;
	size_t count = 0;

	while (after - start < seconds && count < ROOM) {
		ioreq_t request = { .addr = 0x80, .data = count, .count = 1, .size = 1, .dir = IOREQ_READ, .type = IOREQ_TYPE_PIO };

		slot->request = request;
		set_state(STATE_IOREQ_READY);
		while (state() != STATE_IORESP_READY)
			__builtin_ia32_pause();
		if (slot->request.data != count + 0x80)
			exit(2);
		set_state(STATE_IOREQ_NONE);
		after = now();
		times[count++] = after - before;
		before = after;
	}
	print_quantiles(times, count);
}

int main(int count, char **words)
{
	if (count != 3)
		return 1;
	slot = share(sizeof *slot);
	start(atoi(words[2]), serve);
	return windows(atoi(words[1]), window);
}
