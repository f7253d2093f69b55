"""How parametrized tests are named."""

import re


def told(value: object) -> str:
    """A value in the name of a test: short, and the same in every process that collects the tests."""
    return re.sub(r" at 0x[0-9a-f]+", "", ascii(value))[:30]
