/*
 * A sector through three processes, as an HVM guest's goes: the vCPU asks the device model with an OUT and then polls with
 * an IN; the device model asks the backend over a blkif ring, the backend reads 512 bytes from FILE. Microseconds, the
 * median and the 99th percentile.
 *
 *	sector FILE CORE CORE
 *
 * vCPU and device model have a core each; the backend is where the kernel puts it. All of them spin, and make way for others
 * when that takes longer than PAUSE_NS: three processes may have two cores.
 */
#include "window.h"
#include <fcntl.h>
#define __XEN_INTERFACE_VERSION__ 0x00040d00
/* x86: loads are not reordered with loads, nor stores with stores; only the compiler must be told. */
#define xen_mb() __sync_synchronize()
#define xen_rmb() __asm__ volatile("" ::: "memory")
#define xen_wmb() __asm__ volatile("" ::: "memory")
#include <xen/xen.h>
#include <xen/hvm/ioreq.h>
#include <xen/io/blkif.h>

enum { ROOM = 1 << 20, SECTOR = 512, PAUSE_NS = 1000, BSY = 0x80, DRQ = 0x08, STATUS = 0x1f7, READ_SECTORS = 0x20 };
static struct slot { volatile ioreq_t request; volatile uint32_t state; } *slot;
static blkif_sring_t *shared;
static char *granted;			/* the page that the backend reads into */
static int image;
static double times[ROOM];

static void set_state(uint32_t state) { __atomic_store_n(&slot->state, state, __ATOMIC_RELEASE); }
static uint32_t state(void) { return __atomic_load_n(&slot->state, __ATOMIC_ACQUIRE); }

/* Once more round a loop that began to wait at `since`. */
static void wait_longer(double since)
{
	int i;

	for (i = 0; i < 16; i++)
		__builtin_ia32_pause();
	if (now() - since > PAUSE_NS * 1e-9)
		sched_yield();
}

static void backend(void)
{
	static blkif_back_ring_t ring;
	double since = now();

	if (!ring.sring)
		BACK_RING_INIT(&ring, shared, 4096);
	while (!is_quiet()) {
		blkif_request_t request;
		blkif_response_t *response;
		int notify;

		if (!RING_HAS_UNCONSUMED_REQUESTS(&ring)) {
			wait_longer(since);
			continue;
		}
		RING_COPY_REQUEST(&ring, ring.req_cons, &request);
		ring.req_cons++;
		if (pread(image, granted, SECTOR, request.sector_number * SECTOR) != SECTOR)
			exit(3);
		response = RING_GET_RESPONSE(&ring, ring.rsp_prod_pvt);
		response->id = request.id;
		response->status = BLKIF_RSP_OKAY;
		ring.rsp_prod_pvt++;
		RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&ring, notify);
		since = now();
	}
}

static void device_model(void)
{
	static blkif_front_ring_t ring;
	static char block[SECTOR];
	static uint8_t status;
	double since = now();

	if (!ring.sring)
		FRONT_RING_INIT(&ring, shared, 4096);
	while (!is_quiet()) {
		if (RING_HAS_UNCONSUMED_RESPONSES(&ring)) {
			blkif_response_t response;

			RING_COPY_RESPONSE(&ring, ring.rsp_cons, &response);
			ring.rsp_cons++;
			memcpy(block, granted, SECTOR);
			status = DRQ;
		}
		/* A poll of a busy disk is answered when there is something to say. */
		if (state() != STATE_IOREQ_READY || (slot->request.dir == IOREQ_READ && status == BSY)) {
			wait_longer(since);
			continue;
		}
		if (slot->request.dir == IOREQ_WRITE) {
			blkif_request_t request = { .operation = BLKIF_OP_READ, .nr_segments = 1, .id = 1 };
			int notify;

			status = BSY;
			*RING_GET_REQUEST(&ring, ring.req_prod_pvt) = request;
			ring.req_prod_pvt++;
			RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&ring, notify);
		} else {
			slot->request.data = status;
		}
		set_state(STATE_IORESP_READY);
		since = now();
	}
}

static uint64_t leave(int direction, uint64_t data)
{
	ioreq_t request = { .addr = STATUS, .data = data, .count = 1, .size = 1, .dir = direction, .type = IOREQ_TYPE_PIO };
	double since = now();

	slot->request = request;
	set_state(STATE_IOREQ_READY);
	while (state() != STATE_IORESP_READY)
		wait_longer(since);
	set_state(STATE_IOREQ_NONE);
	return slot->request.data;
}

static void window(double seconds)
{
	double start = now(), before = start, after = start;
	size_t count = 0;

	while (after - start < seconds && count < ROOM) {
		leave(IOREQ_WRITE, READ_SECTORS);
		while (leave(IOREQ_READ, 0) != DRQ)
			;
		after = now();
		times[count++] = after - before;
		before = after;
	}
	print_quantiles(times, count);
}

int main(int count, char **words)
{
	if (count != 4 || (image = open(words[1], O_RDONLY)) < 0)
		return 1;
	slot = share(sizeof *slot);
	shared = share(4096);
	granted = share(4096);
	SHARED_RING_INIT(shared);
	start(atoi(words[3]), device_model);
	start(ANY_CORE, backend);
	return windows(atoi(words[2]), window);
}
