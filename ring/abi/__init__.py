"""Xen's public headers, one module each: the layouts as plain tables, the constants under the headers' own names."""
