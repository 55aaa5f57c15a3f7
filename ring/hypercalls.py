"""Hypercalls that are not hot: msgpack over a zmq socket to the hypervisor process.

Request: {"op": name, "args": {...}}; reply: {"result": value} or {"error": errno name, "message": text}.
"""
from pathlib import Path
from typing import Any, Final

import msgpack
import zmq

from miniguest.ring.errors import HypercallError

TIMEOUT_MS: Final = 10_000


def socket_path(runtime: Path) -> Path:
    """The hypervisor's socket in the runtime directory."""
    return runtime / "hypervisor.sock"


class Hypercalls:
    """A connection to the hypervisor. Calls block until it answers."""

    def __init__(self, runtime: Path) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._socket = self.context.socket(zmq.REQ)
        self._socket.linger = 0
        self._socket.rcvtimeo = TIMEOUT_MS
        self._socket.connect(f"ipc://{socket_path(runtime)}")

    def call(self, op: str, **args: Any) -> Any:
        """The result of hypercall `op`. HypercallError with the hypervisor's errno name, or ETIMEDOUT when it is gone."""
        self._socket.send(msgpack.packb({"op": op, "args": args}))
        try:
            reply = msgpack.unpackb(self._socket.recv())
        except zmq.Again:
            raise HypercallError("ETIMEDOUT", f"{op}: the hypervisor does not answer") from None
        if "error" in reply:
            raise HypercallError(reply["error"], f"{op}: {reply.get('message', '')}")
        return reply["result"]

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()
