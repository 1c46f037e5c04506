"""A headless Chromium for the page's tests, and how they read what it shows."""

import contextlib
import json
import os
import shutil
import time

import numpy as np
import pytest

# A layer's canvas, in sight, and where one of its values lies, from the canvas's middle.
MIDDLE_OF = """
const [layer, index] = arguments;
gpuconv.node.close();
const canvas = document.querySelector(`[data-layer="${layer}"] canvas[tabindex]`);
canvas.scrollIntoView({ block: "center", behavior: "instant" });
const box = gpuconv.layers.boxOf({ layer, index });
if (!box) return null;
const [x, y, width, height] = box;
const [right, down] = [width - canvas.offsetWidth - 1, height - canvas.offsetHeight - 1];
return [canvas, x + right / 2, y + down / 2];
"""
CHROMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextlib.contextmanager
def chromium(width=1400, height=1000):
    """A driver of a browser without a window. Skips, and says why, where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program = next(filter(None, map(shutil.which, CHROMES)), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        missing = "chromium" if program is None else "chromedriver"
        pytest.skip(f"there is no {missing} (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (
        "--headless=new",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        f"--window-size={width},{height}",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(argument)
    if os.getuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        browser.set_script_timeout(30)
        yield Browser(browser)
    finally:
        browser.quit()


class Browser:
    """What the tests do in the page, with the mouse and the keyboard, and read there."""

    def __init__(self, driver):
        self.driver = driver
        self.requested = []  # every address that any page asked for
        self.complaints = []  # what stood in the console

    def open(self, url):
        self.logs()
        self.requested.clear()  # those of the page before
        self.complaints.clear()
        self.driver.get(url)
        self.until("return window.gpuconv && gpuconv.page && gpuconv.page.ran > 0")

    def js(self, code, *given):
        return self.driver.execute_script(code, *given)

    def until(self, code, *given, seconds=30):
        """What the code returns, once that is true."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.js(code, *given)
            if found:
                return found
            if time.monotonic() > deadline:
                shown = self.js("return document.getElementById('problem')?.textContent")
                pytest.fail(f"the page never came to: {code} {given} (it says: {shown!r})")
            time.sleep(0.01)

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def text(self, selector):
        return self.js("return document.querySelector(arguments[0]).textContent", selector)

    def logs(self):
        """Take over what the browser logged since the last time."""
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])
        self.complaints += [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] in ("SEVERE", "WARNING")
        ]

    def actions(self):
        from selenium.webdriver.common.action_chains import ActionChains

        return ActionChains(self.driver, duration=5)

    def draw(self, *strokes):
        """Draw on the pad with the mouse: strokes of points (x, y) from 0 to 1."""
        before = self.js("return gpuconv.page.ran")
        pad = self.find("#pad")
        self.js("arguments[0].scrollIntoView({block: 'center'})", pad)
        width, height = pad.size["width"], pad.size["height"]
        actions = self.actions()
        for stroke in strokes:
            for number, (x, y) in enumerate(stroke):
                at = (x - 0.5) * width, (y - 0.5) * height
                actions.move_to_element_with_offset(pad, *map(round, at))
                if number == 0:
                    actions.click_and_hold()
            actions.release()
        actions.perform()
        self.until("return gpuconv.page.ran > arguments[0]", before)
        self.settle()

    def settle(self):
        """Wait until the page has run the picture that is on its pad."""
        self.until("return gpuconv.page.settled()")

    def picture(self):
        """The pixels that the page gives the network."""
        found = self.js("const p = gpuconv.pad.picture(); return [p.shape, [...p.pixels]]")
        return np.array(found[1], np.uint8).reshape(found[0])

    def open_node(self, layer, index):
        """Click a value of a layer with the mouse, and wait for the inspector."""
        canvas, x, y = self.until(MIDDLE_OF, layer, list(index))
        self.actions().move_to_element_with_offset(canvas, round(x), round(y)).click().perform()
        self.until(
            "return document.getElementById('node').dataset.shown === arguments[0]",
            json.dumps([layer, list(index)], separators=(",", ":")),
        )

    def shown_parts(self):
        """The numbers of the inspector's equation, by name, as they can be read."""
        found = self.js(
            "return [...document.querySelectorAll('#node-body [data-part]')]"
            ".map(e => [e.dataset.part, e.textContent])"
        )
        return {name: number(text) for name, text in found}

    def shown_terms(self):
        """The rows of the table of products: inputs, weights, products."""
        rows = self.until(
            "const fold = document.querySelector('#node details.all-terms'); fold.open = true;"
            "return fold.querySelector('table') && [...fold.querySelectorAll('tbody tr')]"
            ".map(row => [...row.querySelectorAll('td')].map(cell => cell.textContent))"
        )
        return np.array([[number(cell) for cell in row] for row in rows], np.float32)

    def shown_window(self):
        """The values of a pooling window, and the place of its winner."""
        found = self.js(
            "return [...document.querySelectorAll('#node table.window td')]"
            ".map(cell => [cell.textContent, cell.classList.contains('winner')])"
        )
        winner = [i for i, (_, wins) in enumerate(found) if wins]
        return np.array([number(text) for text, _ in found], np.float32), winner


def number(text):
    """A number as the page writes it."""
    return float(text.replace("\u2212", "-"))
