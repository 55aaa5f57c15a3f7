"""What miniguest's rings, exits, disks, networks, boots and guests cost, beside what could be had instead.

Every figure comes from short windows that take turns with those of its reference, on the same machine in the same
minute: the ratio of two neighbours says something where times alone do not. `command` is `miniguest bench`; each other
module named like a bench has a `measure`; `reference/` holds the C programs that show what the machine can do.
"""
