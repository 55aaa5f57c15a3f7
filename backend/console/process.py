"""The console process: one of dom0's vCPUs. It serves every console page that xenstore lists.

A device's keys: frontend (its directory holds ring-ref, a frame number, and port, as xenconsoled has them), output
("stdio", "pty" or a path), copy (a file that gets everything too), prefix, and input (1: standard input goes there).
"""
import contextlib
import logging
from contextlib import ExitStack
from pathlib import Path

from miniguest.backend.console.sinks import FileSink, PtySink, Sink, StdioSink
from miniguest.backend.console.source import Source
from miniguest.backend.directory import BackendDirectory
from miniguest.ring.console import input_ring, output_ring
from miniguest.ring.errors import PeerError, RingError
from miniguest.ring.process import Process
from miniguest.ring.xenbus import Keys, write_error
from miniguest.ring.xenstore import Transaction, Xenstore

log = logging.getLogger(__name__)


class Console:
    """One console page."""

    def __init__(self, process: Process, store: Xenstore, domid: int, path: str, output: int) -> None:
        self._process = process
        self._store = store
        self._path = path
        self._keys = Keys(store, path).fetch("frontend", "output", "copy", "prefix", "input")
        self._sinks: list[Sink] = []
        self._source: Source | None = None
        with ExitStack() as undo:
            self._connect(domid, undo)
            self._plug(output, undo)
            self._undo = undo.pop_all()
        process.loop.on_port(self._port, self.serve)

    def _connect(self, domid: int, undo: ExitStack) -> None:
        frontend = Keys(self._store, self._keys.text("frontend")).fetch("ring-ref", "port")
        page = self._page(domid, frontend.number("ring-ref"))
        self._in, self._out = input_ring(page), output_ring(page)
        self._port = self._process.bind_interdomain(domid, frontend.number("port"))
        undo.callback(self._port.close)
        undo.callback(self._process.loop.off_port, self._port)

    def _plug(self, output: int, undo: ExitStack) -> None:
        """Where output goes and input comes from."""
        keys = self._keys
        kind, copy = keys.text("output"), keys.text("copy", "")
        if kind == "stdio":
            self._add(StdioSink(output, keys.text("prefix", "")), undo)
        elif kind == "pty":
            pty = PtySink()
            self._add(pty, undo)
            self._source = Source(self._process.loop, pty.fd, self._put)
            self._store.write(f"{keys.text('frontend')}/tty", pty.name)
        else:
            self._add(FileSink(Path(kind)), undo)
        if copy:
            self._add(FileSink(Path(copy)), undo)
        if keys.flag("input") and not self._source:
            self._source = Source(self._process.loop, 0, self._put)
        if self._source:
            undo.callback(self._source.close)

    def _add(self, sink: Sink, undo: ExitStack) -> None:
        undo.callback(sink.close)
        self._sinks.append(sink)

    def _page(self, domid: int, frame: int) -> memoryview:
        try:
            return self._process.memory(domid).frame(frame)
        except (OSError, IndexError) as error:
            raise PeerError(f"{self._path}: no console page: {error}") from error

    def await_frontend(self, nodes: Transaction) -> None:
        """A console has no state: its frontend is there already."""

    def serve(self) -> None:
        """The guest printed something, or made room for input. One ring's worth: it tells of what comes after, and
        other guests have something to say, too."""
        try:
            data = self._out.read()
        except RingError as error:
            self._disable(error)
            return
        if data:
            self._port.notify()             # there is room again
            self._print(data)
        if self._source:
            self._source.feed()

    def _print(self, data: bytes) -> None:
        for sink in list(self._sinks):
            try:
                sink.write(data)
            except OSError as error:        # a full disk, a reader that went away: no reason to end, for anybody
                log.error("%s: output is lost from now on: %s", self._path, error)
                self._sinks.remove(sink)

    def _put(self, data: bytes) -> int:
        try:
            written = self._in.write(data)
        except RingError as error:
            self._disable(error)
            return len(data)
        if written:
            self._port.notify()
        return written

    def _disable(self, error: RingError) -> None:
        """The guest's indices cannot be true: this console is no more."""
        log.error("%s: %s", self._path, error)
        write_error(self._store, self._path, str(error))
        self._undo.close()

    def close(self) -> None:
        """The last words, then the end."""
        with contextlib.suppress(RingError):
            self._print(self._out.read())
        self._undo.close()


def main(process: Process, output: int) -> None:
    """Serve until the loop is stopped. output: the descriptor that "stdio" means."""
    store = process.xenstore()

    def opened(domid: int, _device: int, path: str) -> Console:
        return Console(process, store, domid, path, output)

    process.undo.callback(BackendDirectory(store, "console", opened, process.part).close)
    process.loop.run()
