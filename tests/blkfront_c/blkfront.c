/* A blkfront made of Xen's own headers (xen/io/ring.h, xen/io/blkif.h), in a domain whose memory is a file.
 *
 * xen_domain.h is the domain, the rings are the headers' macros. The grefs go to standard output, and a line on standard
 * input says that the backend is connected.
 *
 * Writes `sectors` sectors in requests of mixed sizes, each sector with its number and a checksum in it, flushes, reads
 * all of it back in other sizes and from the end on, and discards a part. With mode=ro reads, and is refused writes.
 */
#include "xen_domain.h"

#ifdef I386_LAYOUT /* a u64 is aligned to 4 bytes there, and nothing else differs */
#pragma pack(push, 4)
#endif
#include <xen/io/blkif.h>
#ifdef I386_LAYOUT
#pragma pack(pop)
_Static_assert(sizeof(blkif_request_t) == 108 && sizeof(blkif_response_t) == 12, "not i386's layout");
#else
_Static_assert(sizeof(blkif_request_t) == 112 && sizeof(blkif_response_t) == 16, "not x86_64's layout");
#endif

enum {
    SECTOR = 512,
    WORDS = SECTOR / 8,
    POOL = 2600, /* data frames, behind the ring's */
    MAX_PAGES = 16,
    MAX_SEGMENTS = 256,
    MAX_REQUESTS = 512,
};

struct request {
    int busy, expect, count;
    uint8_t op;
    uint64_t sector, id;
    int frame[MAX_SEGMENTS], indirect;
    uint8_t first[MAX_SEGMENTS], last[MAX_SEGMENTS];
};

static struct { /* arguments */
    const char *mode;
    unsigned long port, order, segments, persistent, sectors;
} arg;

static blkif_front_ring_t ring;
static struct request requests[MAX_REQUESTS];
static int spare[POOL], spares, out;
static unsigned long sent, written, read_back, refused;

/* -- data frames: granted while they are out, or all the time */
static int take_frame(int readonly)
{
    int frame = spare[--spares];
    if (!arg.persistent)
        grant(frame, readonly);
    return frame;
}

static void give_frame(int frame)
{
    if (!arg.persistent)
        end_grant(frame);
    spare[spares++] = frame;
}

static void wait_for_event(void)
{
    if (!upcall_came())
        die("no event; %d requests are out, req_prod %u rsp_prod %u", out, ring.sring->req_prod, ring.sring->rsp_prod);
    clear_event(arg.port);
}

/* -- what is in a sector: 63 words that follow from its number, and their sum */
static void fill_sector(uint64_t *words, uint64_t sector)
{
    uint64_t sum = 0;
    for (int i = 0; i < WORDS - 1; i++)
        sum += words[i] = (sector * WORDS + i) * 0x9e3779b97f4a7c15ull;
    words[WORDS - 1] = sum;
}

static void check_sector(const uint64_t *words, uint64_t sector)
{
    uint64_t wanted[WORDS];
    fill_sector(wanted, sector);
    if (memcmp(words, wanted, SECTOR))
        die("sector %llu is wrong: it begins with %#llx, not %#llx", (unsigned long long)sector,
            (unsigned long long)words[0], (unsigned long long)wanted[0]);
}

static uint64_t *sector_at(const struct request *r, int segment, int sector)
{
    return (uint64_t *)(frame_at(r->frame[segment]) + sector * SECTOR);
}

static void each_sector(struct request *r, void (*fn)(uint64_t *, uint64_t))
{
    uint64_t sector = r->sector;
    for (int i = 0; i < r->count; i++)
        for (int s = r->first[i]; s <= r->last[i]; s++)
            fn(sector_at(r, i, s), sector++);
}

static void check_const(uint64_t *words, uint64_t sector) { check_sector(words, sector); }

/* -- requests */
static struct request *new_request(uint8_t op, uint64_t sector, int expect)
{
    struct request *r = requests;
    while (r->busy)
        r++;
    *r = (struct request){.busy = 1, .expect = expect, .op = op, .sector = sector, .indirect = -1};
    r->id = (uint64_t)(r - requests) << 40 | ++sent | 0xa5ull << 56;
    out++;
    return r;
}

