"""Counts things in messages, in the singular and the plural."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """`1 row`, `1,500 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def are(count: int) -> str:
    """`is` or `are`, behind so many."""
    return "is" if count == 1 else "are"
