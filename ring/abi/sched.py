"""Why a domain was shut down: xen/sched.h."""
from typing import Final

HEADER: Final = "xen/sched.h"

SHUTDOWN_poweroff: Final = 0
SHUTDOWN_reboot: Final = 1
SHUTDOWN_suspend: Final = 2
SHUTDOWN_crash: Final = 3
SHUTDOWN_watchdog: Final = 4
SHUTDOWN_soft_reset: Final = 5
