"""Rings of Xen's own macros (xen/io/ring.h), compiled when first needed: the other end for tests of ours."""
import ctypes
import functools
import subprocess
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path

SOURCE = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#define __XEN_INTERFACE_VERSION__ 0x00040700
#define xen_mb()  __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define xen_rmb() __atomic_thread_fence(__ATOMIC_ACQUIRE)
#define xen_wmb() __atomic_thread_fence(__ATOMIC_RELEASE)
#include <xen/io/ring.h>

#define RING(name, req_words, rsp_words)                                                                       \
struct name##_req { uint32_t w[req_words]; };                                                                  \
struct name##_rsp { uint32_t w[rsp_words]; };                                                                  \
DEFINE_RING_TYPES(name, struct name##_req, struct name##_rsp);                                                 \
void name##_share(name##_sring_t *s, RING_IDX i) {                                                             \
    SHARED_RING_INIT(s);                                                                                       \
    s->req_prod = s->rsp_prod = i;                                                                             \
    s->req_event = s->rsp_event = i + 1;                                                                       \
}                                                                                                              \
void *name##_front(name##_sring_t *s, RING_IDX i, unsigned size) {                                             \
    name##_front_ring_t *f = malloc(sizeof *f);                                                                \
    FRONT_RING_ATTACH(f, s, i, size);                                                                          \
    return f;                                                                                                  \
}                                                                                                              \
void *name##_back(name##_sring_t *s, RING_IDX i, unsigned size) {                                              \
    name##_back_ring_t *b = malloc(sizeof *b);                                                                 \
    BACK_RING_ATTACH(b, s, i, size);                                                                           \
    return b;                                                                                                  \
}                                                                                                              \
unsigned name##_slots(name##_front_ring_t *f) { return RING_SIZE(f); }                                         \
unsigned name##_free(name##_front_ring_t *f) { return RING_FREE_REQUESTS(f); }                                 \
unsigned name##_front_put(name##_front_ring_t *f, struct name##_req *from, unsigned count) {                   \
    unsigned n = 0;                                                                                            \
    for (; n < count && !RING_FULL(f); n++)                                                                    \
        *RING_GET_REQUEST(f, f->req_prod_pvt++) = from[n];                                                     \
    return n;                                                                                                  \
}                                                                                                              \
int name##_front_push(name##_front_ring_t *f) {                                                                \
    int notify;                                                                                                \
    RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(f, notify);                                                            \
    return notify;                                                                                             \
}                                                                                                              \
unsigned name##_front_take(name##_front_ring_t *f, struct name##_rsp *to, unsigned limit) {                    \
    RING_IDX prod = f->sring->rsp_prod;                                                                        \
    unsigned n = 0;                                                                                            \
    xen_rmb();                                                                                                 \
    while (n < limit && f->rsp_cons != prod) {                                                                 \
        RING_COPY_RESPONSE(f, f->rsp_cons, &to[n]);                                                            \
        n++, f->rsp_cons++;                                                                                    \
    }                                                                                                          \
    return n;                                                                                                  \
}                                                                                                              \
int name##_front_final_check(name##_front_ring_t *f) {                                                         \
    int more;                                                                                                  \
    RING_FINAL_CHECK_FOR_RESPONSES(f, more);                                                                   \
    return more != 0;                                                                                          \
}                                                                                                              \
unsigned name##_back_take(name##_back_ring_t *b, struct name##_req *to, unsigned limit) {                      \
    RING_IDX prod = b->sring->req_prod;                                                                        \
    unsigned n = 0;                                                                                            \
    xen_rmb();                                                                                                 \
    while (n < limit && b->req_cons != prod && !RING_REQUEST_CONS_OVERFLOW(b, b->req_cons)) {                  \
        RING_COPY_REQUEST(b, b->req_cons, &to[n]);                                                             \
        n++, b->req_cons++;                                                                                    \
    }                                                                                                          \
    return n;                                                                                                  \
}                                                                                                              \
void name##_back_put(name##_back_ring_t *b, struct name##_rsp *from, unsigned count) {                         \
    for (unsigned n = 0; n < count; n++)                                                                       \
        *RING_GET_RESPONSE(b, b->rsp_prod_pvt++) = from[n];                                                    \
}                                                                                                              \
int name##_back_push(name##_back_ring_t *b) {                                                                  \
    int notify;                                                                                                \
    RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(b, notify);                                                           \
    return notify;                                                                                             \
}                                                                                                              \
int name##_back_final_check(name##_back_ring_t *b) {                                                           \
    int more;                                                                                                  \
    RING_FINAL_CHECK_FOR_REQUESTS(b, more);                                                                    \
    return more != 0;                                                                                          \
}                                                                                                              \
int name##_bad_requests(name##_back_ring_t *b) { return RING_REQUEST_PROD_OVERFLOW(b, b->sring->req_prod); }   \
int name##_bad_responses(name##_front_ring_t *f) { return RING_RESPONSE_PROD_OVERFLOW(f, f->sring->rsp_prod); }

