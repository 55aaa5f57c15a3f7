/* A domain's own side of Xen, of Xen's own headers: its memory is a file.
 *
 * Frames are granted by writing grant_entry_v1, events are sent by setting bits of dom0's shared_info. The xenstore part
 * of a handshake is whoever runs the program, and tells it by arguments NAME=VALUE where everything is. To be included
 * before any of xen/io: the barriers that ring.h wants are made here.
 */
#ifndef XEN_DOMAIN_H
#define XEN_DOMAIN_H

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

enum {
    PAGE = 4096,
    FIRST_FRAME = 1,
    FIRST_GREF = GNTTAB_NR_RESERVED_ENTRIES,
    PATIENCE_MS = 30000, /* a watchdog: nothing is known to be that slow */
};

/* What a domain knows: where things are, as it was told, and what it has mapped of them. */
static struct {
    const char *memory_path, *dom0_memory_path, *channels_path, *dom0_channels_path, *bell_path, *bells_path;
    unsigned long shared_info_frame, dom0_shared_info_frame, grants_frame;

    uint8_t *memory;
    grant_entry_v1_t *grants;
    struct shared_info *shared_info, *dom0_shared_info;
    uint64_t *channels, *dom0_channels;
    int bell;
    unsigned long notified; /* how often it notified dom0 */
} domain;

static void die(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
    exit(1);
}

static uint64_t random64(void)
{
    static uint64_t state = 0x243f6a8885a308d3ull;
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

/* -- who runs it: arguments, and lines on standard input */
struct argument {
    const char *name;
    const char **text; /* where its value goes, or */
    unsigned long *number;
};

static void set_argument(const struct argument *argument, const char *value)
{
    if (argument->text)
        *argument->text = value;
    else
        *argument->number = strtoul(value, NULL, 10);
}

/* Every domain's arguments, and `count` of this program's own. */
static void parse(int argc, char **argv, const struct argument *own, size_t count)
{
    const struct argument common[] = {
        {"memory", &domain.memory_path, 0}, {"dom0-memory", &domain.dom0_memory_path, 0},
        {"channels", &domain.channels_path, 0}, {"dom0-channels", &domain.dom0_channels_path, 0},
        {"bell", &domain.bell_path, 0}, {"bells", &domain.bells_path, 0}, {"shared-info", 0, &domain.shared_info_frame},
        {"dom0-shared-info", 0, &domain.dom0_shared_info_frame}, {"grants", 0, &domain.grants_frame},
    };
    const size_t commons = sizeof common / sizeof *common;
    for (int i = 1; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        size_t n = 0;
        if (!value)
            die("what is %s?", argv[i]);
        *value++ = 0;
        while (n < commons + count && strcmp(n < commons ? common[n].name : own[n - commons].name, argv[i]))
            n++;
        if (n == commons + count)
            die("what is %s?", argv[i]);
        set_argument(n < commons ? &common[n] : &own[n - commons], value);
    }
}

static void expect(const char *word)
{
    char line[32];
    size_t length = strlen(word);
    if (!fgets(line, sizeof line, stdin) || strncmp(line, word, length) || strcmp(line + length, "\n"))
        die("not %s", word);
}

/* -- memory */
static void *map(const char *path)
{
    struct stat st;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st))
        die("%s: %s", path, strerror(errno));
    void *at = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        die("%s: %s", path, strerror(errno));
    close(fd);
    return at;
}

static uint8_t *frame_at(int frame) { return domain.memory + (size_t)frame * PAGE; }

/* Map what the arguments name; events are masked until somebody waits for one. */
static void enter(void)
{
    domain.memory = map(domain.memory_path);
    domain.grants = (grant_entry_v1_t *)frame_at(domain.grants_frame);
    domain.shared_info = (struct shared_info *)frame_at(domain.shared_info_frame);
    uint8_t *dom0_memory = map(domain.dom0_memory_path);
    domain.dom0_shared_info = (struct shared_info *)(dom0_memory + domain.dom0_shared_info_frame * PAGE);
    domain.channels = map(domain.channels_path);
    domain.dom0_channels = map(domain.dom0_channels_path);
    if ((mkfifo(domain.bell_path, 0600) && errno != EEXIST) || (domain.bell = open(domain.bell_path, O_RDWR | O_NONBLOCK)) < 0)
        die("%s: %s", domain.bell_path, strerror(errno));
    domain.shared_info->vcpu_info[0].evtchn_upcall_mask = 1;
}

