"""Format sizes, durations and ages for people.

All functions are pure; the caller passes the current time.  Sizes are in bytes, durations
in seconds.

Source: docker's go-units, duration.go, for the wording and the limits of ages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")
_MINUTE, _HOUR = 60, 3600


def size(count: float | None) -> str | None:
    """Format a number of bytes with a unit: ``512B``, ``1.5MiB``."""
    if count is None:
        return None
    if count < 1024:
        return f"{int(count)}B"
    number = float(count)
    for unit in _UNITS:
        number /= 1024
        if number < 1023.95 or unit == _UNITS[-1]:
            break
    return f"{number:.1f}{unit}"


def seconds(number: float) -> str:
    """Format a duration in seconds: ``0.012s``, ``75.2s``, ``2h05m``."""
    if number < 10:
        return f"{number:.3f}s"
    if number < 3600:
        return f"{number:.1f}s"
    minutes = int(number // 60)
    return f"{minutes // 60}h{minutes % 60:02d}m"


def duration(number: float) -> str:
    """Format a duration in seconds as docker does: ``3 minutes``, ``About an hour``, ``2 weeks``.

    A negative duration, which a clock that was set back causes, counts as zero.
    """
    whole = max(int(number), 0)
    minutes, hours = whole // _MINUTE, int(max(number, 0) / _HOUR + 0.5)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if minutes < 1:
        return f"{whole} seconds"
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    if hours == 1:
        return "About an hour"
    for most, unit, name in (
        (48, 1, "hours"),
        (24 * 7 * 2, 24, "days"),
        (24 * 30 * 2, 24 * 7, "weeks"),
        (24 * 365 * 2, 24 * 30, "months"),
    ):
        if hours < most:
            return f"{hours // unit} {name}"
    return f"{whole // _HOUR // 24 // 365} years"


def age(at: datetime | None, now: datetime) -> str:
    """Format the time since ``at`` as docker does: ``3 minutes ago``; empty if it is unknown."""
    return f"{duration((now - at).total_seconds())} ago" if at else ""


def short_age(at: datetime | None, now: datetime) -> str:
    """Format the time since ``at`` as crictl and kubectl do: ``45s``, ``3m``, ``5h``, ``12d``.

    The result is empty if ``at`` is unknown.
    """
    if at is None:
        return ""
    whole = max(int((now - at).total_seconds()), 0)
    if whole < 2 * _MINUTE:
        return f"{whole}s"
    if whole < 2 * _HOUR:
        return f"{whole // _MINUTE}m"
    if whole < 48 * _HOUR:
        return f"{whole // _HOUR}h"
    return f"{whole // _HOUR // 24}d"
