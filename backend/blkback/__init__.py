"""blkback: serves files and block devices to blkfronts, over blkif rings (xen/io/blkif.h)."""
