"""ACPI hot-plug registers of a machine in which nothing comes or goes."""
from miniguest.frontend.devices.acpi_hotplug import EVENTS, PROCESSORS, SLOTS, AcpiHotplug


def test_nothing_is_pending_and_nothing_is_to_be_ejected() -> None:
    device = AcpiHotplug(2)
    ports = {start: (count, window) for start, count, window in device.ports}
    for start in (EVENTS, SLOTS):
        count, window = ports[start]
        for at in range(0, count, 4):
            window.write(at, 4, 0xFFFF0000 if start == EVENTS else 0xFFFFFFFF)
            assert window.read(at, 4) == (0xFFFF0000 if start == EVENTS else 0)
    assert ports[EVENTS][1].read(0, 2) == 0
    assert ports[EVENTS][1].read(2, 1) == 0xFF


def test_processors_are_those_there_are() -> None:
    for vcpus in (1, 3, 9):
        count, window = next((count, window) for start, count, window in AcpiHotplug(vcpus).ports if start == PROCESSORS)
        window.write(0, 1, 0)
        assert sum(window.read(at, 1) << 8 * at for at in range(count)) == (1 << vcpus) - 1
