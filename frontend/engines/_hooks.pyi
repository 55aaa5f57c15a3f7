"""Types of the compiled Unicorn callbacks; see _hooks.pyx."""

from collections.abc import Callable

STOP_NONE: int
STOP_KICK: int
STOP_TIMER: int
STOP_WINDOW: int

class Watch:
    def __init__(
        self,
        emu_stop: int,
        reg_read: int,
        vmem_read: int,
        vmem_translate: int,
        upcall: int,
        on_msr: Callable[[int, int, int], None],
    ) -> None: ...
    def holds_code(self, gpa: int, size: int) -> bool: ...
    def forget_code(self) -> None: ...
    stopped: int
    want_interrupt: bool
    request: bool
    deadline_ns: int
    @property
    def block(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    def limit_blocks(self, count: int) -> None: ...
    @property
    def shadow(self) -> bool: ...
    @property
    def address(self) -> int: ...
    @property
    def block_callback(self) -> int: ...
    @property
    def edge_callback(self) -> int: ...
