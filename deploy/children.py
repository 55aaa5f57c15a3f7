"""The supervisor's child processes: forked from it, since it has imported everything already, and watched by pidfd."""
import logging
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from miniguest.ring.process import PR_SET_NAME, prctl

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@dataclass(slots=True, eq=False)
class Child:
    """A child process. exit_code is as in subprocess: -9 when signal 9 killed it; None while it runs."""

    name: str
    pid: int
    pidfd: int
    exit_code: int | None = None
    cpu_s: float = 0.0
    max_rss_bytes: int = 0

    def how(self) -> str:
        """How it ended, in words."""
        code = self.exit_code or 0
        if code >= 0:
            return f"ended with status {code}"
        known = -code in signal.valid_signals() and -code in set(signal.Signals)      # most real-time ones have no name
        return f"was killed by {signal.Signals(-code).name if known else f'signal {-code}'}"

    def kill(self, number: int) -> None:
        """Send a signal; nothing happens when it has ended."""
        if self.exit_code is None:
            signal.pidfd_send_signal(self.pidfd, number)

    def reap(self) -> None:
        """Collect it, once its pidfd is readable."""
        _, status, usage = os.wait4(self.pid, 0)
        self.exit_code = os.waitstatus_to_exitcode(status)
        self.cpu_s = usage.ru_utime + usage.ru_stime
        self.max_rss_bytes = usage.ru_maxrss * 1024
        os.close(self.pidfd)


class Children:
    """All of them. log_directory: where each has NAME.log, with what it prints and logs."""

    def __init__(self, log_directory: Path) -> None:
        self.all: list[Child] = []
        self._logs = log_directory
        self._untold: list[Child] = []          # those that ended while `stop` waited for others
        self._by_fd: dict[int, Child] = {}      # the living, by pidfd
        self._epoll = select.epoll()            # on their pidfds: to wait for one does not cost more the more there are

    def spawn(self, name: str, main: Callable[[], int | None], keep_stdin: bool = False) -> Child:
        """Fork a child that runs `main` and ends with what it returns."""
        # A signal that came between fork and the child's own handlers would run the supervisor's in the child.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP, signal.SIGINT})
        try:
            sys.stdout.flush()
            sys.stderr.flush()
            pid = os.fork()
            if pid == 0:
                self._run(name, main, keep_stdin, blocked)
            child = Child(name, pid, os.pidfd_open(pid))
            self.all.append(child)
            self._by_fd[child.pidfd] = child
            self._epoll.register(child.pidfd, select.EPOLLIN)
            return child
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _run(self, name: str, main: Callable[[], int | None], keep_stdin: bool, mask: Iterable[int]) -> None:
        """The child's life. Never returns."""
        status = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            for number in (signal.SIGINT, signal.SIGHUP):       # a terminal sends them to all; the supervisor decides
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            prctl(PR_SET_NAME, name[:15].encode())
            log = os.open(self._logs / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            if not keep_stdin:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            logging.basicConfig(stream=sys.__stderr__, level=logging.INFO, format=LOG_FORMAT, force=True)
            status = main() or 0
        except SystemExit as ended:
            status = (ended.code or 0) if isinstance(ended.code, int | None) else 1
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)

    def forget(self, some: Iterable[Child]) -> None:
        """These ended, and were never here: neither they nor their logs."""
        gone = set(some)
        self.remove_logs(gone)
        self.all = [child for child in self.all if child not in gone]

    def remove_logs(self, some: Iterable[Child]) -> None:
        """The logs of these, which ended, go: another may have the name."""
        for child in some:
            (self._logs / f"{child.name}.log").unlink(missing_ok=True)

    @property
    def untold(self) -> bool:
        """Whether `wait` has news without waiting."""
        return bool(self._untold)

    @property
    def living(self) -> list[Child]:
        """Those that have not been reaped."""
        return list(self._by_fd.values())

    def wait(self, seconds: float | None, also: int | None = None) -> list[Child]:
        """Wait until some child ends, `also` is readable or the time is up; the children that ended, reaped.

        Each child is told of once; those that `stop` was to end are not.
        """
        told, self._untold = self._untold, []
        return told or self._reap(seconds, also)

    def _reap(self, seconds: float | None, also: int | None = None) -> list[Child]:
        if also is not None:
            self._epoll.register(also, select.EPOLLIN)
        ready = self._epoll.poll(None if seconds is None else max(0, seconds))
        if also is not None:
            self._epoll.unregister(also)
        fds = {fd for fd, _ in ready}
        # In the order of their starts: of those that died at once, that was the one which the others could not do without.
        ended = [child for child in self.living if child.pidfd in fds] if fds - {also} else []
        for child in ended:
            del self._by_fd[child.pidfd]
            # Told to forget it before it is closed: its siblings have inherited the pidfd, which lives on in them.
            self._epoll.unregister(child.pidfd)
            child.reap()
        return ended

    def stop(self, some: Iterable[Child], grace: float) -> None:
        """SIGTERM to these, and SIGKILL to those that are still there after `grace` seconds."""
        some = list(some)
        deadline = time.monotonic() + grace
        for child in some:
            child.kill(signal.SIGTERM)
        while any(child.exit_code is None for child in some) and time.monotonic() < deadline:
            self._reap_others_too(some, deadline - time.monotonic())
        for child in some:
            child.kill(signal.SIGKILL)
        while any(child.exit_code is None for child in some):
            self._reap_others_too(some, None)

    def _reap_others_too(self, some: list[Child], seconds: float | None) -> None:
        self._untold += [child for child in self._reap(seconds) if child not in some]
