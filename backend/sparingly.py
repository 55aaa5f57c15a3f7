"""A log that a lying peer cannot fill."""
import logging


class SparingLog:
    """Logs the first, second, fourth, eighth ... time that something happens: as often as it does, but few lines."""

    def __init__(self, log: logging.Logger, level: int) -> None:
        self._log = log
        self._level = level
        self._times = 0

    def __call__(self, what: str) -> None:
        """It happened again."""
        self._times += 1
        if self._times & (self._times - 1) == 0:
            self._log.log(self._level, "%s%s", what, f" (time {self._times})" if self._times > 1 else "")
