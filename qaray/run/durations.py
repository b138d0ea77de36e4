"""Durations as text."""

from __future__ import annotations


def time_left(seconds: float, done: int, left: int) -> str:
    """Suffix of a progress line: estimated time for ``left`` papers if ``done`` took ``seconds``; '' if none."""
    return f", about {duration(left * seconds / done)} left" if done > 0 and left > 0 else ""


def duration(seconds: float) -> str:
    """Seconds as text: ``95`` → ``1m35s``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
