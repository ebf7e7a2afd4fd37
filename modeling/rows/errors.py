"""Errors whose message is all the user needs: the entry script prints it and exits with code 2."""

from __future__ import annotations


class InputError(Exception):
    """Bad input; the message names the place, the value and the remedy."""


def first_line(error: Exception) -> str:
    """The first line of a library's message, which may be a page long."""
    return str(error).strip().partition("\n")[0]
