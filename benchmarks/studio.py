"""How quick `disa studio` is, and what it keeps: seconds from the command to the first page and from a click to the
first preview, and memory over many drawings by tabs that come and go. It needs playwright and chromium.

    python benchmarks/studio.py --drawings 100
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from playwright.sync_api import sync_playwright

PORT, PER_TAB, CLICKS = 7899, 10, 5
COMMAND = [sys.executable, "-m", "disa", "studio", "--model", "mar-digits", "--port", f"{PORT}"]


@contextmanager
def studio() -> Iterator[tuple[subprocess.Popen[bytes], float, float]]:
    """The process, and the seconds from its start to its first page: by the clock, and of its own processor time."""
    started = time.perf_counter()
    process = subprocess.Popen(COMMAND, stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                with urlopen(f"http://127.0.0.1:{PORT}/", timeout=30) as answer:
                    answer.read()
                break
            except URLError:
                time.sleep(0.02)
        yield process, time.perf_counter() - started, processor_seconds(process)
    finally:
        process.terminate()
        process.wait()


def processor_seconds(process: subprocess.Popen[bytes]) -> float:
    """What it has computed so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(process: subprocess.Popen[bytes]) -> float:
    """Resident memory, MB."""
    [line] = [line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "VmRSS" in line]
    return int(line.split()[1]) / 1024


def opened(browser: Any) -> Any:
    """A tab of its own, ready to draw."""
    page = browser.new_context().new_page()
    page.set_default_timeout(120_000)
    page.goto(f"http://127.0.0.1:{PORT}")
    page.wait_for_selector(".state.ready")
    return page


def clicked(page: Any, wanted: str) -> float:
    """Seconds from a click on Draw until there is something new to see; measured in the page itself."""
    return page.evaluate(
        """wanted => new Promise(found => {
            document.getElementById("draw-stage").querySelectorAll("img, button.save").forEach(e => e.remove());
            const started = performance.now();
            const look = () => document.querySelector(`#draw-stage ${wanted}`)
                ? found((performance.now() - started) / 1000) : setTimeout(look, 5);
            document.getElementById("draw-start").click();
            look();
        })""",
        wanted,
    )


def finished(page: Any) -> None:
    page.wait_for_selector("#draw-stage button.save")
    page.wait_for_selector("#draw-start:enabled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drawings", type=int, default=100)
    drawings = parser.parse_args().drawings
    with studio() as (process, first_page, computed), sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page, previews = opened(chromium), []
        for _ in range(CLICKS):
            previews.append(clicked(page, "img"))
            finished(page)
        page.context.close()
        kept = [(0, memory(process))]
        for done in range(PER_TAB, drawings + 1, PER_TAB):
            page = opened(chromium)
            page.fill("#steps input, #steps textarea", "linear:5-1")
            for _ in range(PER_TAB):
                clicked(page, "button.save")
                finished(page)
            page.context.close()
            kept.append((done, memory(process)))
            print(f"after {done:4} drawings {kept[-1][1]:8.1f} MB", file=sys.stderr)
    print(f"first page after {first_page:.2f} s, {computed:.2f} s of processor time")
    print(f"first preview {statistics.median(previews):.2f} s after the click")
    told = {
        "first_page_seconds": first_page,
        "first_page_processor_seconds": computed,
        "first_preview_seconds": previews,
        "memory_mb": kept,
    }
    print(json.dumps(told | {"model": "mar-digits", "machine": platform.processor(), "python": sys.version.split()[0]}))


if __name__ == "__main__":
    main()
