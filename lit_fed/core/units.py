"""Numbers as people read them."""


def readable_bytes(count: float) -> str:
    """``"12 B"``, ``"3.4 kB"``, ``"5.6 MB"`` (of 10**6 bytes), ``"7.8 GB"``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
