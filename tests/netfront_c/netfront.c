/* A netfront made of Xen's own headers (xen/io/ring.h, xen/io/netif.h), in a domain whose memory is a file.
 *
 * xen_domain.h is the domain, the rings are the headers' macros. The grefs go to standard output, and lines on standard
 * input say that the backend is connected, and that the peer is as well.
 *
 * Sends `frames` frames of mixed sizes, up to 65,535 bytes in up to 18 pieces, to the vif `to`, each with its number and
 * a checksum in it, and receives as many from there. Every frame must come, once, whole and in order, however few
 * buffers (`buffers`) are posted at a time. With `loose` they need not all come, only whole, and all must be
 * answered, if some with an error: netback is killed meanwhile.
 */
#include "xen_domain.h"

#include <xen/io/netif.h>

enum {
    POOL = 1200,         /* data frames, behind the rings' */
    HEADER = 14,
    LEAST = HEADER + 16, /* number, length, sum */
    MOST = XEN_NETIF_MAX_TX_SIZE,
};

static struct { /* arguments */
    const char *mac, *to;
    unsigned long port, rx_port, frames, buffers, largest, loose;
} arg;

static netif_tx_front_ring_t tx;
static netif_rx_front_ring_t rx;
static int tx_page[65536], rx_page[256];
static int spare[POOL], spares;
static uint8_t mac[6], to[6], received[MOST + PAGE];
static unsigned long sent, answered, arrived, bytes_out, bytes_in, length, refused;
static int more_data, frame_flags, spoilt;

/* -- data frames: granted while they are out */
static int take_frame(int readonly)
{
    int frame = spare[--spares];
    grant(frame, readonly);
    return frame;
}

static void give_frame(int frame)
{
    end_grant(frame);
    spare[spares++] = frame;
}

static void wait_for_event(void)
{
    if (!upcall_came())
        die("no event; sent %lu of %lu, answered %lu, arrived %lu; tx %u/%u rx %u/%u", sent, arg.frames, answered, arrived,
            tx.sring->req_prod, tx.sring->rsp_prod, rx.sring->req_prod, rx.sring->rsp_prod);
    clear_event(arg.port);
    clear_event(arg.rx_port);
}

/* -- what is in a frame: its number, its length, bytes that follow from both, and their sum */
static uint8_t byte_of(uint32_t number, uint32_t at) { return (number * 2654435761u + at * 40503u) >> 13; }

static void fill(uint8_t *frame, uint32_t number, uint32_t size)
{
    uint32_t sum = 0;
    memcpy(frame, to, 6);
    memcpy(frame + 6, mac, 6);
    memcpy(frame + 12, "\x88\xb5", 2);
    memcpy(frame + 14, &number, 4);
    memcpy(frame + 18, &size, 4);
    for (uint32_t at = LEAST; at < size; at++)
        sum = sum * 31 + (frame[at] = byte_of(number, at));
    memcpy(frame + 22, &sum, 4);
    memset(frame + 26, 0x77, 4);
}

static void check(const uint8_t *frame, uint32_t size)
{
    uint32_t number, said, sum, found = 0;
    memcpy(&number, frame + 14, 4);
    memcpy(&said, frame + 18, 4);
    memcpy(&sum, frame + 22, 4);
    if (size < LEAST || memcmp(frame, mac, 6) || memcmp(frame + 6, to, 6))
        die("frame %lu is not for us: %u bytes", arrived, size);
    if (arg.loose) /* netback is killed meanwhile: what it had in hand is lost, or comes again */
        arrived = number;
    if (number != arrived || said != size)
        die("frame %lu came as number %u of %u bytes, with %u", arrived, number, said, size);
    for (uint32_t at = LEAST; at < size; at++)
        found = found * 31 + frame[at];
    if (found != sum)
        die("frame %lu of %u bytes is not what was sent", arrived, size);
    arrived++;
    bytes_in += size;
}

