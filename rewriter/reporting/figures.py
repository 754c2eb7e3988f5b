"""Numbers as people read them. Invariant: the same number always gives the same text, whatever the locale."""

from __future__ import annotations

UNKNOWN = "unknown"


def count(value: int | None) -> str:
    """1274 -> "1,274"."""
    return UNKNOWN if value is None else f"{value:,}"


def short(value: float | None) -> str:
    """51182080 -> "51.2M"; whole numbers under a thousand as they are."""
    if value is None:
        return UNKNOWN
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * size:
            scaled = value / size
            return f"{scaled:.1f}{unit}" if scaled < 999.5 else f"{scaled:.0f}{unit}"
    return f"{value:g}"


def size(value: int) -> str:
    """Bytes in decimal units: 205_131_776 -> "205.1 MB"."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= 0.9995 * scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value} B"


def change(before: float | None, after: float | None) -> str:
    """(4, 3) -> "−25.0 %"; "" where it cannot be said or nothing changed."""
    if before is None or after is None or before == after or before == 0:
        return ""
    percent = 100 * (after - before) / before
    sign = "−" if percent < 0 else "+"
    return f"{sign}{abs(percent):.1f} %"


def signed(value: int) -> str:
    """-91 -> "−91", 3 -> "+3"."""
    return f"{'−' if value < 0 else '+'}{abs(value):,}"


def error(value: float) -> str:
    """An absolute or relative difference: "0", "3.1e-16", "nan"."""
    return "0" if value == 0 else f"{value:.1e}"


def plural(value: int, one: str, many: str | None = None) -> str:
    """(1, "node") -> "1 node", (1274, "node") -> "1,274 nodes"."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def shape(dims: tuple[int | str | None, ...] | None) -> str:
    """(1, "N", None) -> "[1, N, ?]"; None, an unknown rank, -> "[…]"."""
    if dims is None:
        return "[…]"
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in dims) + "]"
