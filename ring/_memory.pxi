# Buffers bound once, and frames of a memory file mapped side by side.
cdef enum:
    PAGE = 4096
    SLOTS_OFFSET = 64          # io/ring.h: the slots follow a 64-byte header


cdef class Shared:
    """A buffer bound once: its address stays valid while this object lives."""
    cdef Py_buffer view
    cdef uint8_t *at
    cdef readonly Py_ssize_t size

    def __cinit__(self, buffer, *args, **kwargs):
        PyObject_GetBuffer(buffer, &self.view, PyBUF_WRITABLE)
        self.at = <uint8_t *>self.view.buf
        self.size = self.view.len

    def __dealloc__(self):
        PyBuffer_Release(&self.view)


cdef class Frames:
    """Frames of a memory file mapped side by side: frame numbers in any order, one contiguous writable buffer.

    `numbers` are frame numbers in the file open at `fd`. OSError when the kernel refuses the mapping.
    """
    cdef void *at
    cdef Py_ssize_t length
    cdef bint writable

    def __cinit__(self, int fd, numbers, bint writable=True):
        cdef Py_ssize_t i = 0
        self.length = len(numbers) * PAGE
        self.writable = writable
        if self.length == 0:
            raise ValueError("no frames to map")
        self.at = reserve(self.length)
        if self.at == <void *>-1:
            self.at = NULL
            raise OSError(errno, "cannot reserve address space")
        for number in numbers:
            if map_over(<uint8_t *>self.at + i, PAGE, fd, <int64_t>number * PAGE, writable):
                raise OSError(errno, f"cannot map frame {number}")
            i += PAGE

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if flags & PyBUF_WRITABLE and not self.writable:
            raise BufferError("mapped read-only")
        buffer.buf = self.at
        buffer.len = self.length
        buffer.itemsize = 1
        buffer.readonly = not self.writable
        buffer.format = b"B"
        buffer.ndim = 1
        buffer.shape = &self.length
        buffer.strides = &buffer.itemsize
        buffer.suboffsets = NULL
        buffer.internal = NULL
        buffer.obj = self

    def __dealloc__(self):
        if self.at != NULL:
            munmap(self.at, self.length)
