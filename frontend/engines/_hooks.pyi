"""Types of the compiled Unicorn callbacks; see _hooks.pyx."""

from collections.abc import Callable

from miniguest.frontend.engines.engine import ExitHandler
from miniguest.ring._core import ExitPath

STOP_NONE: int
STOP_KICK: int
STOP_TIMER: int
STOP_WINDOW: int
STOP_HOOKED: int
FOUND_MSR: int
FOUND_FAR: int
FOUND_IRET: int

class Watch:
    error: BaseException | None
    stopped: int
    want_interrupt: bool
    request: bool
    deadline_ns: int
    def __init__(
        self,
        functions: tuple[int, ...],
        engine: int,
        ram: tuple[int, int],
        upcall: int,
        handler: ExitHandler,
        string_in: Callable[[int, int], int],
        string_out: Callable[[int, int, int], None],
        on_found: Callable[[int, int, int, int, int], None],
        path: ExitPath | None = None,
    ) -> None: ...
    def forget_code(self, gpa: int, size: int) -> bool: ...
    def forgot_all_code(self) -> None: ...
    def take_refused(self) -> int: ...
    def resume(self, why: int) -> None: ...
    def lend(self) -> None: ...
    def translate_anew(self) -> None: ...
    def lend_for_good(self) -> None: ...
    def forget_strings(self) -> None: ...
    def region(self, start: int) -> int: ...
    @property
    def blocks(self) -> int: ...
    def limit_blocks(self, count: int) -> None: ...
    @property
    def shadow(self) -> bool: ...
    @property
    def address(self) -> int: ...
    @property
    def callbacks(self) -> dict[str, int]: ...
