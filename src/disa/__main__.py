"""`python -m disa` is the command line."""

from disa.cli import main

main()
