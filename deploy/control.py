"""How a topology that runs is asked for more: msgpack over a zmq socket in its runtime directory, where only its owner may go.

Request: {"op": name, ...}; reply: what the operation answers, or {"error": one line, "status": the asker's exit status}.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgpack
import zmq

from miniguest.deploy.errors import AskedInVain
from miniguest.deploy.runtime import is_live
from miniguest.ring.doorbell import EVENTS, POLLIN
from miniguest.ring.errors import MiniguestError, UserError

SOCKET: Final = "supervisor.sock"
LOOK_MS: Final = 500                    # between looks whether there is still somebody to answer
Operation = Callable[[dict[str, Any]], dict[str, Any]]


class Desk:
    """Where a supervisor is asked. `fd` is readable when there may be something to `serve`."""

    def __init__(self, runtime: Path, operations: Mapping[str, Operation]) -> None:
        self._operations = operations
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._socket = context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.bind(f"ipc://{runtime / SOCKET}")
        self.fd = int(self._socket.get(zmq.FD))

    def serve(self) -> None:
        """Answer all who asked. Whoever went away meanwhile is not missed: zmq drops what is for nobody."""
        while int(self._socket.get(EVENTS)) & POLLIN:
            sender, empty, request = ([*self._socket.recv_multipart(), b"", b""])[:3]
            self._socket.send_multipart([sender, empty, msgpack.packb(self._answer(request))])

    def _answer(self, request: bytes) -> dict[str, Any]:
        try:
            message = msgpack.unpackb(request)
            return self._operations[message["op"]](message)
        except UserError as error:
            return {"error": str(error), "status": 2}
        except AskedInVain as error:
            return {"error": str(error), "status": 1}
        except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
            return {"error": f"not understood: {error!r}", "status": 1}

    def close(self) -> None:
        """Nobody is heard any more."""
        self._socket.close()


def ask(runtime: Path, op: str, **arguments: Any) -> dict[str, Any]:
    """What the supervisor of a runtime directory answers. Waits for as long as its topology lives.

    Raises UserError or MiniguestError with what it says, or when it ends before it says anything.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    socket = context.socket(zmq.REQ)
    socket.linger = 0
    try:
        socket.connect(f"ipc://{runtime / SOCKET}")
        socket.send(msgpack.packb({"op": op, **arguments}))
        while not socket.poll(LOOK_MS):
            if not is_live(runtime):
                raise MiniguestError(f"{runtime}: the topology ended before it answered")
        reply: dict[str, Any] = msgpack.unpackb(socket.recv())
    finally:
        socket.close()
    if "error" in reply:
        raise (UserError if reply["status"] == 2 else MiniguestError)(reply["error"])
    return reply
