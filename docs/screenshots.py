"""Make the pictures of the page that the documentation shows: docs/*.png.

    gpuconv train && python docs/screenshots.py

Needs a Chromium, as the browser's tests do, and the run that `gpuconv train` leaves.
"""

import itertools
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "helpers"), str(ROOT / "benchmarks")]

from browser import chromium  # noqa: E402
from show_latency import started  # noqa: E402

THREE = [
    (0.3, 0.24), (0.42, 0.17), (0.6, 0.2), (0.66, 0.32), (0.56, 0.44), (0.44, 0.48),
    (0.6, 0.53), (0.7, 0.66), (0.62, 0.8), (0.44, 0.84), (0.29, 0.76),
]  # fmt: skip


def main():
    with chromium(1440, 1000) as browser:
        with started(["show", "--port", "0"]) as (url, _):
            look(browser, "light", 1440, 940)
            browser.open(url)
            browser.find("#pad-clear").click()
            browser.draw(smooth(THREE))
            browser.js("gpuconv.select({layer: 4, index: [5, 3, 6]}, false)")
            keep(browser, "page-desktop.png")
            look(browser, "dark", 1440, 940)
            browser.js("gpuconv.select({layer: 3, index: [0, 4, 5]}, false)")
            browser.js(
                "document.querySelector('#layer-1 details, [data-layer=\"1\"] details').open = true"
            )
            keep(browser, "page-dark.png")
            look(browser, "light", 390, 844, phone=True)
            browser.js("gpuconv.select({layer: 4, index: [5, 3, 6]}, true)")
            keep(browser, "page-phone.png")
        with tempfile.TemporaryDirectory() as folder:
            run = ["train", "--show", "--port", "0", "--epochs", "3", "--out", f"{folder}/run"]
            with started(run) as (url, _):
                look(browser, "light", 1440, 940)
                browser.open(url)
                browser.find("#run-start").click()
                browser.until("return gpuconv.training.step() > 1300", seconds=120)
                keep(browser, "page-training.png")
    return 0


def smooth(points, between=6):
    """The points, and some on the straight line between each two."""
    found = [points[0]]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        for k in range(1, between + 1):
            found.append((x0 + (x1 - x0) * k / between, y0 + (y1 - y0) * k / between))
    return found


def look(browser, theme, width, height, phone=False):
    """The window's size and theme."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def keep(browser, name):
    """Save what the window shows, with few colours, so that the file stays small."""
    time.sleep(1.2)
    path = ROOT / "docs" / name
    browser.driver.save_screenshot(str(path))
    picture = Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