static uint32_t some_size(void)
{
    uint64_t r = random64();
    uint32_t size;
    switch (r % 5) {
    case 0: size = 60; break;
    case 1: size = 1514; break;
    case 2: size = LEAST + (r >> 8) % (MOST - LEAST + 1); break;
    case 3: size = LEAST + (r >> 8) % 9000; break;
    default: size = r % 64 ? 4096 + (r >> 8) % 3 - 1 : MOST;
    }
    return size > arg.largest ? arg.largest : size;
}

/* -- transmit */
static int put(const uint8_t *frame, uint32_t size)
{
    uint32_t at = 0, slots = 0;
    RING_IDX first = tx.req_prod_pvt;
    while (at < size) {
        uint32_t room = XEN_NETIF_NR_SLOTS_MIN - slots, least = (size - at + PAGE - 1) / PAGE;
        uint32_t count = least < room - 1 && random64() % 2 ? 1 + random64() % PAGE : PAGE;
        if (count > size - at)
            count = size - at;
        uint32_t offset = random64() % (PAGE - count + 1);
        int page = take_frame(1);
        netif_tx_request_t *request = RING_GET_REQUEST(&tx, tx.req_prod_pvt);
        memcpy(frame_at(page) + offset, frame + at, count);
        *request = (netif_tx_request_t){
            .gref = gref_of(page), .offset = offset, .id = tx.req_prod_pvt * 257, .size = count, .flags = NETTXF_more_data};
        if (tx_page[request->id])
            die("transmit id %u is out already", request->id);
        tx_page[request->id] = page;
        tx.req_prod_pvt++;
        at += count;
        slots++;
    }
    RING_GET_REQUEST(&tx, first)->size = size;
    RING_GET_REQUEST(&tx, tx.req_prod_pvt - 1)->flags = 0;
    return slots;
}

static int may_send(void) { return RING_FREE_REQUESTS(&tx) >= XEN_NETIF_NR_SLOTS_MIN && spares >= 2 * XEN_NETIF_NR_SLOTS_MIN; }

static void transmit(void)
{
    static uint8_t frame[MOST];
    int notify, burst = 1 + random64() % 40;
    while (sent < arg.frames && may_send() && burst--) {
        uint32_t size = some_size();
        fill(frame, sent++, size);
        put(frame, size);
        bytes_out += size;
    }
    RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&tx, notify);
    if (notify)
        send_event(arg.port);
}

static void take_answers(void)
{
    int more;
    do {
        RING_IDX prod = tx.sring->rsp_prod;
        xen_rmb();
        while (tx.rsp_cons != prod) {
            netif_tx_response_t response;
            RING_COPY_RESPONSE(&tx, tx.rsp_cons, &response);
            tx.rsp_cons++;
            refused += response.status == NETIF_RSP_ERROR;
            if ((response.status != NETIF_RSP_OKAY && !arg.loose) || !tx_page[response.id])
                die("transmit response: id %u, status %d", response.id, response.status);
            give_frame(tx_page[response.id]);
            tx_page[response.id] = 0;
            answered++;
        }
        RING_FINAL_CHECK_FOR_RESPONSES(&tx, more);
    } while (more);
}

/* -- receive */
static void post(void)
{
    int notify;
    while (RING_SIZE(&rx) - RING_FREE_REQUESTS(&rx) < arg.buffers) {
        unsigned id = rx.req_prod_pvt & (RING_SIZE(&rx) - 1);
        rx_page[id] = take_frame(0);
        *RING_GET_REQUEST(&rx, rx.req_prod_pvt) = (netif_rx_request_t){.id = id, .gref = gref_of(rx_page[id])};
        rx.req_prod_pvt++;
    }
    RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&rx, notify);
    if (notify)
        send_event(arg.rx_port);
}

