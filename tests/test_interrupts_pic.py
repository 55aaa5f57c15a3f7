"""The 8259A pair: the datasheet's rules, and any traffic against a simple model of one chip."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniguest.frontend.interrupts.pic import Pic

MASTER, MASTER_MASK, SLAVE, SLAVE_MASK, ELCR1, ELCR2 = range(6)


def started(icw4: int = 0x01) -> Pic:
    """Initialised as a PC does it: vectors 0x08 and 0x70, nothing masked."""
    pic = Pic()
    for command, base, cascade in ((MASTER, 0x08, 0x04), (SLAVE, 0x70, 0x02)):
        pic.write(command, 1, 0x11)
        for word in (base, cascade, icw4):
            pic.write(command + 1, 1, word)
    return pic


def in_service(pic: Pic, command: int = MASTER) -> int:
    pic.write(command, 1, 0x0B)
    return pic.read(command, 1)


def requests(pic: Pic, command: int = MASTER) -> int:
    pic.write(command, 1, 0x0A)
    return pic.read(command, 1)


def test_priority_in_service_and_end_of_interrupt() -> None:
    pic = started()
    for irq in (4, 1):
        pic.set_line(irq, True)
    assert pic.pending()
    assert pic.acknowledge() == 0x09
    assert not pic.pending()  # 4 is less important than 1, which is in service
    assert in_service(pic) == 0x02
    assert requests(pic) == 0x10
    pic.set_line(0, True)
    assert pic.acknowledge() == 0x08  # nested
    pic.write(MASTER, 1, 0x20)
    pic.write(MASTER, 1, 0x20)
    assert pic.acknowledge() == 0x0C


def test_an_edge_interrupts_once_and_a_level_until_it_falls() -> None:
    pic = started()
    pic.write(ELCR2, 1, 0xFF)
    assert (pic.read(ELCR2, 1), pic.read(ELCR1, 1)) == (0xDE, 0)  # 8 and 13 stay edges
    pic.set_line(4, True)
    pic.acknowledge()
    pic.write(MASTER, 1, 0x20)
    assert not pic.pending()
    pic.set_line(11, True)
    for _ in range(3):
        assert pic.acknowledge() == 0x73
        pic.write(SLAVE, 1, 0x20)
        pic.write(MASTER, 1, 0x20)
    pic.set_line(11, False)
    assert requests(pic, SLAVE) == 0


def test_a_pulse_stays_latched_while_masked() -> None:
    pic = started()
    pic.write(MASTER_MASK, 1, 0x01)
    pic.pulse(0)
    assert not pic.pending()
    pic.write(MASTER_MASK, 1, 0x00)
    assert pic.acknowledge() == 0x08


def test_cascade_in_service_at_both_chips() -> None:
    pic = started()
    pic.set_line(14, True)
    assert pic.acknowledge() == 0x76
    assert in_service(pic, MASTER) == 0x04
    assert in_service(pic, SLAVE) == 0x40
    pic.set_line(8, True)
    assert not pic.pending()  # the master blocks its own input 2 until it is ended
    pic.write(MASTER, 1, 0x20)
    assert pic.acknowledge() == 0x70
    pic.set_line(2, True)  # the cascade cannot be driven
    assert requests(pic) == 0


def test_special_fully_nested_mode_lets_the_slave_interrupt_itself() -> None:
    pic = started(icw4=0x11)
    pic.set_line(14, True)
    pic.acknowledge()
    pic.set_line(8, True)
    assert pic.acknowledge() == 0x70


def test_spurious_interrupts() -> None:
    pic = started()
    assert pic.acknowledge() == 0x0F
    assert in_service(pic) == 0
    pic.set_line(15, True)
    pic.write(SLAVE_MASK, 1, 0xFF)  # the slave's request goes away after the master has latched it
    assert pic.acknowledge() == 0x77
    assert in_service(pic, SLAVE) == 0
    assert in_service(pic, MASTER) == 0x04


def test_automatic_end_and_rotation() -> None:
    pic = started(icw4=0x03)
    pic.write(MASTER, 1, 0x80)  # rotate in automatic EOI
    for irq in (0, 1):
        pic.set_line(irq, True)
    assert pic.acknowledge() == 0x08
    assert in_service(pic) == 0
    pic.pulse(0)
    assert pic.acknowledge() == 0x09  # 0 has the lowest priority now
    assert pic.acknowledge() == 0x08


def test_rotating_end_of_interrupt_and_set_priority() -> None:
    pic = started()
    for irq in (3, 4):
        pic.set_line(irq, True)
    pic.acknowledge()
    pic.write(MASTER, 1, 0xA0)  # rotate on non-specific EOI: 3 is lowest
    pic.pulse(3)
    assert pic.acknowledge() == 0x0C
    pic.write(MASTER, 1, 0xC0 | 3)
    pic.write(MASTER, 1, 0x60 | 4)
    pic.set_line(5, True)
    pic.write(MASTER, 1, 0xC0 | 4)  # 5 is highest
    assert pic.acknowledge() == 0x0D


def test_special_mask_mode_lets_less_important_ones_in() -> None:
    pic = started()
    pic.set_line(1, True)
    pic.acknowledge()
    pic.set_line(6, True)
    assert not pic.pending()
    pic.write(MASTER_MASK, 1, 0x02)
    pic.write(MASTER, 1, 0x68)
    assert pic.acknowledge() == 0x0E
    pic.write(MASTER, 1, 0x20)  # does not end 1, which is masked
    assert in_service(pic) == 0x02
    pic.write(MASTER, 1, 0x48)
    pic.write(MASTER, 1, 0x20)
    assert in_service(pic) == 0


@pytest.mark.parametrize("where", [MASTER, MASTER_MASK])
def test_poll_acknowledges(where: int) -> None:
    pic = started()
    pic.write(MASTER, 1, 0x0C)
    assert pic.read(where, 1) == 0
    pic.set_line(5, True)
    pic.write(MASTER, 1, 0x0C)
    assert pic.read(where, 1) == 0x85
    assert not pic.pending()
    assert in_service(pic) == 0x20


def test_initialisation_clears_and_may_leave_out_words() -> None:
    pic = started()
    pic.set_line(3, True)
    pic.write(MASTER_MASK, 1, 0xFF)
    pic.write(MASTER, 1, 0x12)  # single, no ICW4: ICW2 alone follows
    pic.write(MASTER_MASK, 1, 0x47)
    assert pic.read(MASTER_MASK, 1) == 0
    assert not pic.pending()  # the edge is forgotten
    pic.write(MASTER_MASK, 1, 0x5A)
    assert pic.read(MASTER_MASK, 1) == 0x5A
    pic.set_line(3, False)
    pic.set_line(0, True)
    assert pic.acknowledge() == 0x40


class Model:
    """One chip with no cascade in use: lists in place of bit tricks."""

    def __init__(self) -> None:
        self.latched: set[int] = set()
        self.serving: set[int] = set()
        self.masked: set[int] = set()
        self.high: set[int] = set()
        self.order = list(range(8))

    def candidate(self) -> int | None:
        for irq in self.order:
            if irq in self.serving:
                return None
            if irq in self.latched - self.masked:
                return irq
        return None

    def rotate(self, lowest: int) -> None:
        while self.order[-1] != lowest:
            self.order.append(self.order.pop(0))


IRQS = st.sampled_from([0, 1, 3, 4, 5, 6, 7])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("line"), IRQS, st.booleans()),
        st.tuples(st.sampled_from(["mask", "eoi", "specific", "rotate", "priority", "ack"]), st.integers(0, 255)),
    ),
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_any_traffic_matches_a_simple_model(steps: list[tuple[str, int] | tuple[str, int, bool]]) -> None:
    pic, model = started(), Model()
    for step in steps:
        value = step[1]
        match step[0]:
            case "line":
                level = step[2] if len(step) == 3 else False
                pic.set_line(value, level)
                if level and value not in model.high:
                    model.latched.add(value)
                (model.high.add if level else model.high.discard)(value)
            case "mask":
                pic.write(MASTER_MASK, 1, value)
                model.masked = {n for n in range(8) if value >> n & 1}
            case "eoi" | "rotate" as kind:
                pic.write(MASTER, 1, 0x20 if kind == "eoi" else 0xA0)
                ending = [irq for irq in model.order if irq in model.serving][:1]
                model.serving.difference_update(ending)
                if ending and kind == "rotate":
                    model.rotate(ending[0])
            case "specific":
                pic.write(MASTER, 1, 0x60 | value & 7)
                model.serving.discard(value & 7)
            case "priority":
                pic.write(MASTER, 1, 0xC0 | value & 7)
                model.rotate(value & 7)
            case "ack":
                wanted = model.candidate()
                assert pic.pending() == (wanted is not None)
                assert pic.acknowledge() == 0x08 + (7 if wanted is None else wanted)
                if wanted is not None:
                    model.latched.discard(wanted)
                    model.serving.add(wanted)
        assert pic.pending() == (model.candidate() is not None)
        assert in_service(pic) == sum(1 << n for n in model.serving)
        assert requests(pic) == sum(1 << n for n in model.latched)
