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

from miniguest.ring.doorbell import EVENTS, POLLIN, Bells
from miniguest.ring.errors import HypercallError, MiniguestError
from miniguest.ring.hypercalls import MULTICALL, socket_path
from miniguest.ring.hypervisor.arguments import check_arguments
from miniguest.ring.hypervisor.operations import OPERATIONS, Operations

RETRY: Final = 0.01                     # seconds between looks at locks that keep the dead's grants from being released

log = logging.getLogger("hypervisor")


class Server:
    """Hypercalls in, answers out. `supervisor` is the process whose death ends everything; `report` the descriptor on
    which that is said, and `leftovers` what else is to be removed then."""

    def __init__(self, runtime: Path, supervisor: int, report: int = 2, leftovers: Sequence[Path] = ()) -> None:
        self.runtime = runtime
        self._report = report
        self._leftovers = leftovers
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self.operations = Operations(runtime, Bells(runtime))
        self.stopping = False
        self._socket = self.context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._epoll = select.epoll()            # where a hundred sleeping processes cost a request nothing
        self._deaths: dict[int, Callable[[], None]] = {}
        self._buried: set[bytes] = set()        # connections of processes that died
        self._socket.bind(f"ipc://{socket_path(runtime)}")
        self._epoll.register(int(self._socket.get(zmq.FD)), select.EPOLLIN)
        self._watch(supervisor, self._orphaned)

    def _watch(self, pid: int, handler: Callable[[], None]) -> None:
        """Call `handler` once, when process `pid` ends."""
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            handler()
            return
        self._deaths[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def stop_on(self, number: signal.Signals) -> None:
        """Stop when a signal comes. Its byte in a pipe ends the poll, which Python resumes when only interrupted."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

        def stop(*_: object) -> None:
            self.stopping = True

        signal.signal(number, stop)
        signal.set_wakeup_fd(writer)
        self._epoll.register(reader, select.EPOLLIN)

    def run(self) -> None:
        """Serve until told to stop."""
        while not self.stopping:
            # zmq's descriptor tells of changes only: the socket itself is asked, each time before we sleep.
            asked = int(self._socket.get(EVENTS)) & POLLIN
            ready = self._epoll.poll(0 if asked else RETRY if self.operations.unreleased else None)
            self.operations.release()
            # The dead first, looked for after the request was there: who sent it may have seen a process end, and take its place.
            self._bury_dead([fd for fd, _ in ready if fd in self._deaths])
            if asked:
                self._serve()

    def close(self) -> None:
        """Let go of the socket, and of the processes that are watched."""
        for fd in self._deaths:
            os.close(fd)
        self._epoll.close()
        self._socket.close()
        self.operations.bells.close()

    def _bury_dead(self, ended: list[int]) -> None:
        for fd in ended:
            self._epoll.unregister(fd)
            os.close(fd)
            self._deaths.pop(fd)()

    def _serve(self) -> None:
        sender, empty, request = ([*self._socket.recv_multipart(), b"", b""])[:3]
        # What a process asked just before it died may come after its burial: a port that nobody would close, or the end of
        # one that is another's by now. (Not known to be its own is a connection that it made anew after a timeout.)
        if sender not in self._buried:
            self._socket.send_multipart([sender, empty, msgpack.packb(self.answer(request, sender))])

    def answer(self, request: bytes, sender: bytes = b"") -> dict[str, Any]:
        """The reply to one request, whatever its bytes say. sender: its connection's routing id, which is never another's."""
        try:
            message = msgpack.unpackb(request)
            op, args = message["op"], message["args"]
            if op == MULTICALL:
                return {"result": [self._outcome(each, with_, sender) for each, with_ in args["calls"]]}
            return self._outcome(op, args, sender)
        except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
            return {"error": "EINVAL", "message": str(error)}

    def _outcome(self, op: str, args: dict[str, Any], sender: bytes) -> dict[str, Any]:
        """The reply to one call."""
        try:
            if op not in OPERATIONS:
                raise HypercallError("ENOSYS", f"no hypercall {op!r}")
            check_arguments(op, args)
            result = getattr(self.operations, op)(**args)
            if op == "register":
                pid = args["pid"]
                self._watch(pid, lambda: self._bury(pid, sender))
            return {"result": result}
        except HypercallError as error:
            return {"error": error.code, "message": error.message}
        except MiniguestError as error:
            return {"error": "ENOSPC", "message": str(error)}
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            return {"error": "EINVAL", "message": str(error)}
        except OSError as error:
            return {"error": "EIO", "message": str(error)}

    def _bury(self, pid: int, sender: bytes) -> None:
        self._buried.add(sender)
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
