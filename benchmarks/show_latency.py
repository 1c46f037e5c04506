"""How long it takes from pen-up to the new maps on the page, for LeNet, in a real browser.

    python benchmarks/show_latency.py [--strokes 40]

Draws with the mouse in a headless Chromium: the page's own clock runs from the pointer's release to
the moment when every layer's maps have been drawn on their canvases. Measured twice: with a
network at rest, and while the same process trains (`gpuconv train --show`).
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

from browser import chromium

GOAL = 100  # ms


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--strokes", type=int, default=40)
    args = parser.parse_args()
    with chromium() as browser, tempfile.TemporaryDirectory() as folder:
        command = ["train", "--show", "--epochs", "1000", "--out", str(Path(folder) / "run")]
        with started([*command, "--port", "0"]) as (url, _):
            browser.open(url)
            resting = measure(browser, args.strokes)
            browser.find("#run-start").click()
            browser.until("return gpuconv.training.step() > 100", seconds=120)
            training = measure(browser, args.strokes)
            speed = browser.text("#run-facts").rpartition("speed")[2]
    report("at rest", resting)
    report(f"while training at {speed}", training)
    return 0 if max(map(statistics.median, (resting, training))) < GOAL else 1


class started:
    """A `gpuconv` command that serves a page: its address, once it is there."""

    def __init__(self, arguments):
        command = [sys.executable, "-m", "gpuconv", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        for line in self.process.stdout:
            if found := re.search(r"http://[0-9.:]+/", line):
                return found[0], self.process
        raise RuntimeError("the command ended without a page")

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def measure(browser, strokes):
    """The page's latency of each of so many strokes, in ms."""
    found = []
    browser.find("#pad-clear").click()
    browser.settle()
    for number in range(strokes):
        if number % 4 == 0:
            browser.find("#pad-clear").click()
            browser.settle()
        x = 0.2 + 0.2 * (number % 4)
        browser.draw([(x, 0.2), (x + 0.05, 0.5), (x, 0.8)])
        found.append(browser.js("return gpuconv.page.latency"))
    return found


def report(when, found):
    middle, worst = statistics.median(found), sorted(found)[int(0.95 * len(found))]
    print(f"{when}: median {middle:.0f} ms, 95% within {worst:.0f} ms, {len(found)} strokes")


if __name__ == "__main__":
    sys.exit(main())
