/*
 * Request and response pairs a second through a ring of Xen's own macros, between two processes.
 *
 *	ring blkif|netif PAGES spin|sleep CORE CORE
 *
 * spin: both ends look at the ring all the time. sleep: they sleep on an eventfd, as event suppression lets them.
 */
#include "window.h"
#define __XEN_INTERFACE_VERSION__ 0x00040d00
/* x86: loads are not reordered with loads, nor stores with stores; only the compiler must be told. */
#define xen_mb() __sync_synchronize()
#define xen_rmb() __asm__ volatile("" ::: "memory")
#define xen_wmb() __asm__ volatile("" ::: "memory")
#include <xen/io/blkif.h>
#include <xen/io/netif.h>
#define PAUSE() __builtin_ia32_pause()

static size_t ring_size;
static int sleeping, request_bell, response_bell;

#define NAME(x) blkif_##x
#define REQUEST blkif_request_t
#define RESPONSE blkif_response_t
#include "ring_ends.h"
#undef NAME
#undef REQUEST
#undef RESPONSE
#define NAME(x) netif_tx_##x
#define REQUEST netif_tx_request_t
#define RESPONSE netif_tx_response_t
#include "ring_ends.h"

int main(int count, char **words)
{
	if (count != 6)
		return 1;
	ring_size = 4096 * atoi(words[2]);
	sleeping = !strcmp(words[3], "sleep");
	request_bell = eventfd(0, 0);
	response_bell = eventfd(0, 0);
	if (!strcmp(words[1], "netif")) {
		netif_tx_shared = share(ring_size);
		SHARED_RING_INIT(netif_tx_shared);
		start(atoi(words[5]), netif_tx_back);
		return windows(atoi(words[4]), netif_tx_front);
	}
	blkif_shared = share(ring_size);
	SHARED_RING_INIT(blkif_shared);
	start(atoi(words[5]), blkif_back);
	return windows(atoi(words[4]), blkif_front);
}
