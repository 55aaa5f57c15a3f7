"""A device that is made again in the same place, whatever its backend was doing meanwhile: step by step, over a daemon in the
same thread. blkback's and netback's devices are both made of what is tried here."""
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from directstore import DirectTransport, World

from miniguest.backend.backend_device import BackendDevice
from miniguest.backend.directory import BackendDirectory
from miniguest.ring.abi.xenbus import XenbusState as S
from miniguest.ring.errors import PeerError
from miniguest.ring.xenbus import Keys, read_state, watch_state, write_keys
from miniguest.ring.xenstore import Xenstore

FRONT, BACK = "/local/domain/7/device/vbd/768", "/local/domain/0/backend/vbd/7/768"


class Half(BackendDevice):
    """A back half whose image is named by `params` and whose ring by `ring`; the image "bad" cannot be opened."""

    def __init__(self, store: Xenstore, path: str) -> None:
        super().__init__(SimpleNamespace(forget=lambda domid: None), store, 7, path)       # type: ignore[arg-type]
        self.image, self.ring = Keys(store, path).text("params"), ""
        if self.image == "bad":
            raise PeerError("a bad image")
        self.publish({"feature": self.image})
        self._watch = watch_state(store, self.frontend, self.frontend_changed)

    @property
    def is_connected(self) -> bool:
        return self.ring != ""

    def connect(self) -> None:
        self.ring = Keys(self.store, self.frontend).text("ring")
        self.publish({"sectors": self.image})
        self.switch(S.Connected)

    def disconnect(self) -> None:
        self.ring = ""

    def close(self) -> None:
        self.closed = True
        self._watch.cancel()
        self.disconnect()


class Steps:
    """A backend, and a toolstack that acts before the backend's request number `steps` from now."""

    def __init__(self) -> None:
        world = World()
        self.toolstack, self.store = world.open(), world.open()
        self.devices: list[Half] = []
        self.pairs: set[tuple[str, str]] = set()        # (image, ring) while a frontend could use it
        BackendDirectory(self.store, "vbd", self._open)

    def _open(self, domid: int, device: int, path: str) -> Half:
        self.devices.append(Half(self.store, path))
        return self.devices[-1]

    def make(self, image: str, state: S, ring: str) -> None:
        """Instead of whatever was there, and its frontend is in a hurry."""
        with self.toolstack.transaction() as t:
            for path in (FRONT, BACK):
                if t.exists(path):
                    t.rm(path)
            write_keys(t, FRONT, {"state": int(state), "ring": ring})
            write_keys(t, BACK, {"params": image, "state": int(S.Initialising), "frontend": FRONT})

    def catch_up(self) -> None:
        """Event by event; between two, whoever serves a ring is remembered."""
        self.store.dispatch()
        self.pairs |= {(each.image, each.ring) for each in self.devices if each.is_connected}

    def before_request(self, number: int, act: Callable[[], None]) -> None:
        """Have `act` happen just before the backend's request `number` (0: its next one)."""
        transport = self.store.transport
        assert isinstance(transport, DirectTransport)

        def count() -> None:
            nonlocal number
            if number == 0:
                self.acted = True
                act()
            else:
                number -= 1
                transport.between = count

        self.acted = False
        transport.between = count


BEFORE: dict[str, tuple[str, list[S]]] = {             # the old device's image and its frontend's states, the last one is news
    "opening": ("old", [S.Initialising]),
    "failing to open": ("bad", [S.Initialising]),
    "connecting": ("old", [S.Initialising, S.Initialised]),
    "connected": ("old", [S.Initialised, S.Connected]),
    "closing": ("old", [S.Initialised, S.Closing]),
    "closed": ("old", [S.Initialised, S.Closed]),
    "starting over": ("old", [S.Initialised, S.Closed, S.Initialising]),
    "talking nonsense": ("old", [S.Initialised, S.Unknown]),
}


@pytest.mark.parametrize("state", [S.Initialising, S.Initialised, S.Closed])
@pytest.mark.parametrize("doing", BEFORE)
def test_it_is_made_again_before_any_request(doing: str, state: S) -> None:
    """The new device is opened, serves its own image only, and answers its own frontend, whichever request it came before."""
    image, states = BEFORE[doing]
    step = 0
    while True:
        steps = Steps()
        for each in states[:-1]:
            if not steps.devices:
                steps.make(image, each, "old ring")
            steps.toolstack.write(f"{FRONT}/state", int(each))
            steps.catch_up()
        if steps.devices:
            steps.toolstack.write(f"{FRONT}/state", int(states[-1]))
        else:
            steps.make(image, states[-1], "old ring")
        steps.before_request(step, lambda steps=steps: steps.make("new", state, "new ring"))       # type: ignore[misc]
        steps.catch_up()
        if not steps.acted:             # it is idle: that was the last request
            break
        while steps.store.pending:
            steps.catch_up()
        opened = [each for each in steps.devices if not each.closed]
        assert [each.image for each in opened] == ["new"], step
        assert steps.pairs <= {("old", "old ring"), ("new", "new ring")}, step
        answer = {S.Initialising: S.InitWait, S.Initialised: S.Connected, S.Closed: S.Closed}[state]
        assert read_state(steps.store, BACK) == answer, step
        assert not steps.store.exists(f"{BACK}/error"), step
        assert opened[0].is_connected == (state == S.Initialised), step
        step += 1
    assert step > 1


def test_an_event_of_the_old_device_is_handled_when_the_new_one_is_there() -> None:
    """The race itself: the frontend went on, and before its backend looked, both were gone and made again."""
    steps = Steps()
    steps.make("old", S.Initialised, "old ring")
    steps.catch_up()
    assert read_state(steps.store, BACK) == S.Connected
    steps.toolstack.write(f"{FRONT}/state", int(S.Connected))
    steps.make("new", S.Initialising, "new ring")
    steps.catch_up()
    assert [(each.image, each.closed) for each in steps.devices] == [("old", True), ("new", False)]
    assert read_state(steps.store, BACK) == S.InitWait
    steps.toolstack.write(f"{FRONT}/state", int(S.Initialised))
    steps.catch_up()
    assert steps.devices[-1].ring == "new ring" and steps.store.read(f"{BACK}/sectors") == b"new"


@pytest.mark.parametrize("state", [S.Initialising, S.Initialised])
def test_a_frontend_that_is_written_anew_before_any_request(state: S) -> None:
    """Its directory is removed, which is news, and there again when the backend looks, or by its next look."""
    step = 0
    while True:
        steps = Steps()
        steps.make("image", S.Initialised, "ring")
        steps.catch_up()
        steps.toolstack.rm(FRONT)

        def again(steps: Steps = steps) -> None:
            write_keys(steps.toolstack, FRONT, {"ring": "again", "state": int(state)})

        steps.before_request(step, again)
        steps.catch_up()
        if not steps.acted:
            break
        while steps.store.pending:
            steps.catch_up()
        assert not steps.store.exists(f"{BACK}/error"), step
        assert read_state(steps.store, BACK) in (S.InitWait, S.Connected), step
        step += 1
    assert step > 1


def test_a_state_that_is_none_of_the_headers_disables() -> None:
    for word in ("0", "9", "x", ""):
        steps = Steps()
        steps.make("image", S.Initialising, "ring")
        steps.catch_up()
        steps.toolstack.write(f"{FRONT}/state", word)
        steps.catch_up()
        assert "none of xenbus.h" in steps.store.read_text(f"{BACK}/error"), word
