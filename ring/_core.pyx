# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, binding=False, embedsignature=True
"""The compiled core: atomics, shared rings, event channel bits, the adaptive wait, grant bits, ioreq slots, exit counters.

Everything here works on memory that another process may write at the same time. Layouts are Xen's public headers;
each class names the one it follows. All index masking and every memory barrier of the project is in this file.
"""
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer, Py_buffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.errno cimport EINTR, errno
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove, memset
from posix.types cimport off_t

import mmap

from miniguest.ring.errors import RingError

include "_atomics.pxi"
include "_checksum.pxi"
include "_memory.pxi"
include "_ioreq.pxi"
include "_bufioreq.pxi"
include "_rings.pxi"
include "_streams.pxi"
include "_events.pxi"
include "_exits.pxi"
include "_ioreq_server.pxi"
include "_grants.pxi"
include "_blkslots.pxi"
include "_blkio.pxi"
include "_blkback.pxi"
include "_blkfront.pxi"
include "_blkbatch.pxi"
include "_netpages.pxi"
include "_nettransmit.pxi"
include "_netbatch.pxi"
include "_netreceive.pxi"
include "_netpacket.pxi"
include "_segment.pxi"
include "_netstatic.pxi"
include "_vif.pxi"
include "_viftransmit.pxi"
include "_netback.pxi"
include "_uplink.pxi"
include "_macs.pxi"
include "_forward.pxi"
include "_switch.pxi"
