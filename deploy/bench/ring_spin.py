"""A ring between two processes that both look at it all the time: Python has every batch in its hands."""
import mmap
import time
from typing import Final

import numpy

from miniguest.deploy.bench.pair import Drive, Flag, Serve
from miniguest.deploy.stress.rings import Shape
from miniguest.ring._core import BackRing, FrontRing
from miniguest.ring.abi.layout import PAGE_SIZE

SPIN: Final = 500_000                   # ns that a take looks for entries
LOOKS: Final = 16                       # one batch in so many is checked, and the clock looked at
BLKIF_ID: Final = 8                     # io/blkif.h: u64 id at 8 in a request, at 0 in a response
NETIF_ID: Final = 8                     # io/netif.h: u16 id at 8 in a transmit request, at 0 in a response
