/* Both ends of one kind of ring, as a driver in C has them. ring.c says what NAME, REQUEST and RESPONSE are. */
static NAME(sring_t) *NAME(shared);

static void NAME(back)(void)
{
	static NAME(back_ring_t) ring;
	REQUEST request;
	RESPONSE *response;
	RING_IDX seen;
	int notify, work;

	if (!ring.sring)
		BACK_RING_INIT(&ring, NAME(shared), ring_size);
	for (;;) {
		seen = *(volatile RING_IDX *)&ring.sring->req_prod;
		xen_rmb();
		if (ring.req_cons == seen) {
			if (!sleeping) {
				if (is_quiet())
					return;
				PAUSE();
				continue;
			}
			RING_FINAL_CHECK_FOR_REQUESTS(&ring, work);
			if (!work)
				hear_bell(request_bell);
			continue;
		}
		while (ring.req_cons != seen && !RING_REQUEST_CONS_OVERFLOW(&ring, ring.req_cons)) {
			RING_COPY_REQUEST(&ring, ring.req_cons, &request);
			ring.req_cons++;
			response = RING_GET_RESPONSE(&ring, ring.rsp_prod_pvt);
			response->id = request.id;
			response->status = 0;
			ring.rsp_prod_pvt++;
		}
		RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&ring, notify);
		if (notify && sleeping)
			ring_bell(response_bell);
	}
}

static NAME(front_ring_t) NAME(ring);

static void NAME(put)(void)
{
	static REQUEST request;
	int notify;

	while (!RING_FULL(&NAME(ring))) {
		request.id = (uint16_t)NAME(ring).req_prod_pvt;
		*RING_GET_REQUEST(&NAME(ring), NAME(ring).req_prod_pvt) = request;
		NAME(ring).req_prod_pvt++;
	}
	RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&NAME(ring), notify);
	if (notify && sleeping)
		ring_bell(request_bell);
}

/* Wait for responses, and take them all: their number. */
static unsigned NAME(take)(void)
{
	RESPONSE response;
	RING_IDX seen, first = NAME(ring).rsp_cons;
	int work;

	for (;;) {
		seen = *(volatile RING_IDX *)&NAME(ring).sring->rsp_prod;
		xen_rmb();
		if (NAME(ring).rsp_cons != seen)
			break;
		if (!sleeping) {
			PAUSE();
			continue;
		}
		RING_FINAL_CHECK_FOR_RESPONSES(&NAME(ring), work);
		if (!work)
			hear_bell(response_bell);
	}
	while (NAME(ring).rsp_cons != seen) {
		RING_COPY_RESPONSE(&NAME(ring), NAME(ring).rsp_cons, &response);
		if (response.id != (uint16_t)NAME(ring).rsp_cons)
			exit(2);
		NAME(ring).rsp_cons++;
	}
	return seen - first;
}

static void NAME(front)(double seconds)
{
	double start = now(), end = start;
	unsigned long pairs = 0;
	unsigned turn = 0;

	if (!NAME(ring).sring)
		FRONT_RING_INIT(&NAME(ring), NAME(shared), ring_size);
	while (end - start < seconds) {
		NAME(put)();
		pairs += NAME(take)();
		if (sleeping || ++turn % 16 == 0)
			end = now();
	}
	printf("%.0f\n", pairs / (end - start));
	while (NAME(ring).rsp_cons != NAME(ring).req_prod_pvt)
		NAME(take)();
}
