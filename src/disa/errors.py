"""What the user is told: the one exception that is meant for them, and warnings."""

import os
import sys
import warnings

_OURS = os.path.dirname(__file__) + os.sep


class DisaError(Exception):
    """A mistake the user can mend: what was expected, what was found, what to do, in one or two lines.

    The command line prints the message and exits with code 2; it never shows a traceback for it.
    """


def warn(message: str) -> None:
    """Warn at the line that called disa, from however deep within."""
    level, frame = 1, sys._getframe()
    while frame is not None and _within(frame.f_code.co_filename):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def _within(file: str) -> bool:
    """Whether code is disa's, or of a context that stands between two functions of disa."""
    return file.startswith(_OURS) or file.endswith("contextlib.py")
