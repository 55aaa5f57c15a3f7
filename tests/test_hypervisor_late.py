"""What a process asked before it died, and the hypervisor hears after its burial: step by step."""
import os
import select
import subprocess

import msgpack
import zmq
from dom0 import runtime_directory

from miniguest.ring.abi.event_channel import EVTCHNSTAT_closed, EVTCHNSTAT_unbound
from miniguest.ring.hypercalls import socket_path
from miniguest.ring.hypervisor.server import Server

ALLOC = {"op": "evtchn_alloc_unbound", "args": {"domid": 0, "vcpu": 1, "remote_domid": 0}}


def test_a_dead_process_changes_nothing() -> None:
    """Neither takes a port that nobody would close, nor closes one that was its own and is another's now."""
    with runtime_directory() as runtime:
        server = Server(runtime, os.getpid())
        context = zmq.Context.instance()
        mine, its = (context.socket(zmq.DEALER) for _ in range(2))

        def serve() -> None:
            assert server._socket.poll(30_000)
            server._serve()

        def ask(socket: "zmq.Socket[bytes]", message: object) -> object:
            socket.send_multipart([b"", msgpack.packb(message)])
            serve()
            return msgpack.unpackb(socket.recv_multipart()[1])["result"]

        try:
            for socket in (mine, its):
                socket.linger = 0
                socket.connect(f"ipc://{socket_path(runtime)}")
            ask(mine, {"op": "create_domain", "args": {"domid": 0, "name": "d", "ram_frames": 16}})
            dying = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
            ask(its, {"op": "register", "args": {"domid": 0, "vcpu": 1, "pid": dying.pid, "name": "dying"}})
            port = ask(its, ALLOC)
            (death,) = set(server._deaths) - {min(server._deaths)}
            dying.kill()
            assert select.select([death], [], [], 30)[0]
            server._bury_dead([death])
            dying.communicate()
            status = {"op": "evtchn_status", "args": {"domid": 0, "port": port}}
            assert ask(mine, status)[0] == EVTCHNSTAT_closed        # type: ignore[index]
            assert ask(mine, {**ALLOC, "args": {**ALLOC["args"], "vcpu": 2}}) == port     # type: ignore[dict-item]
            for late in ({"op": "evtchn_close", "args": {"domid": 0, "port": port}}, ALLOC):
                its.send_multipart([b"", msgpack.packb(late)])
                serve()
            assert ask(mine, status) == [EVTCHNSTAT_unbound, 2, 0, 0]
            assert len(server.operations.channels.of_vcpu(0, 1)) == 0
        finally:
            mine.close()
            its.close()
            server.close()
