"""What any two processes share: memory, grants, event channels, rings, hypercalls and the layouts of Xen's headers.

Imports nothing of the other three packages.
"""