/* Segments for up to `left` sectors; most begin or end within their page. The sectors they hold. */
static uint64_t cut(struct request *r, uint64_t left)
{
    uint64_t sectors = 0;
    int whole = random64() % 4 == 0, most = arg.segments;
    while (left && r->count < most) {
        int first = whole ? 0 : random64() % 8, length = whole ? 8 : 1 + random64() % (8 - first);
        if ((uint64_t)length > left)
            length = left;
        r->frame[r->count] = take_frame(r->op == BLKIF_OP_WRITE);
        r->first[r->count] = first;
        r->last[r->count++] = first + length - 1;
        sectors += length;
        left -= length;
    }
    return sectors;
}

static void put(struct request *r)
{
    blkif_request_t *slot = RING_GET_REQUEST(&ring, ring.req_prod_pvt);
    struct blkif_request_segment direct[BLKIF_MAX_SEGMENTS_PER_REQUEST], *segments = direct;
    if (r->count > BLKIF_MAX_SEGMENTS_PER_REQUEST) {
        r->indirect = take_frame(1);
        segments = (struct blkif_request_segment *)frame_at(r->indirect);
    }
    for (int i = 0; i < r->count; i++)
        segments[i] = (struct blkif_request_segment){gref_of(r->frame[i]), r->first[i], r->last[i]};
    memset(slot, 0xee, sizeof *slot);
    if (r->indirect >= 0) {
        blkif_request_indirect_t *in = (blkif_request_indirect_t *)slot;
        in->operation = BLKIF_OP_INDIRECT;
        in->indirect_op = r->op;
        in->nr_segments = r->count;
        in->id = r->id;
        in->sector_number = r->sector;
        in->indirect_grefs[0] = gref_of(r->indirect);
    } else {
        slot->operation = r->op;
        slot->nr_segments = r->count;
        slot->id = r->id;
        slot->sector_number = r->sector;
        memcpy(slot->seg, direct, sizeof *direct * r->count);
    }
    ring.req_prod_pvt++;
}

static void put_discard(uint64_t sector, uint64_t count)
{
    blkif_request_discard_t *slot = (blkif_request_discard_t *)RING_GET_REQUEST(&ring, ring.req_prod_pvt);
    struct request *r = new_request(BLKIF_OP_DISCARD, sector, BLKIF_RSP_OKAY);
    *slot = (blkif_request_discard_t){.operation = BLKIF_OP_DISCARD, .id = r->id, .sector_number = sector, .nr_sectors = count};
    ring.req_prod_pvt++;
}

static void push(void)
{
    int notify;
    RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&ring, notify);
    if (notify)
        send_event(arg.port);
}

static void answered(const blkif_response_t *response)
{
    struct request *r = &requests[response->id >> 40 & 0xffff];
    unsigned long bytes = 0;
    if ((response->id >> 40 & 0xffff) >= MAX_REQUESTS || !r->busy || r->id != response->id)
        die("a response to %#llx, which is not out", (unsigned long long)response->id);
    if (response->operation != (r->indirect >= 0 ? BLKIF_OP_INDIRECT : r->op))
        die("the response says operation %u, the request %u", response->operation, r->op);
    if (response->status != r->expect)
        die("operation %u of %d segments at %llu: status %d, not %d", r->op, r->count, (unsigned long long)r->sector,
            response->status, r->expect);
    for (int i = 0; i < r->count; i++)
        bytes += (r->last[i] - r->first[i] + 1) * SECTOR;
    if (r->expect != BLKIF_RSP_OKAY)
        refused++;
    else if (r->op == BLKIF_OP_READ)
        each_sector(r, check_const), read_back += bytes;
    else
        written += bytes;
    for (int i = 0; i < r->count; i++)
        give_frame(r->frame[i]);
    if (r->indirect >= 0)
        give_frame(r->indirect);
    r->busy = 0;
    out--;
}

