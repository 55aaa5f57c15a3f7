"""The console process: one of dom0's vCPUs. It serves every console page that xenstore lists.

A device's keys: frontend (its directory holds ring-ref, a frame number, and port, as xenconsoled has them), output
("stdio", "pty" or a path), copy (a file that gets everything too), prefix, and input (1: standard input goes there).
"""
import contextlib
import os
import stat
from contextlib import ExitStack
from pathlib import Path

from miniguest.backend.console.sinks import FileSink, PtySink, Sink, StdioSink
from miniguest.backend.directory import BackendDirectory
from miniguest.ring.console import input_ring, output_ring
from miniguest.ring.errors import PeerError, RingError
from miniguest.ring.process import Process
from miniguest.ring.xenbus import Keys, write_error
from miniguest.ring.xenstore import Xenstore


class Console:
    """One console page."""

    def __init__(self, process: Process, store: Xenstore, domid: int, path: str, output: int) -> None:
        self._process = process
        self._store = store
        self._path = path
        self._undo = ExitStack()
        self._waiting = b""                 # input that the guest has had no room for
        keys = Keys(store, path)
        frontend = Keys(store, keys.text("frontend"))
        page = self._page(domid, frontend.number("ring-ref"))
        self._in, self._out = input_ring(page), output_ring(page)
        self._port = process.bind_interdomain(domid, frontend.number("port"))
        self._undo.callback(self._port.close)
        self._sinks: list[Sink] = [self._sink(keys, output)]
        if copy := keys.text("copy", ""):
            self._sinks.append(FileSink(Path(copy)))
        for sink in self._sinks:
            self._undo.callback(sink.close)
        if keys.flag("input"):
            self._read_stdin()
        process.loop.on_port(self._port, self.serve)

    def _page(self, domid: int, frame: int) -> memoryview:
        try:
            return self._process.memory(domid).frame(frame)
        except (OSError, IndexError) as error:
            raise PeerError(f"{self._path}: no console page: {error}") from error

    def _sink(self, keys: Keys, output: int) -> Sink:
        kind = keys.text("output")
        if kind == "stdio":
            return StdioSink(output, keys.text("prefix", ""))
        if kind == "pty":
            pty = PtySink(self._process.loop, self._input)
            self._store.write(f"{keys.text('frontend')}/tty", pty.name)
            return pty
        return FileSink(Path(kind))

    def serve(self) -> None:
        """The guest printed something, or made room for input."""
        try:
            while data := self._out.read():
                self._port.notify()         # there is room again
                for sink in self._sinks:
                    sink.write(data)
            self._input(b"")
        except RingError as error:
            write_error(self._store, self._path, str(error))
            self._undo.close()

    def _input(self, data: bytes) -> None:
        self._waiting += data
        if self._waiting:
            written = self._in.write(self._waiting)
            if written:
                self._waiting = self._waiting[written:]
                self._port.notify()

    def _read_stdin(self) -> None:
        """Standard input, where it is something that can be waited for."""
        mode = os.fstat(0).st_mode
        if stat.S_ISREG(mode):
            self._input(os.read(0, 1 << 16))
        elif stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(0):
            self._process.loop.on_fd(0, self._stdin)
            self._undo.callback(self._process.loop.off_fd, 0)

    def _stdin(self) -> None:
        try:
            data = os.read(0, 4096)
        except OSError:
            data = b""
        if not data:
            self._process.loop.off_fd(0)
        with contextlib.suppress(RingError):
            self._input(data)

    def close(self) -> None:
        """The last words, then the end."""
        with contextlib.suppress(RingError):
            while data := self._out.read():
                for sink in self._sinks:
                    sink.write(data)
        self._undo.close()


def main(process: Process, output: int) -> None:
    """Serve until the loop is stopped. output: the descriptor that "stdio" means."""
    store = process.xenstore()

    def opened(domid: int, _device: int, path: str) -> Console:
        return Console(process, store, domid, path, output)

    process.undo.callback(BackendDirectory(store, "console", opened).close)
    process.loop.run()
