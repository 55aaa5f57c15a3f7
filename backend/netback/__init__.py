"""netback: links between vifs and the outside, over netif rings (xen/io/netif.h)."""
