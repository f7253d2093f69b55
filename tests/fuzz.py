"""What anything from outside may look like, and what must become of it: it is used, or refused with one DisaError.

    python tests/fuzz.py --minutes 10

runs the strategies of tests/test_fuzz.py on new examples until the time is over. In the test suite they run on few
examples, always the same. `python tests/fuzz.py serve --bodies 10000` does the same with bodies of requests to the
server: see tests/bodies.py.

A good text, table, probe, configuration or file is changed a little, or made up; most of what breaks readers is near to
what is good.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, configuration, settings
from hypothesis import strategies as st

from disa.errors import DisaError

LONGEST_MESSAGE, MOST_SECONDS, MOST_MEMORY = 600, 2.0, 1 << 30

configuration.set_hypothesis_home_dir(tempfile.gettempdir() + "/disa-hypothesis")
COMMON: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("ci", max_examples=100, derandomize=True, database=None, **COMMON)
settings.register_profile("long", max_examples=1000, print_blob=True, **COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

LETTERS = st.characters() | st.sampled_from("0123456789-:@=.,x/ \n\0\u2013\u0663\ud83d\u200b+eE_")
TEXTS = st.text(LETTERS, max_size=40)
WHOLE = st.integers() | st.integers(-2, 12) | st.sampled_from([10**9, 10**40, -(10**9), 2**63, 2**64])
NUMBERS = WHOLE | st.floats() | st.floats(0, 4)
PLAIN = st.none() | st.booleans() | NUMBERS | TEXTS
JSON = st.recursive(
    PLAIN, lambda part: st.lists(part, max_size=4) | st.dictionaries(TEXTS, part, max_size=4), max_leaves=8
)


# -- near to what is good ------------------------------------------------------------------------------------------


@st.composite
def near(draw: st.DrawFn, good: list[Any], pieces: st.SearchStrategy[Any]) -> Any:
    """A text or bytes of the good ones with up to three places changed: left out, put in, said twice or cut off."""
    given = draw(st.sampled_from(good))
    for _ in range(draw(st.integers(0, 3))):
        place, length = draw(st.integers(0, len(given))), draw(st.integers(0, 4))
        put = draw(st.sampled_from(["nothing", "piece", "twice", "end"]))
        middle = {
            "nothing": given[:0],
            "piece": draw(pieces),
            "twice": given[place : place + length] * 2,
            "end": given[:0],
        }
        given = given[:place] + middle[put] + (given[:0] if put == "end" else given[place + length :])
    return given


def texts_near(*good: str) -> st.SearchStrategy[str]:
    return near(list(good), st.text(LETTERS, max_size=3))


def bytes_near(*good: bytes) -> st.SearchStrategy[bytes]:
    return near(list(good), st.binary(max_size=9))


@st.composite
def json_near(draw: st.DrawFn, good: Any, changes: int = 2) -> Any:
    """Content of JSON with some of its parts changed: another value, left out, or one more beside it."""
    content = json.loads(json.dumps(good))
    for _ in range(draw(st.integers(0, changes))):
        part, keys = content, []
        while isinstance(part, dict | list) and part and (not keys or draw(st.integers(0, 3))):
            key = draw(st.sampled_from(sorted(part))) if isinstance(part, dict) else draw(st.integers(0, len(part) - 1))
            keys.append((part, key))
            part = part[key]
        if not keys:
            return draw(JSON)
        owner, key = keys[-1]
        change = draw(st.sampled_from(["other", "number", "out", "more"]))
        if change == "out":
            del owner[key]
        elif change == "more":
            owner.update({draw(TEXTS): draw(JSON)}) if isinstance(owner, dict) else owner.append(draw(JSON))
        else:
            owner[key] = draw(JSON if change == "other" else NUMBERS)
    return content


# -- what must become of it ----------------------------------------------------------------------------------------


def used_or_refused(action: Callable[[], Any], seconds: float = MOST_SECONDS) -> Any:
    """What the action returns, or None where it refused with one short line; either way soon, in little memory."""
    started, before = time.process_time(), memory()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return action()
    except DisaError as error:
        check_line(str(error))
        return None
    finally:
        assert time.process_time() - started < seconds, "it takes too long"
        assert memory() - before < MOST_MEMORY, "it takes too much memory"


def check_line(said: str) -> None:
    """One line for a user."""
    assert said.strip()
    assert len(said) <= LONGEST_MESSAGE, said
    assert "\n" not in said, said
    assert said.encode(), said


def memory() -> int:
    """The most bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    """Run tests/test_fuzz.py on new examples for some minutes; the code of the last run of pytest."""
    if sys.argv[1:2] == ["serve"]:
        import bodies

        return bodies.main(sys.argv[2:])
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("arguments", nargs="*", help="for pytest, such as -- -k probe")
    given = parser.parse_args()
    import pytest

    settings.load_profile("long")
    os.environ["HYPOTHESIS_PROFILE"] = "long"
    end, code, seed = time.monotonic() + 60 * given.minutes, 0, int(time.time())
    tests = str(Path(__file__).with_name("test_fuzz.py"))
    while not code and time.monotonic() < end:
        code = int(pytest.main(["-q", "--timeout=0", f"--hypothesis-seed={seed}", tests, *given.arguments]))
        print(f"seed {seed}: {memory() >> 20} MiB at most", file=sys.stderr)
        seed += 1
    return code


if __name__ == "__main__":
    sys.exit(main())
