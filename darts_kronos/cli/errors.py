"""How a command ends when it cannot do what was asked."""

from __future__ import annotations


class CommandError(Exception):
    """A message for the user, and the exit code that goes with it.

    Parameters
    ----------
    message
        What is wrong, and what is allowed or can be done.
    """

    exit_code = 1


class RunError(CommandError):
    """A run that was begun and failed: exit code 1."""


class UsageError(CommandError):
    """A command, a config or data that nothing can be begun with: exit code 2."""

    exit_code = 2