static void take_piece(const netif_rx_response_t *response, unsigned slot)
{
    if (response->id != slot)
        die("receive response %u is in slot %u", response->id, slot);
    if (response->status < 0 && arg.loose)
        spoilt = 1;
    else if (response->status < 0 || response->offset + response->status > PAGE || length + response->status > MOST)
        die("receive response: offset %u, status %d, %lu bytes before", response->offset, response->status, length);
    if (!more_data)
        frame_flags = response->flags;
    if (!spoilt) {
        memcpy(received + length, frame_at(rx_page[slot]) + response->offset, response->status);
        length += response->status;
    }
    give_frame(rx_page[slot]);
    more_data = response->flags & NETRXF_more_data;
    if (more_data)
        return;
    if (frame_flags & (NETRXF_extra_info | NETRXF_csum_blank))
        die("flags %#x, which nobody sent", frame_flags);
    if (!spoilt)
        check(received, length);
    refused += spoilt;
    length = spoilt = 0;
}

static void receive(void)
{
    int more;
    do {
        RING_IDX prod = rx.sring->rsp_prod;
        xen_rmb();
        while (rx.rsp_cons != prod) {
            netif_rx_response_t response;
            RING_COPY_RESPONSE(&rx, rx.rsp_cons, &response);
            take_piece(&response, rx.rsp_cons & (RING_SIZE(&rx) - 1));
            rx.rsp_cons++;
        }
        RING_FINAL_CHECK_FOR_RESPONSES(&rx, more);
    } while (more);
}

static void run(void)
{
    while (sent < arg.frames || tx.rsp_cons != tx.req_prod_pvt || (arrived < arg.frames && !arg.loose)) {
        unsigned long before = answered + arrived + sent;
        transmit();
        take_answers();
        receive();
        post();
        if (answered + arrived + sent == before)
            wait_for_event();
    }
}

/* A frame to ourselves: the switch knows then where we are. */
static void announce(void)
{
    uint8_t frame[60] = {0};
    memcpy(frame, mac, 6);
    memcpy(frame + 6, mac, 6);
    memcpy(frame + 12, "\x88\xb5", 2);
    int notify;
    put(frame, sizeof frame);
    RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&tx, notify);
    if (notify)
        send_event(arg.port);
    while (take_answers(), tx.rsp_cons != tx.req_prod_pvt)
        wait_for_event();
    answered = 0;
}

/* -- start */
static void *ring_page(int frame)
{
    grant(frame, 0);
    return frame_at(frame);
}

static void address(const char *text, uint8_t *to)
{
    if (sscanf(text, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", to, to + 1, to + 2, to + 3, to + 4, to + 5) != 6)
        die("%s is no address", text);
}

int main(int argc, char **argv)
{
    const struct argument own[] = {
        {"mac", &arg.mac, 0}, {"to", &arg.to, 0}, {"port", 0, &arg.port}, {"rx-port", 0, &arg.rx_port},
        {"frames", 0, &arg.frames}, {"buffers", 0, &arg.buffers}, {"largest", 0, &arg.largest}, {"loose", 0, &arg.loose},
    };
    parse(argc, argv, own, sizeof own / sizeof *own);
    address(arg.mac, mac);
    address(arg.to, to);
    enter();
    netif_tx_sring_t *tx_sring = ring_page(FIRST_FRAME);
    netif_rx_sring_t *rx_sring = ring_page(FIRST_FRAME + 1);
    SHARED_RING_INIT(tx_sring);
    FRONT_RING_INIT(&tx, tx_sring, PAGE);
    SHARED_RING_INIT(rx_sring);
    FRONT_RING_INIT(&rx, rx_sring, PAGE);
    for (int i = 0; i < POOL; i++)
        spare[spares++] = FIRST_FRAME + 2 + i;
    post();
    printf("grefs %u %u\n", gref_of(FIRST_FRAME), gref_of(FIRST_FRAME + 1));
    fflush(stdout);
    expect("connected");
    announce();
    printf("announced\n");
    fflush(stdout);
    expect("go");
    run();
    printf("sent %lu out %lu arrived %lu in %lu slots %lu notified %lu refused %lu\n", sent, bytes_out, arrived, bytes_in, answered,
           domain.notified, refused);
    return 0;
}
