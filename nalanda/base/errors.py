"""The errors that a user sees: one clear line each, with an exit code. Everything else is our bug.

UserError (1)            anything that the user can mend
|- ConfigError (2)       a mistake in a recipe or on the command line      (nalanda.config)
|- DataError (3)         input that cannot be read or does not fit
|- RunError (4)          a run folder that is held, foreign or damaged
`- Interrupted (130)     Ctrl-C; the run goes on where it was
   `- Terminated (143)   the same by SIGTERM, as clusters and containers send it
"""

from __future__ import annotations


class UserError(Exception):
    """Says what is wrong, where (file, row, key), and what to do, in one line."""

    exit_code = 1


class DataError(UserError):
    """Input data that is missing, damaged or does not fit what was asked."""

    exit_code = 3


class RunError(UserError):
    """A run folder that another process holds, another config made, or whose files are damaged."""

    exit_code = 4


class Interrupted(UserError):
    """The user pressed Ctrl-C; what was saved is whole."""

    exit_code = 130


class Terminated(Interrupted):
    """The system sent SIGTERM; what was saved is whole."""

    exit_code = 143