RING(blkif, 28, 4)
RING(netif_tx, 3, 1)
RING(netif_rx, 2, 2)
"""
SIZES = {"blkif": (112, 16), "netif_tx": (12, 4), "netif_rx": (8, 8)}


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled macros. The file is not needed once it is loaded."""
    with tempfile.TemporaryDirectory() as directory:
        source, output = Path(directory, "ring.c"), Path(directory, "ring.so")
        source.write_text(SOURCE)
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", output, source], check=True)
        loaded = ctypes.CDLL(str(output))
    for name in SIZES:
        for end in ("front", "back"):
            function = getattr(loaded, f"{name}_{end}")
            function.restype = ctypes.c_void_p
    return loaded


class _End(ABC):
    def __init__(self, kind: str, end: str, page: memoryview, index: int) -> None:
        self._kind, self._end = kind, end
        self._page = (ctypes.c_char * len(page)).from_buffer(page)      # keeps the mapping alive
        self._ring = ctypes.c_void_p(getattr(library(), f"{kind}_{end}")(
            ctypes.byref(self._page), ctypes.c_uint32(index), len(page)))
        self.req_size, self.rsp_size = SIZES[kind]

    def _call(self, name: str, *args: object) -> int:
        return int(getattr(library(), f"{self._kind}_{name}")(self._ring, *args))

    def push(self) -> bool:
        return bool(self._call(f"{self._end}_push"))

    def final_check(self) -> bool:
        return bool(self._call(f"{self._end}_final_check"))

    def put_and_push(self, entries: bytes) -> bool:
        """What ours do in one call."""
        self.put(entries)
        return self.push()

    @abstractmethod
    def put(self, entries: bytes) -> object:
        """See the ends."""


class XenFront(_End):
    """The frontend's end, as our FrontRing but for bytes in and out."""

    def __init__(self, kind: str, page: memoryview, index: int, attach: bool = False) -> None:
        super().__init__(kind, "front", page, index)
        if not attach:
            getattr(library(), f"{kind}_share")(ctypes.byref(self._page), ctypes.c_uint32(index))

    @property
    def slots(self) -> int:
        return self._call("slots")

    @property
    def free(self) -> int:
        return self._call("free")

    def put(self, requests: bytes) -> int:
        return self._call("front_put", ctypes.c_char_p(requests), len(requests) // self.req_size)

    def take(self, limit: int = 1 << 20) -> bytes:
        out = ctypes.create_string_buffer(self.slots * self.rsp_size)
        count = self._call("front_take", out, limit)
        return out.raw[: count * self.rsp_size]

    @property
    def lied_to(self) -> bool:
        return bool(self._call("bad_responses"))


class XenBack(_End):
    """The backend's end."""

    def __init__(self, kind: str, page: memoryview, index: int) -> None:
        super().__init__(kind, "back", page, index)
        self._room = len(page)

    def take(self, limit: int) -> bytes:
        out = ctypes.create_string_buffer(self._room)
        count = self._call("back_take", out, limit)
        return out.raw[: count * self.req_size]

    def put(self, responses: bytes) -> None:
        getattr(library(), f"{self._kind}_back_put")(
            self._ring, ctypes.c_char_p(responses), len(responses) // self.rsp_size)

    @property
    def lied_to(self) -> bool:
        return bool(self._call("bad_requests"))
