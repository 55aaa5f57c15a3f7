"""The console backend: carries mini-guests' console pages to a terminal, a file or a pty (xen/io/console.h)."""
