"""xenstored on the ground of a stress, and the toolstack's connection to it."""
import os
from collections.abc import Callable

from miniguest.backend.xenstored import process as xenstored
from miniguest.backend.xenstored.daemon import Xenstored
from miniguest.deploy.children import Child
from miniguest.deploy.stress.workers import Workers
from miniguest.ring.process import XENSTORED_SOCKET, Process
from miniguest.ring.xenstore import SocketTransport, Xenstore


def start_store(
    ground: Workers, ended: Callable[[Process, Xenstored], None] = lambda process, daemon: None
) -> tuple[Child, Xenstore]:
    """xenstored's process, which calls `ended` when it was stopped, and a connection. StressError when it died while starting."""
    reader, writer = os.pipe()

    def store(process: Process) -> None:
        process.loop.upcall.spin_ns = 0     # the toolstack asks over the socket, which nobody looks at while spinning
        daemon = xenstored.serve(process)
        os.close(writer)
        process.loop.run()
        ended(process, daemon)

    child = ground.start("xenstored", 0, 0, store)
    os.close(writer)
    os.read(reader, 1)                      # ends when xenstored answers, or died
    os.close(reader)
    try:
        return child, Xenstore(SocketTransport(ground.runtime / XENSTORED_SOCKET))
    except OSError:
        ground.finish(0)                    # says why it died
        raise
