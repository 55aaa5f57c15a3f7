"""Hypercalls that are not hot: msgpack over a zmq socket to the hypervisor process.

Request: {"op": name, "args": {...}}; reply: {"result": value} or {"error": errno name, "message": text}. Several in one are
{"op": "multicall", "args": {"calls": [[name, {...}], ...]}} (xen.h, HYPERVISOR_multicall); the result is a list of replies.
"""
from pathlib import Path
from typing import Any, Final

import msgpack
import zmq

from miniguest.ring.errors import HypercallError

TIMEOUT_MS: Final = 10_000
MULTICALL: Final = "multicall"
Call = tuple[str, dict[str, Any]]       # a hypercall and its arguments


def socket_path(runtime: Path) -> Path:
    """The hypervisor's socket in the runtime directory."""
    return runtime / "hypervisor.sock"


class Hypercalls:
    """A connection to the hypervisor. Calls block until it answers."""

    def __init__(self, runtime: Path) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._path = socket_path(runtime)
        self._socket = self._connect()

    def _connect(self) -> "zmq.Socket[bytes]":
        socket = self.context.socket(zmq.REQ)
        socket.linger = 0
        socket.rcvtimeo = TIMEOUT_MS
        socket.connect(f"ipc://{self._path}")
        return socket

    def call(self, op: str, **args: Any) -> Any:
        """The result of hypercall `op`. HypercallError with the hypervisor's errno name, or ETIMEDOUT when it is gone."""
        self._socket.send(msgpack.packb({"op": op, "args": args}))
        try:
            reply = msgpack.unpackb(self._socket.recv(), strict_map_key=False)     # vCPUs by number, in domain_info
        except zmq.Again:
            # A REQ socket sends nothing more before its reply came, which would then answer the wrong call.
            self._socket.close()
            self._socket = self._connect()
            raise HypercallError("ETIMEDOUT", f"{op}: the hypervisor does not answer") from None
        return _result(op, reply)

    def multicall(self, *calls: Call) -> list[Any]:
        """The results of several hypercalls, done in order and in one go. All are tried; then the first error is raised."""
        replies = self.call(MULTICALL, calls=calls)
        return [_result(op, reply) for (op, _), reply in zip(calls, replies, strict=True)]

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def _result(op: str, reply: dict[str, Any]) -> Any:
    if "error" in reply:
        raise HypercallError(reply["error"], f"{op}: {reply.get('message', '')}")
    return reply["result"]