/* -- grants */
static grant_ref_t gref_of(int frame) { return FIRST_GREF + frame - FIRST_FRAME; }

static void grant(int frame, int readonly)
{
    grant_entry_v1_t *entry = &domain.grants[gref_of(frame)];
    entry->domid = 0;
    entry->frame = frame;
    xen_wmb();
    entry->flags = GTF_permit_access | (readonly ? GTF_readonly : 0);
}

static void end_grant(int frame)
{
    uint16_t *flags = &domain.grants[gref_of(frame)].flags, old = *flags;
    do {
        if (old & (GTF_reading | GTF_writing))
            die("frame %d is still mapped after its request was answered", frame);
    } while (!__atomic_compare_exchange_n(flags, &old, 0, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
}

/* -- events: the 2-level ABI of xen.h */
static void ring_bell(unsigned vcpu)
{
    char path[512];
    snprintf(path, sizeof path, "%s%u", domain.bells_path, vcpu);
    int fd = open(path, O_WRONLY | O_NONBLOCK);
    if (fd < 0 || (write(fd, "", 1) != 1 && errno != EAGAIN))
        die("%s: %s", path, strerror(errno));
    close(fd);
}

static void send_event(unsigned long local)
{
    uint64_t mine = __atomic_load_n(&domain.channels[local], __ATOMIC_ACQUIRE);
    unsigned port = mine >> 32, vcpu = (domain.dom0_channels[port] >> 8) & 0xff;
    unsigned long bit = 1ul << (port & 63);
    struct shared_info *dom0 = domain.dom0_shared_info;
    domain.notified++;
    if ((mine & 0xff) != EVTCHNSTAT_interdomain) /* the backend died: its successor looks at the ring unasked */
        return;
    if (__atomic_fetch_or(&dom0->evtchn_pending[port / 64], bit, __ATOMIC_SEQ_CST) & bit)
        return;
    if (dom0->evtchn_mask[port / 64] & bit)
        return;
    struct vcpu_info *info = &dom0->vcpu_info[vcpu];
    __atomic_fetch_or(&info->evtchn_pending_sel, 1ul << (port / 64), __ATOMIC_SEQ_CST);
    __atomic_exchange_n(&info->evtchn_upcall_pending, 1, __ATOMIC_SEQ_CST);
    if (!__atomic_load_n(&info->evtchn_upcall_mask, __ATOMIC_SEQ_CST))
        ring_bell(vcpu);
}

/* Wait for an upcall; whether one came. The caller then clears its ports. */
static int upcall_came(void)
{
    struct vcpu_info *info = &domain.shared_info->vcpu_info[0];
    struct pollfd bell = {domain.bell, POLLIN, 0};
    char bytes[64];
    __atomic_store_n(&info->evtchn_upcall_mask, 0, __ATOMIC_SEQ_CST);
    xen_mb();
    if (!__atomic_load_n(&info->evtchn_upcall_pending, __ATOMIC_SEQ_CST)) {
        if (poll(&bell, 1, PATIENCE_MS) != 1)
            return 0;
        while (read(domain.bell, bytes, sizeof bytes) > 0)
            ;
    }
    __atomic_store_n(&info->evtchn_upcall_mask, 1, __ATOMIC_SEQ_CST);
    __atomic_exchange_n(&info->evtchn_upcall_pending, 0, __ATOMIC_SEQ_CST);
    __atomic_exchange_n(&info->evtchn_pending_sel, 0, __ATOMIC_SEQ_CST);
    return 1;
}

static void clear_event(unsigned long port)
{
    __atomic_fetch_and(&domain.shared_info->evtchn_pending[port / 64], ~(1ul << (port & 63)), __ATOMIC_SEQ_CST);
}

#endif
