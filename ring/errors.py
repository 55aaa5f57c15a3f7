"""The exceptions of miniguest.

    MiniguestError
    +-- RingError        a ring's shared indices say something impossible: the peer is lying
    +-- XenstoreError    xenstored answered with an error; .code is its errno name, such as "ENOENT"
    +-- HypercallError   the hypervisor refused; .code is the errno name
    +-- PeerError        a peer broke a rule of the protocol outside the ring itself, or died
    +-- UserError        a file, an option or the machine is not as needed: one line, exit status 2

Each message names the rule that was broken and the value that broke it.
"""


class MiniguestError(Exception):
    """Root of everything miniguest raises on purpose."""


class RingError(MiniguestError):
    """The shared indices of a ring cannot be true: the device they belong to is to be disabled."""


class _CodedError(MiniguestError):
    """An error that has Xen's word for it.

    `code` is the name of an errno ("ENOENT", "EAGAIN"), spelled as in xs_wire.h and errno.h.
    """

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" if self.message else self.code


class XenstoreError(_CodedError):
    """xenstored answered a request with XS_ERROR."""


class HypercallError(_CodedError):
    """The hypervisor refused a hypercall."""


class PeerError(MiniguestError):
    """A peer broke a rule of the protocol (a xenstore key that makes no sense, a grant that is none), or died."""


class UserError(MiniguestError):
    """Something the user gave is wrong, and the message says what and where in one line (exit status 2)."""
