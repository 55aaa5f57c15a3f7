"""The 16550A against the PC16550D datasheet."""

from hypothesis import given
from hypothesis import strategies as st

from miniguest.frontend.devices.uart import MSR_CTS, MSR_DCD, MSR_DSR, MSR_RI, Uart

DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)
FCR = IIR


class Line:
    def __init__(self, ier: int = 0, fcr: int = 0x01) -> None:
        self.now = 0
        self.sent = bytearray()
        self.told = 0
        self.uart = Uart(self.sent.extend, lambda: self.now)
        self.uart.changed = self.count
        self.put(MCR, 0x0B)
        self.put(FCR, fcr)
        self.put(LCR, 0x83)
        self.put(DATA, 1)
        self.put(IER, 0)
        self.put(LCR, 0x03)
        self.put(IER, ier)

    def count(self) -> None:
        self.told += 1

    def put(self, register: int, value: int) -> None:
        self.uart.write(register, 1, value)

    def get(self, register: int) -> int:
        return self.uart.read(register, 1)


def test_transmit_and_its_interrupt() -> None:
    line = Line()
    assert not line.uart.irq()
    line.put(IER, 2)
    assert line.uart.irq()  # enabling it while empty interrupts
    assert line.get(IIR) == 0xC2
    assert not line.uart.irq()  # reading IIR as the source clears it
    line.put(DATA, 65)
    assert line.sent == b"A"
    assert line.uart.irq()
    assert line.get(LSR) == 0x60
    line.put(IER, 0)
    assert line.get(IIR) == 0xC1


@given(trigger=st.sampled_from([(0, 1), (1, 4), (2, 8), (3, 14)]), data=st.binary(min_size=1, max_size=16))
def test_receive_interrupts_at_the_trigger_or_after_four_characters(trigger: tuple[int, int], data: bytes) -> None:
    code, level = trigger
    line = Line(ier=1, fcr=code << 6 | 1)
    line.uart.receive(data)
    assert line.told == 1
    assert line.uart.irq() == (len(data) >= level)
    due = line.uart.deadline()
    assert due == 4 * (10 * 1_000_000_000 // 115200)
    line.now = due - 1
    line.uart.tick()
    assert line.uart.irq() == (len(data) >= level)
    line.now = due
    line.uart.tick()
    assert line.get(IIR) == (0xC4 if len(data) >= level else 0xCC)
    assert bytes(line.get(DATA) for _ in data) == data
    assert not line.uart.irq()
    assert line.uart.deadline() is None


def test_back_pressure_and_overrun() -> None:
    line = Line(ier=5)
    assert line.uart.room() == 16
    line.uart.receive(bytes(range(20)))
    assert line.uart.room() == 0
    assert line.get(IIR) == 0xC6  # line status first
    assert line.get(LSR) == 0x63
    assert line.get(LSR) == 0x61
    assert [line.get(DATA) for _ in range(16)] == list(range(16))
    line.put(FCR, 0)
    assert line.uart.room() == 1
    line.uart.receive(b"ab")  # without FIFOs the new byte overwrites the old
    assert line.get(LSR) == 0x63
    assert line.get(DATA) == ord("b")
    assert line.get(IIR) == 0x01


def test_priorities() -> None:
    line = Line(ier=0x0F)
    line.uart.receive(b"x" * 17)
    line.uart.set_modem(0)
    for identity, register in ((0xC6, LSR), (0xC4, DATA), (0xC2, IIR), (0xC0, MSR)):
        assert line.get(IIR) == identity
        for _ in range(16 if register == DATA else 1 if register != IIR else 0):
            line.get(register)
    assert line.get(IIR) == 0xC1


def test_loopback_and_modem_deltas() -> None:
    line = Line()
    assert line.get(MSR) == MSR_CTS | MSR_DSR | MSR_DCD
    line.put(MCR, 0x1A)
    assert line.get(MSR) & 0xF0 == 0x90  # RTS and OUT2 come back as CTS and DCD; DSR fell
    line.put(MCR, 0x1F)
    assert line.get(MSR) & 0xF0 == 0xF0
    line.put(MCR, 0x10)
    assert line.get(MSR) == 0x0F  # all fell, RI's end included
    line.put(DATA, 77)
    assert not line.sent
    assert line.uart.room() == 0
    line.uart.receive(b"lost")
    assert line.get(DATA) == 77
    line.put(LCR, 0x43)
    assert line.get(LSR) & 0x11 == 0x11  # a break looped back
    line.put(MCR, 0x0B)
    line.get(MSR)
    line.uart.set_modem(MSR_CTS | MSR_DSR | MSR_DCD | MSR_RI)
    assert line.get(MSR) & 0x0F == 0  # RI counts when it ends
    line.uart.set_modem(MSR_CTS | MSR_DSR)
    assert line.get(MSR) == MSR_CTS | MSR_DSR | 0x0C
    assert line.get(MSR) == MSR_CTS | MSR_DSR


def test_divisor_scratch_and_fifo_control() -> None:
    line = Line(ier=3)
    line.put(LCR, 0x83)
    line.uart.write(DATA, 2, 0x1234)
    assert line.uart.read(DATA, 2) == 0x1234
    line.put(LCR, 0x03)
    assert line.get(IER) == 3
    line.put(SCR, 0x5A)
    assert line.get(SCR) == 0x5A
    line.uart.receive(b"abc")
    line.put(FCR, 0x03)
    assert line.get(LSR) == 0x60
    line.uart.receive(b"abc")
    line.put(FCR, 0x00)  # leaving FIFO mode empties it
    assert line.get(LSR) == 0x60
    assert line.get(IIR) & 0xC0 == 0


def test_out2_gates_the_line_and_breaks_are_marked() -> None:
    line = Line(ier=5)
    line.uart.receive(b"a")
    line.uart.receive_break()
    assert line.get(IIR) == 0xC6
    assert line.get(LSR) == 0xE1  # an error somewhere in the FIFO
    line.get(DATA)
    assert line.get(LSR) & 0x11 == 0x11
    assert line.uart.irq()
    line.put(MCR, 0x03)
    assert not line.uart.irq()


def test_word_length() -> None:
    line = Line()
    line.put(LCR, 0x00)
    line.put(DATA, 0xFF)
    assert line.sent == b"\x1f"
