"""A headless Chromium that looks at a page as a visitor does."""

import base64
import contextlib
import shutil
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

#: Where screenshots are left to look at.
OUTPUT = Path(__file__).parents[1] / "output"
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--force-device-scale-factor=1")
# Pictures that the app has made and that are really there: a spinner, or an element without pixels, does not count.
_LOADED = """
return [...document.querySelectorAll(arguments[0] + ' img')].filter(
    img => img.src.includes('gradio_api/file') && img.complete && img.naturalWidth > 0 && img.offsetParent
).map(img => img.src);
"""


def chromium():
    """Return the paths of Chromium and its driver, or None where one is missing."""
    paths = shutil.which("chromium"), shutil.which("chromedriver")
    return paths if all(paths) else None


@contextlib.contextmanager
def browser(width, height, downloads):
    """Open a window of a size; what it downloads goes to a folder."""
    binary, driver_path = chromium()
    options = Options()
    options.binary_location = binary
    for flag in (*FLAGS, f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver_path))
    try:
        # A window cannot be narrower than 500 pixels, a phone's screen can.
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        allowed = {"behavior": "allow", "downloadPath": str(downloads)}
        driver.execute_cdp_cmd("Browser.setDownloadBehavior", allowed)
        yield Page(driver)
    finally:
        driver.quit()


class Page:
    """What a visitor can see and do."""

    def __init__(self, driver):
        self.driver = driver

    def until(self, condition, what, seconds=60):
        """Wait until a condition holds, and return what it gave."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = condition()
            if found:
                return found
            time.sleep(0.1)
        self.screenshot(OUTPUT / "failed.png")
        raise AssertionError(f"{what}: not within {seconds} s; on the page: {self.text('body')[:500]}")

    def one(self, selector):
        return self.until(lambda: self.driver.find_elements(By.CSS_SELECTOR, selector), selector)[0]

    def text(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector).text

    def click(self, selector, x=0.5, y=0.5):
        """Click at shares of an element's width and height."""
        element = self.one(selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        width, height = element.size["width"], element.size["height"]
        actions = webdriver.ActionChains(self.driver)
        actions.move_to_element_with_offset(element, round((x - 0.5) * width), round((y - 0.5) * height))
        actions.click().perform()

    def drag(self, selector, distance):
        """Press on an element, move to the right by some pixels, and let go."""
        actions = webdriver.ActionChains(self.driver)
        actions.click_and_hold(self.one(selector)).move_by_offset(distance, 0).release().perform()

    def choose(self, selector, label):
        """Choose from a drop-down list."""
        self.click(f"{selector} input")
        options = lambda: [  # noqa: E731
            one for one in self.driver.find_elements(By.CSS_SELECTOR, "[role=option]") if one.text.strip("✓ ") == label
        ]
        self.until(options, label)[0].click()

    def slide(self, selector, value):
        """Move a slider to a value, as a drag does."""
        script = (
            "const range = document.querySelector(arguments[0] + ' input[type=range]'); range.value = arguments[1];"
            "for (const kind of ['input', 'change', 'pointerup'])"
            "    range.dispatchEvent(new Event(kind, {bubbles: true}));"
        )
        self.driver.execute_script(script, selector, value)

    def tab(self, name):
        """Open a tab."""
        buttons = self.driver.find_elements(By.CSS_SELECTOR, "#tabs button[role=tab]")
        (button,) = [one for one in buttons if one.text.strip() == name]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()

    def pictures(self, selector):
        """Return the addresses of the pictures inside an element that are loaded and visible."""
        return self.driver.execute_script(_LOADED, selector)

    def new_pictures(self, selector, count=1, known=(), seconds=90):
        """Wait for so many pictures that were not there before."""

        def found():
            new = [source for source in self.pictures(selector) if source not in known]
            return new if len(new) >= count else None

        return self.until(found, f"{count} new pictures in {selector}", seconds)

    def upload(self, selector, path):
        self.one(f"{selector} input[type=file]").send_keys(str(path))

    def severe(self):
        """Return the errors of the console so far."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def screenshot(self, path):
        """Write the whole page, not the window only."""
        path.parent.mkdir(parents=True, exist_ok=True)
        width, height = self.driver.execute_script("return [innerWidth, document.body.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        path.write_bytes(base64.b64decode(shot["data"]))
