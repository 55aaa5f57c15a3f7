"""Saved state: a small versioned plain structure, not the object.

`save` gives a dict of what msgpack can carry; `load` checks kind, version, fields and types before it touches the
device, so a state that does not fit leaves the device as it was. Integers beyond 64 bits travel as little-endian
bytes.
"""

from __future__ import annotations

import dataclasses
import typing
from functools import cache
from typing import Any

from miniguest.frontend.devices.device import Model


class StateError(ValueError):
    """A saved state that is not this device's: the message names the field and what was wrong with it."""


def save(device: Model) -> dict[str, Any]:
    """The device's state as {"kind": name, "version": number, "state": {field: value}}."""
    device.saving()
    name, version = device.state.KIND
    return {"kind": name, "version": version, "state": _plain(device.state)}


def load(device: Model, saved: dict[str, Any]) -> None:
    """Put a saved state back. Raises StateError when it is another kind or version, or does not fit."""
    name, version = device.state.KIND
    if not isinstance(saved, dict) or saved.get("kind") != name or saved.get("version") != version:
        what = (saved.get("kind"), saved.get("version")) if isinstance(saved, dict) else type(saved).__name__
        raise StateError(f"state is of {what}, the device is {(name, version)}")
    device.state = _typed(type(device.state), saved.get("state"), name, device.state)
    device.restored()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytearray):
        return bytes(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1 << 64:
        return value.to_bytes((value.bit_length() + 7) // 8, "little")
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: hint for name, hint in typing.get_type_hints(kind).items() if name in names}


def _typed(kind: Any, value: Any, where: str, like: Any) -> Any:
    """`value` as type `kind`: a dataclass, a list as long as `like`, bytearray, int, bool, float or str."""
    if dataclasses.is_dataclass(kind):
        return _record(typing.cast(type, kind), value, where, like)
    if typing.get_origin(kind) is list:
        if not isinstance(value, list) or len(value) != len(like):
            raise StateError(f"{where} is not a list of {len(like)}")
        (item,) = typing.get_args(kind)
        return [_typed(item, each, f"{where}[{i}]", like[i]) for i, each in enumerate(value)]
    if kind is bytearray and isinstance(value, bytes):
        return bytearray(value)
    if kind is int and isinstance(value, bytes):
        return int.from_bytes(value, "little")
    if type(value) is not kind:
        raise StateError(f"{where} is {type(value).__name__}, not {kind.__name__}")
    return value


def _record(kind: type, value: Any, where: str, like: Any) -> Any:
    hints = _hints(kind)
    if not isinstance(value, dict) or value.keys() != hints.keys():
        raise StateError(f"{where} does not have the fields {', '.join(hints)}")
    return kind(**{name: _typed(hint, value[name], f"{where}.{name}", getattr(like, name)) for name, hint in hints.items()})
