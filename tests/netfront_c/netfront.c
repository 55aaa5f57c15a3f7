/* A netfront made of Xen's own headers (xen/io/ring.h, xen/io/netif.h), in a domain whose memory is a file.
 *
 * Frames are granted by writing grant_entry_v1, events are sent by setting bits of dom0's shared_info, the rings are
 * the headers' macros. The xenstore part of the handshake is whoever runs this: the grefs go to standard output, and
 * lines on standard input say that the backend is connected, and that the peer is as well.
 *
 * Sends `frames` frames of mixed sizes, up to 65,535 bytes in up to 18 pieces, to the vif `to`, each with its number and
 * a checksum in it, and receives as many from there. Every frame must come, once, whole and in order, however few
 * buffers (`buffers`) are posted at a time. With `loose` they need not all come, only whole, and all must be
 * answered, if some with an error: netback is killed meanwhile.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define __XEN_INTERFACE_VERSION__ 0x00040e00
#include <xen/xen.h>
#include <xen/event_channel.h>
#include <xen/grant_table.h>

#define xen_mb() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define xen_rmb() __atomic_thread_fence(__ATOMIC_ACQUIRE)
#define xen_wmb() __atomic_thread_fence(__ATOMIC_RELEASE)
#include <xen/io/netif.h>

enum {
    PAGE = 4096,
    POOL = 1200,         /* data frames, behind the rings' */
    FIRST_FRAME = 1,
    FIRST_GREF = GNTTAB_NR_RESERVED_ENTRIES,
    HEADER = 14,
    LEAST = HEADER + 16, /* number, length, sum */
    MOST = XEN_NETIF_MAX_TX_SIZE,
    PATIENCE_MS = 30000, /* a watchdog: nothing is known to be that slow */
};

static struct { /* arguments */
    const char *memory, *dom0_memory, *channels, *dom0_channels, *bell, *bells, *mac, *to;
    unsigned long shared_info, dom0_shared_info, grants, port, rx_port, frames, buffers, largest, loose;
} arg;

static uint8_t *memory;
static grant_entry_v1_t *grants;
static struct shared_info *shared, *dom0;
static uint64_t *channels, *dom0_channels;
static netif_tx_front_ring_t tx;
static netif_rx_front_ring_t rx;
static int tx_page[65536], rx_page[256];
static int spare[POOL], spares, bell;
static uint8_t mac[6], to[6], received[MOST + PAGE];
static unsigned long sent, answered, arrived, bytes_out, bytes_in, length, notified, refused;
static int more_data, frame_flags, spoilt;

static void die(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
    exit(1);
}

static void *map(const char *path, size_t *size)
{
    struct stat st;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st))
        die("%s: %s", path, strerror(errno));
    void *at = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        die("%s: %s", path, strerror(errno));
    if (size)
        *size = st.st_size;
    close(fd);
    return at;
}

