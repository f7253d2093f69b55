"""`python -m disa` and `disa`: the command line, from its first import to the end of the process."""

from __future__ import annotations

import signal
import sys

from disa.stopping import INTERRUPTED, SIGNALS, STOPPED, Stopped, stopped_by_sigterm


def main() -> None:
    """Entry point: whenever Ctrl-C or SIGTERM comes, there is one line and no traceback."""
    code: str | int | None
    try:
        with stopped_by_sigterm():
            from disa.cli import main as command

            command()
        code = 0
    except SystemExit as end:
        code = end.code
    except (KeyboardInterrupt, Stopped) as stopped:
        code = stopped.code if isinstance(stopped, Stopped) else INTERRUPTED
        print(f"disa: {STOPPED}", file=sys.stderr)
    # All is done; what comes now would only interrupt Python's own end.
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    main()
