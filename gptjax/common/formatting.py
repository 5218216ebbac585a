"""Numbers as people read them."""


def format_seconds(seconds: float) -> str:
    """Returns `4d 03h`, `3h 07m`, `2m 05s` or `12s`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d {h:02}h"
    if hours:
        return f"{h}h {m:02}m"
    return f"{m}m {s:02}s" if m else f"{s}s"
