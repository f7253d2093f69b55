"""The one exception that is meant for the user."""


class DisaError(Exception):
    """A mistake the user can mend: what was expected, what was found, what to do, in one or two lines.

    The command line prints the message and exits with code 2; it never shows a traceback for it.
    """
