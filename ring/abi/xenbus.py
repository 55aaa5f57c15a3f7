"""The states of a split device's two ends: xen/io/xenbus.h."""
from enum import IntEnum
from typing import Final

HEADER: Final = "xen/io/xenbus.h"


class XenbusState(IntEnum):
    """What a device's `state` node holds, in decimal digits."""

    Unknown = 0
    Initialising = 1
    InitWait = 2            # the backend has looked at its own side and waits for the front's keys
    Initialised = 3
    Connected = 4
    Closing = 5
    Closed = 6
    Reconfiguring = 7
    Reconfigured = 8


XenbusStateUnknown: Final = XenbusState.Unknown
XenbusStateInitialising: Final = XenbusState.Initialising
XenbusStateInitWait: Final = XenbusState.InitWait
XenbusStateInitialised: Final = XenbusState.Initialised
XenbusStateConnected: Final = XenbusState.Connected
XenbusStateClosing: Final = XenbusState.Closing
XenbusStateClosed: Final = XenbusState.Closed
XenbusStateReconfiguring: Final = XenbusState.Reconfiguring
XenbusStateReconfigured: Final = XenbusState.Reconfigured