static uint64_t random64(void)
{
    static uint64_t state = 0x243f6a8885a308d3ull;
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

/* -- grants */
static grant_ref_t gref_of(int frame) { return FIRST_GREF + frame - FIRST_FRAME; }

static void grant(int frame, int readonly)
{
    grant_entry_v1_t *entry = &grants[gref_of(frame)];
    entry->domid = 0;
    entry->frame = frame;
    xen_wmb();
    entry->flags = GTF_permit_access | (readonly ? GTF_readonly : 0);
}

static void end_grant(int frame)
{
    uint16_t *flags = &grants[gref_of(frame)].flags, old = *flags;
    do {
        if (old & (GTF_reading | GTF_writing))
            die("frame %d is still mapped after its request was answered", frame);
    } while (!__atomic_compare_exchange_n(flags, &old, 0, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
}

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

/* -- events: the 2-level ABI of xen.h */
static void send_event(unsigned long local)
{
    uint64_t mine = __atomic_load_n(&channels[local], __ATOMIC_ACQUIRE);
    unsigned port = mine >> 32, vcpu = (dom0_channels[port] >> 8) & 0xff;
    unsigned long bit = 1ul << (port & 63);
    char path[512];
    notified++;
    if ((mine & 0xff) != EVTCHNSTAT_interdomain) /* the backend died: its successor looks at the ring unasked */
        return;
    if (__atomic_fetch_or(&dom0->evtchn_pending[port / 64], bit, __ATOMIC_SEQ_CST) & bit)
        return;
    if (dom0->evtchn_mask[port / 64] & bit)
        return;
    struct vcpu_info *info = &dom0->vcpu_info[vcpu];
    __atomic_fetch_or(&info->evtchn_pending_sel, 1ul << (port / 64), __ATOMIC_SEQ_CST);
    __atomic_exchange_n(&info->evtchn_upcall_pending, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&info->evtchn_upcall_mask, __ATOMIC_SEQ_CST))
        return;
    snprintf(path, sizeof path, "%s%u", arg.bells, vcpu);
    int fd = open(path, O_WRONLY | O_NONBLOCK);
    if (fd < 0 || (write(fd, "", 1) != 1 && errno != EAGAIN))
        die("%s: %s", path, strerror(errno));
    close(fd);
}

static void wait_for_event(void)
{
    struct vcpu_info *info = &shared->vcpu_info[0];
    struct pollfd poll_bell = {bell, POLLIN, 0};
    char bytes[64];
    __atomic_store_n(&info->evtchn_upcall_mask, 0, __ATOMIC_SEQ_CST);
    xen_mb();
    if (!__atomic_load_n(&info->evtchn_upcall_pending, __ATOMIC_SEQ_CST)) {
        if (poll(&poll_bell, 1, PATIENCE_MS) != 1)
            die("no event; sent %lu of %lu, answered %lu, arrived %lu; tx %u/%u rx %u/%u", sent, arg.frames, answered, arrived,
                tx.sring->req_prod, tx.sring->rsp_prod, rx.sring->req_prod, rx.sring->rsp_prod);
        while (read(bell, bytes, sizeof bytes) > 0)
            ;
    }
    __atomic_store_n(&info->evtchn_upcall_mask, 1, __ATOMIC_SEQ_CST);
    __atomic_exchange_n(&info->evtchn_upcall_pending, 0, __ATOMIC_SEQ_CST);
    __atomic_exchange_n(&info->evtchn_pending_sel, 0, __ATOMIC_SEQ_CST);
    __atomic_fetch_and(&shared->evtchn_pending[arg.port / 64], ~(1ul << (arg.port & 63)), __ATOMIC_SEQ_CST);
    __atomic_fetch_and(&shared->evtchn_pending[arg.rx_port / 64], ~(1ul << (arg.rx_port & 63)), __ATOMIC_SEQ_CST);
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
        memcpy(memory + (size_t)page * PAGE + offset, frame + at, count);
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
        memcpy(received + length, memory + (size_t)rx_page[slot] * PAGE + response->offset, response->status);
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
    return memory + (size_t)frame * PAGE;
}

static void address(const char *text, uint8_t *to)
{
    if (sscanf(text, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", to, to + 1, to + 2, to + 3, to + 4, to + 5) != 6)
        die("%s is no address", text);
}

static void expect(const char *word)
{
    char line[32];
    if (!fgets(line, sizeof line, stdin) || strncmp(line, word, strlen(word)))
        die("not %s", word);
}

static void parse(int argc, char **argv)
{
    struct { const char *name; const char **text; unsigned long *number; } table[] = {
        {"memory", &arg.memory, 0}, {"dom0-memory", &arg.dom0_memory, 0}, {"channels", &arg.channels, 0},
        {"dom0-channels", &arg.dom0_channels, 0}, {"bell", &arg.bell, 0}, {"bells", &arg.bells, 0}, {"mac", &arg.mac, 0},
        {"to", &arg.to, 0},
        {"shared-info", 0, &arg.shared_info}, {"dom0-shared-info", 0, &arg.dom0_shared_info}, {"grants", 0, &arg.grants},
        {"port", 0, &arg.port}, {"rx-port", 0, &arg.rx_port}, {"frames", 0, &arg.frames}, {"buffers", 0, &arg.buffers},
        {"largest", 0, &arg.largest}, {"loose", 0, &arg.loose},
    };
    for (int i = 1; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        size_t n = 0, count = sizeof table / sizeof *table;
        if (!value)
            die("what is %s?", argv[i]);
        *value++ = 0;
        while (n < count && strcmp(table[n].name, argv[i]))
            n++;
        if (n == count)
            die("what is %s?", argv[i]);
        if (table[n].text)
            *table[n].text = value;
        else
            *table[n].number = strtoul(value, NULL, 10);
    }
}

int main(int argc, char **argv)
{
    parse(argc, argv);
    address(arg.mac, mac);
    address(arg.to, to);
    memory = map(arg.memory, NULL);
    grants = (grant_entry_v1_t *)(memory + arg.grants * PAGE);
    shared = (struct shared_info *)(memory + arg.shared_info * PAGE);
    dom0 = (struct shared_info *)((uint8_t *)map(arg.dom0_memory, NULL) + arg.dom0_shared_info * PAGE);
    channels = map(arg.channels, NULL);
    dom0_channels = map(arg.dom0_channels, NULL);
    if ((mkfifo(arg.bell, 0600) && errno != EEXIST) || (bell = open(arg.bell, O_RDWR | O_NONBLOCK)) < 0)
        die("%s: %s", arg.bell, strerror(errno));
    shared->vcpu_info[0].evtchn_upcall_mask = 1;
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
           notified, refused);
    return 0;
}
