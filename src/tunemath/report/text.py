"""Numbers and untrusted text, as words: every unit is said, and what is absent says so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from tunemath.shown import clean, clip

__all__ = [
    "MISSING",
    "clean",
    "clip",
    "count",
    "decimal",
    "device_text",
    "dig",
    "duration",
    "flops",
    "interval",
    "number",
    "p_value",
    "percent",
    "percent_interval",
    "points",
    "points_interval",
    "scientific",
    "short_path",
    "size",
]

MISSING = "not measured"

_MINUS = "\N{MINUS SIGN}"


def dig(evidence: Mapping[str, Any] | None, *keys: str) -> Any:
    """Return ``evidence[k1][k2]…``, or None where a mapping on the way is absent.

    >>> dig({"plan": {"schedule": {"steps": 60}}}, "plan", "schedule", "steps")
    60
    >>> dig({"plan": None}, "plan", "schedule", "steps") is None
    True
    """
    value: Any = evidence
    for key in keys:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def number(value: Any) -> float | None:
    """Return a finite float, or None for what is absent, not a number, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def decimal(value: Any, digits: int = 3) -> str:
    """Return a number with so many digits after the point and a true minus sign.

    >>> decimal(-0.04512)
    '−0.045'
    """
    if number(value) is None:
        return MISSING
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if not float(text.replace(",", "")) else text.replace("-", _MINUS)


def scientific(value: Any) -> str:
    """Return a number that may be very small or large, to three figures.

    >>> scientific(0.0002), scientific(3.1e-7), scientific(0)
    ('0.0002', '3.1e−7', '0')
    """
    if number(value) is None:
        return MISSING
    mantissa, mark, exponent = f"{value:.3g}".partition("e")
    return f"{mantissa}e{int(exponent)}".replace("-", _MINUS) if mark else mantissa


def count(value: Any) -> str:
    """Return a whole number with thousands separated.

    >>> count(2442240)
    '2,442,240'
    """
    return MISSING if number(value) is None else f"{round(value):,}".replace("-", _MINUS)


def percent(share: Any, digits: int = 1) -> str:
    """Return a share as a percentage.

    >>> percent(0.6933)
    '69.3 %'
    """
    return MISSING if number(share) is None else f"{decimal(100 * share, digits)} %"


def _signed(value: float, digits: int) -> str:
    text = decimal(value, digits)
    return text if text.startswith(_MINUS) or not float(text.replace(",", "")) else f"+{text}"


def points(difference: Any, digits: int = 1) -> str:
    """Return a difference of two shares in percentage points.

    >>> points(0.6467), points(-0.02)
    ('+64.7 points', '−2.0 points')
    """
    if number(difference) is None:
        return MISSING
    return f"{_signed(100 * difference, digits)} points"


def interval(low: Any, high: Any, digits: int = 3) -> str:
    """Return the ends of an interval.

    >>> interval(0.71, 0.956)
    '[0.710, 0.956]'
    """
    if number(low) is None or number(high) is None:
        return "interval " + MISSING
    return f"[{decimal(low, digits)}, {decimal(high, digits)}]"


def percent_interval(low: Any, high: Any, digits: int = 1) -> str:
    """Return the ends of an interval of shares, in percent, to stand after the share.

    >>> percent_interval(0.615, 0.7611)
    '[61.5, 76.1]'
    """
    if number(low) is None or number(high) is None:
        return "interval " + MISSING
    return f"[{decimal(100 * low, digits)}, {decimal(100 * high, digits)}]"


def points_interval(low: Any, high: Any, digits: int = 1) -> str:
    """Return the ends of an interval of differences, in percentage points.

    >>> points_interval(-0.05, 0.01)
    '[−5.0, +1.0]'
    """
    if number(low) is None or number(high) is None:
        return "interval " + MISSING
    return f"[{_signed(100 * low, digits)}, {_signed(100 * high, digits)}]"


def p_value(p: Any) -> str:
    """Return a p-value; below 0.0001 only that is said.

    >>> p_value(0.0312), p_value(1e-21)
    ('p = 0.031', 'p < 0.0001')
    """
    if number(p) is None:
        return "p " + MISSING
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.{4 if p < 1e-3 else 3}f}"


def duration(seconds: Any) -> str:
    """Return a time as a person would say it.

    >>> duration(0.42), duration(59.96), duration(253), duration(7380)
    ('0.4 s', '1 min 0 s', '4 min 13 s', '2 h 3 min')
    """
    if number(seconds) is None:
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(value: Any) -> str:
    """Return a number of bytes in the largest binary unit that it fills.

    >>> size(1_450_000_000), size(9_768_960)
    ('1.35 GiB', '9.3 MiB')
    """
    if number(value) is None:
        return MISSING
    for unit, factor, digits in (("GiB", 2**30, 2), ("MiB", 2**20, 1), ("KiB", 2**10, 1)):
        if value >= factor:
            return f"{decimal(value / factor, digits)} {unit}"
    return f"{round(value)} bytes"


def device_text(training: Mapping[str, Any]) -> str:
    """Return where a run was trained and in what precision, from ``training.json``.

    >>> device_text({"device": "cuda:0", "dtype": "bfloat16", "devices": 8})
    'cuda:0 (bfloat16), one of 8'
    >>> device_text({"device": "cpu", "dtype": "float32", "devices": 1})
    'cpu (float32)'
    """
    if not training.get("device"):
        return ""
    devices = training.get("devices")
    others = f", one of {count(devices)}" if (number(devices) or 1) > 1 else ""
    return f"{clean(training['device'])} ({clean(training.get('dtype') or MISSING)}){others}"


def flops(value: Any) -> str:
    """Return a number of floating-point operations with an SI prefix.

    >>> flops(2.31e13)
    '23.1 TFLOP'
    """
    if number(value) is None:
        return MISSING
    for prefix, factor in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= factor:
            return f"{decimal(value / factor, 1)} {prefix}FLOP"
    return f"{round(value)} FLOP"


def short_path(path: Any) -> str:
    """Return the last two parts of a path: the folders above are the machine's, not the run's.

    >>> short_path("/home/user/tune/dates/train.jsonl")
    '…/dates/train.jsonl'
    """
    if path is None:
        return "none"
    parts = PurePath(clean(path)).parts
    return clean(path) if len(parts) <= 2 else "…/" + "/".join(parts[-2:])
