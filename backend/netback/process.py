"""The netback process: one of dom0's vCPUs. It finds its vifs in xenstore and serves all links in one loop."""
from collections.abc import Mapping

from miniguest.backend.directory import BackendDirectory
from miniguest.backend.netback.device import NetworkDevice
from miniguest.backend.netback.link import Link
from miniguest.backend.netback.links import LinkConfig, LinkError
from miniguest.ring.errors import UserError
from miniguest.ring.process import Process
from miniguest.ring.statistics import link_counters, link_statistics_path
from miniguest.ring.xenbus import Keys


def main(process: Process, links: Mapping[str, LinkConfig]) -> None:
    """Serve until the loop is stopped. links: by name, which vifs have in their `bridge` node. UserError when one
    cannot be had."""
    made: dict[str, Link] = {}
    for name, config in links.items():
        path = link_statistics_path(process.runtime, name)
        successor = path.exists()               # of a netback that was killed
        try:
            made[name] = Link(name, config, process.loop, link_counters(path), successor)
        except (LinkError, OSError) as error:
            raise UserError(f"link {name}: {error}") from None
        process.undo.callback(made[name].close)
    store = process.xenstore()

    def opened(domid: int, device: int, path: str) -> NetworkDevice:
        bridge = Keys(store, path).text("bridge")
        if bridge not in made:
            raise UserError(f"{path}/bridge: there is no link {bridge!r}")
        return NetworkDevice(process, store, domid, device, path, made[bridge])

    process.undo.callback(BackendDirectory(store, "vif", opened, process.part).close)
    process.loop.run()
