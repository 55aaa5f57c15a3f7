"""The hypervisor's process: answers hypercalls, buries processes that died, and ends the topology with its supervisor."""
import contextlib
import logging
import os
import select
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgpack
import zmq

from miniguest.ring.doorbell import Bells
from miniguest.ring.errors import HypercallError, MiniguestError
from miniguest.ring.hypercalls import socket_path
from miniguest.ring.hypervisor.arguments import check_arguments
from miniguest.ring.hypervisor.operations import OPERATIONS, Operations

RETRY_MS: Final = 10                    # between looks at locks that keep the dead's grants from being released

log = logging.getLogger("hypervisor")


class Server:
    """Hypercalls in, answers out. `supervisor` is the process whose death ends everything; `report` the descriptor on
    which that is said, and `leftovers` what else is to be removed then."""

    def __init__(self, runtime: Path, supervisor: int, report: int = 2, leftovers: Sequence[Path] = ()) -> None:
        self.runtime = runtime
        self._report = report
        self._leftovers = leftovers
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self.operations = Operations(runtime, Bells(self.context, runtime))
        self.stopping = False
        self._socket = self.context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._poller = zmq.Poller()
        self._deaths: dict[int, Callable[[], None]] = {}
        self._socket.bind(f"ipc://{socket_path(runtime)}")
        self._poller.register(self._socket, zmq.POLLIN)
        self._watch(supervisor, self._orphaned)

    def _watch(self, pid: int, handler: Callable[[], None]) -> None:
        """Call `handler` once, when process `pid` ends."""
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            handler()
            return
        self._deaths[fd] = handler
        self._poller.register(fd, zmq.POLLIN)

    def stop_on(self, number: signal.Signals) -> None:
        """Stop when a signal comes. Its byte in a pipe ends the poll, which zmq resumes when only interrupted."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

        def stop(*_: object) -> None:
            self.stopping = True

        signal.signal(number, stop)
        signal.set_wakeup_fd(writer)
        self._poller.register(reader, zmq.POLLIN)

    def run(self) -> None:
        """Serve until told to stop."""
        while not self.stopping:
            ready = dict(self._poller.poll(RETRY_MS if self.operations.unreleased else None))
            self.operations.release()
            # The dead first, and looked for again: who sends a request may have seen a process end, and take its place.
            self._bury_dead()
            if self._socket in ready:
                self._serve()

    def close(self) -> None:
        """Let go of the socket, and of the processes that are watched."""
        for fd in self._deaths:
            os.close(fd)
        self._socket.close()
        self.operations.bells.close()

    def _bury_dead(self) -> None:
        poll = select.poll()
        for fd in self._deaths:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(0):
            self._poller.unregister(fd)
            os.close(fd)
            self._deaths.pop(fd)()

    def _serve(self) -> None:
        sender, empty, request = ([*self._socket.recv_multipart(), b"", b""])[:3]
        self._socket.send_multipart([sender, empty, msgpack.packb(self.answer(request))])

    def answer(self, request: bytes) -> dict[str, Any]:
        """The reply to one request, whatever its bytes say."""
        try:
            message = msgpack.unpackb(request)
            op, args = message["op"], message["args"]
            if op not in OPERATIONS:
                raise HypercallError("ENOSYS", f"no hypercall {op!r}")
            check_arguments(op, args)
            result = getattr(self.operations, op)(**args)
            if op == "register":
                pid = args["pid"]
                self._watch(pid, lambda: self._bury(pid))
            return {"result": result}
        except HypercallError as error:
            return {"error": error.code, "message": error.message}
        except MiniguestError as error:
            return {"error": "ENOSPC", "message": str(error)}
        except (ValueError, TypeError, KeyError, OverflowError, msgpack.UnpackException) as error:
            return {"error": "EINVAL", "message": str(error)}
        except OSError as error:
            return {"error": "EIO", "message": str(error)}

    def _bury(self, pid: int) -> None:
        for name in self.operations.bury(pid):
            log.info("%s (process %d) ended", name, pid)

    def _orphaned(self) -> None:
        """The supervisor died: nobody else is left to clean up."""
        log.error("the supervisor died")
        for domain in self.operations.domains.values():
            for vcpu in domain.vcpus.values():
                try:
                    os.kill(vcpu.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        for directory in (self.runtime, *self._leftovers):
            shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.write(self._report, b"miniguest: the supervisor died; the topology ended with it\n")
        self.stopping = True


def main(
    runtime: Path, supervisor: int, ready: Callable[[], None], report: int = 2, leftovers: Sequence[Path] = ()
) -> None:
    """Run the hypervisor until SIGTERM or the supervisor's death. `ready` is called once it answers."""
    server = Server(runtime, supervisor, report, leftovers)
    server.stop_on(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ready()
    server.run()