/* Take responses until there is room for one more request (or none is out any more, with `all`). */
static void drain(int all)
{
    int more;
    push();
    for (;;) {
        do {
            RING_IDX prod = ring.sring->rsp_prod;
            xen_rmb();
            while (ring.rsp_cons != prod) {
                blkif_response_t response;
                RING_COPY_RESPONSE(&ring, ring.rsp_cons, &response);
                ring.rsp_cons++;
                answered(&response);
            }
            RING_FINAL_CHECK_FOR_RESPONSES(&ring, more);
        } while (more);
        if (all ? !out : !RING_FULL(&ring) && spares > MAX_SEGMENTS)
            return;
        wait_for_event();
    }
}

static void room(void)
{
    if (RING_FULL(&ring) || spares <= MAX_SEGMENTS)
        drain(0);
    else if (random64() % 8 == 0)
        push();
}

static uint64_t some_size(uint64_t left)
{
    uint64_t most = arg.segments * 8, size;
    switch (random64() % 4) {
    case 0: size = 1; break;
    case 1: size = 1 + random64() % 16; break;
    case 2: size = 1 + random64() % most; break;
    default: size = most;
    }
    return size < left ? size : left;
}

static void write_all(int expect)
{
    for (uint64_t sector = 0; sector < arg.sectors;) {
        room();
        struct request *r = new_request(BLKIF_OP_WRITE, sector, expect);
        uint64_t count = cut(r, some_size(arg.sectors - sector));
        each_sector(r, fill_sector);
        put(r);
        sector += count;
        if (random64() % 64 == 0) {
            room();
            put(new_request(BLKIF_OP_FLUSH_DISKCACHE, 0, BLKIF_RSP_OKAY));
        }
    }
    drain(1);
}

static void clear_sector(uint64_t *words, uint64_t sector)
{
    memset(words, 0xcc, SECTOR);
    (void)sector;
}

static void read_all(void)
{
    for (uint64_t end = arg.sectors; end;) {
        room();
        uint64_t want = some_size(end);
        struct request *r = new_request(BLKIF_OP_READ, end - want, BLKIF_RSP_OKAY);
        uint64_t count = cut(r, want);
        r->sector = end - count;
        each_sector(r, clear_sector);
        put(r);
        end -= count;
    }
    drain(1);
}

/* -- start */
static void make_ring(int memory_fd)
{
    size_t size = (size_t)PAGE << arg.order;
    uint8_t *at = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    printf("grefs");
    for (int i = 0; i < 1 << arg.order; i++) {
        int frame = FIRST_FRAME + (1 << arg.order) - 1 - i; /* not side by side in the domain's memory */
        if (mmap(at + i * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory_fd, (off_t)frame * PAGE) == MAP_FAILED)
            die("mmap: %s", strerror(errno));
        grant(frame, 0);
        printf(" %u", gref_of(frame));
    }
    printf("\n");
    fflush(stdout);
    blkif_sring_t *sring = (blkif_sring_t *)at;
    SHARED_RING_INIT(sring);
    FRONT_RING_INIT(&ring, sring, size);
}

int main(int argc, char **argv)
{
    const struct argument own[] = {
        {"mode", &arg.mode, 0}, {"port", 0, &arg.port}, {"order", 0, &arg.order}, {"segments", 0, &arg.segments},
        {"persistent", 0, &arg.persistent}, {"sectors", 0, &arg.sectors},
    };
    parse(argc, argv, own, sizeof own / sizeof *own);
    enter();
    make_ring(open(domain.memory_path, O_RDWR));
    for (int i = 0; i < POOL; i++) {
        spare[spares++] = FIRST_FRAME + MAX_PAGES + i;
        if (arg.persistent)
            grant(FIRST_FRAME + MAX_PAGES + i, 0);
    }
    expect("connected");
    if (!strcmp(arg.mode, "ro")) {
        read_all();
        write_all(BLKIF_RSP_ERROR);
    } else {
        write_all(BLKIF_RSP_OKAY);
        put(new_request(BLKIF_OP_FLUSH_DISKCACHE, 0, BLKIF_RSP_OKAY));
        drain(1);
        read_all();
        put_discard(arg.sectors / 2, 64);
        drain(1);
    }
    printf("requests %lu written %lu read %lu refused %lu notified %lu\n", sent, written, read_back, refused, domain.notified);
    return 0;
}
