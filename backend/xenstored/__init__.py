"""xenstored: the store every domain keeps its configuration in and finds its peers through.

`daemon.Xenstored` is the whole of it without a single file descriptor: messages in, replies and events out. `sockets`
and `pages` carry those messages, `process` is the process. The protocol is Xen's docs/misc/xenstore.txt and
docs/misc/xenstore-ring.txt; the numbers are those of io/xs_wire.h.
"""
