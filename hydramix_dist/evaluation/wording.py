"""Numbers as a reader meets them: shares in per cent, differences in points, times in the unit that fits."""

from collections.abc import Sequence


def images(shots: int) -> str:
    """Return "5 labelled images per class", in the right number."""
    return f"{shots} labelled image{'' if shots == 1 else 's'} per class"


def percent(share: float) -> str:
    """Return a share as "71.2 %"."""
    return f"{100 * share:.1f} %"


def points(difference: float, unit: bool = True) -> str:
    """Return a difference of shares as signed points, "+1.9 points", with a true minus sign."""
    text = f"{100 * difference:+.1f}".replace("-", "−")
    return (f"{text} points" if unit else text).replace("+0.0", "0.0").replace("−0.0", "0.0")


def duration(seconds: float) -> str:
    """Return a time as "4.2 s", "45 s", "3.1 min", "12 min" or "3.4 h"."""
    size, unit = (1, "s") if seconds < 90 else (60, "min") if seconds < 5400 else (3600, "h")
    value = seconds / size
    return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"


def times(ratio: float) -> str:
    """Return a ratio as "3.4 times"."""
    return f"{ratio:.1f} times" if ratio < 100 else f"{ratio:.0f} times"


def capital(text: str) -> str:
    """Return the text with its first letter in upper case."""
    return text[0].upper() + text[1:]


def listed(items: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
