# Atomics, fences, clocks and the few system calls the core makes. Names say width; orders are in the C below.
cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE 1
    #endif
    #include <errno.h>
    #include <poll.h>
    #include <sched.h>
    #include <stdint.h>
    #include <sys/mman.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>
    static inline uint8_t ld8(uint8_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline uint32_t ld32(uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline uint64_t ld64(uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void st8(uint8_t *p, uint8_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline void st32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline void st64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline uint8_t xchg8(uint8_t *p, uint8_t v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
    static inline uint64_t xchg64(uint64_t *p, uint64_t v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
    static inline uint64_t or64(uint64_t *p, uint64_t v) { return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); }
    static inline uint64_t and64(uint64_t *p, uint64_t v) { return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST); }
    static inline uint32_t add32(uint32_t *p, uint32_t v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
    static inline int cas8(uint8_t *p, uint8_t *old, uint8_t v)
    { return __atomic_compare_exchange_n(p, old, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE); }
    static inline int cas16(uint16_t *p, uint16_t *old, uint16_t v)
    { return __atomic_compare_exchange_n(p, old, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE); }
    static inline int cas32(uint32_t *p, uint32_t *old, uint32_t v)
    { return __atomic_compare_exchange_n(p, old, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE); }
    static inline int cas64(uint64_t *p, uint64_t *old, uint64_t v)
    { return __atomic_compare_exchange_n(p, old, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE); }
    static inline void mb(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    static inline void cpu_pause(void) { __builtin_ia32_pause(); }
    static inline void cpu_yield(void) { sched_yield(); }
    static inline int lowest(uint64_t v) { return __builtin_ctzll(v); }
    static inline uint64_t monotonic_ns(void)
    { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000ull + t.tv_nsec; }
    /* bit 0: first descriptor readable, bit 1: second; 0 on a timeout or a signal */
    static int poll_two(int first, int second, int64_t timeout_ns) {
        struct pollfd f[2] = {{first, POLLIN, 0}, {second, POLLIN, 0}};
        struct timespec t = {timeout_ns / 1000000000, timeout_ns % 1000000000};
        if (ppoll(f, 2, timeout_ns < 0 ? 0 : &t, 0) <= 0) return 0;
        return (f[0].revents ? 1 : 0) | (f[1].revents ? 2 : 0);
    }
    static void *reserve(size_t n)
    { return mmap(0, n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); }
    static int map_over(void *at, size_t n, int fd, int64_t offset, int writable)
    { return mmap(at, n, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED | MAP_FIXED, fd, offset) == MAP_FAILED; }
    """
    struct iovec:
        void *iov_base
        size_t iov_len
    uint8_t ld8(uint8_t *) noexcept nogil
    uint32_t ld32(uint32_t *) noexcept nogil
    uint64_t ld64(uint64_t *) noexcept nogil
    void st8(uint8_t *, uint8_t) noexcept nogil
    void st32(uint32_t *, uint32_t) noexcept nogil
    void st64(uint64_t *, uint64_t) noexcept nogil
    uint8_t xchg8(uint8_t *, uint8_t) noexcept nogil
    uint64_t xchg64(uint64_t *, uint64_t) noexcept nogil
    uint64_t or64(uint64_t *, uint64_t) noexcept nogil
    uint64_t and64(uint64_t *, uint64_t) noexcept nogil
    uint32_t add32(uint32_t *, uint32_t) noexcept nogil
    bint cas8(uint8_t *, uint8_t *, uint8_t) noexcept nogil
    bint cas16(uint16_t *, uint16_t *, uint16_t) noexcept nogil
    bint cas32(uint32_t *, uint32_t *, uint32_t) noexcept nogil
    bint cas64(uint64_t *, uint64_t *, uint64_t) noexcept nogil
    void mb() noexcept nogil
    void cpu_pause() noexcept nogil
    void cpu_yield() noexcept nogil
    int lowest(uint64_t) noexcept nogil
    uint64_t monotonic_ns() noexcept nogil
    int poll_two(int, int, int64_t) noexcept nogil
    void *reserve(size_t) noexcept nogil
    bint map_over(void *, size_t, int, int64_t, bint) noexcept nogil
    int munmap(void *, size_t) noexcept nogil
    ssize_t preadv(int, const iovec *, int, off_t) noexcept nogil
    ssize_t pwritev(int, const iovec *, int, off_t) noexcept nogil
