"""Between seconds since the epoch and the ten time registers of an MC146818 (Motorola datasheet, table 3)."""

from __future__ import annotations

DAY = 86400
SECONDS, MINUTES, HOURS, WEEKDAY, DAY_OF_MONTH, MONTH, YEAR, CENTURY = 0, 2, 4, 6, 7, 8, 9, 0x32
FIELDS = (SECONDS, MINUTES, HOURS, WEEKDAY, DAY_OF_MONTH, MONTH, YEAR, CENTURY)
ALARMS = (1, 3, 5)  # seconds, minutes, hours
MODE_BINARY, MODE_24H = 0x04, 0x02  # register B


def encode(number: int, mode: int) -> int:
    """A number as the registers hold it: binary or BCD."""
    return number if mode & MODE_BINARY else number // 10 << 4 | number % 10


def decode(value: int, mode: int) -> int:
    """A register's value as a number; a BCD digit above nine counts as what it is worth."""
    return value if mode & MODE_BINARY else (value >> 4) * 10 + (value & 15)


def encode_hours(hours: int, mode: int) -> int:
    """0-23 as a register value: 24-hour, or 12-hour with bit 7 for the afternoon."""
    if mode & MODE_24H:
        return encode(hours, mode)
    return encode(hours % 12 or 12, mode) | (0x80 if hours >= 12 else 0)


def decode_hours(value: int, mode: int) -> int:
    """A register value as 0-23."""
    if mode & MODE_24H:
        return decode(value, mode)
    return decode(value & 0x7F, mode) % 12 + (12 if value & 0x80 else 0)


def to_registers(seconds: int, weekday_shift: int, mode: int) -> dict[int, int]:
    """The time registers for so many seconds since 1970."""
    days, rest = divmod(seconds, DAY)
    year, month, day = civil(days)
    weekday = (days + 4 + weekday_shift) % 7 + 1  # 1 January 1970 was a Thursday; Sunday is 1
    return {
        SECONDS: encode(rest % 60, mode),
        MINUTES: encode(rest // 60 % 60, mode),
        HOURS: encode_hours(rest // 3600, mode),
        WEEKDAY: encode(weekday, mode),
        DAY_OF_MONTH: encode(day, mode),
        MONTH: encode(month, mode),
        YEAR: encode(year % 100, mode),
        CENTURY: encode(year // 100 % 100, mode),
    }


def from_registers(values: dict[int, int], mode: int) -> tuple[int, int]:
    """Seconds since 1970 and the weekday's shift. Values that are no date carry over into the next field."""
    year = decode(values[CENTURY], mode) * 100 + decode(values[YEAR], mode)
    month = min(max(decode(values[MONTH], mode), 1), 12)
    days = days_from_civil(year, month, 1) + decode(values[DAY_OF_MONTH], mode) - 1
    clock = decode_hours(values[HOURS], mode) * 3600 + decode(values[MINUTES], mode) * 60
    seconds = days * DAY + clock + decode(values[SECONDS], mode)
    shift = (decode(values[WEEKDAY], mode) - 1 - (days + 4)) % 7
    return seconds, shift


def days_from_civil(year: int, month: int, day: int) -> int:
    """Days since 1 January 1970 of a date in the Gregorian calendar."""
    year -= month <= 2  # count years from March, so that the leap day is the last
    month_from_march = (month + 9) % 12
    day_of_year = (153 * month_from_march + 2) // 5 + day - 1
    return year * 365 + year // 4 - year // 100 + year // 400 + day_of_year - 719468


def civil(days: int) -> tuple[int, int, int]:
    """Year, month and day of so many days since 1 January 1970."""
    days += 719468
    era, day_of_era = divmod(days, 146097)  # 400 years
    year = (day_of_era - day_of_era // 1460 + day_of_era // 36524 - day_of_era // 146096) // 365
    day_of_year = day_of_era - (365 * year + year // 4 - year // 100)
    month_from_march = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * month_from_march + 2) // 5 + 1
    month = month_from_march + 3 if month_from_march < 10 else month_from_march - 9
    return era * 400 + year + (month <= 2), month, day


def next_match(alarm: tuple[int, int, int], now: int, mode: int) -> int | None:
    """Seconds from `now` to the next match of the alarm registers (second, minute, hour), or None if never.

    A register of 0xC0 or more matches everything.
    """
    second = None if alarm[0] >= 0xC0 else decode(alarm[0], mode)
    minute = None if alarm[1] >= 0xC0 else decode(alarm[1], mode)
    hour = None if alarm[2] >= 0xC0 else decode_hours(alarm[2], mode)
    time = now + 1
    for _ in range(24 + 60 + 60 + 3):  # each step passes a whole hour, minute or second that cannot match
        if hour is not None and time // 3600 % 24 != hour:
            time = (time // 3600 + 1) * 3600
        elif minute is not None and time // 60 % 60 != minute:
            time = (time // 60 + 1) * 60
        elif second is not None and time % 60 != second:
            time += 1
        else:
            return time - now
    return None
