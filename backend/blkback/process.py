"""The blkback process: one of dom0's vCPUs. It finds its devices in xenstore and serves them all in one loop."""
from miniguest.backend.blkback.device import BlockDevice
from miniguest.backend.directory import BackendDirectory
from miniguest.ring.process import Process


def main(process: Process) -> None:
    """Serve until the loop is stopped."""
    store = process.xenstore()

    def opened(domid: int, device: int, path: str) -> BlockDevice:
        return BlockDevice(process, store, domid, device, path)

    # No request comes within a pause of an answer: who is to make it may wait for this core.
    process.loop.upcall.pause_ns = 0
    process.undo.callback(BackendDirectory(store, "vbd", opened, process.part).close)
    process.loop.run()
