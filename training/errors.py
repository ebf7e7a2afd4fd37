"""Errors whose message is enough for the user: the entry script prints it and ends with exit code 2."""

from __future__ import annotations


class TrainingError(Exception):
    """Bad input; the message names the place, the value and the remedy."""


def first_line(error: Exception) -> str:
    """The first line of a library's message, which may go on for a page."""
    return str(error).strip().partition("\n")[0]
