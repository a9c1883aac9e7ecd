"""The page of examples/demo.py in headless Chromium, as a user sees it: by labels, keys and clicks.

    python tests/page/browser.py --model runs/quickstart/model --picture docs/results/demo.png

Needs the extra `browser`, and Chromium with its driver: on Debian, apt-get install chromium chromium-driver.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

EXAMPLES = Path(__file__).parents[2] / "examples"
HOW = "Chromium and its driver are not here. On Debian: apt-get install chromium chromium-driver"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
SECONDS = 60  # that anything may take
SENTENCE = "It is not without charm, yet I kept looking at my watch."


@contextmanager
def served(model: str) -> Iterator[str]:
    """The demo as a process, for the time of a `with` -> its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(EXAMPLES / "demo.py"), "--model", model, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ}) as process:
        try:
            for _ in range(10 * SECONDS):
                with socket.socket() as client:
                    if client.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None, "the demo ended"
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


class Page:
    """The page in a browser of its own, with nothing of earlier visits.

    Raises:
        RuntimeError: there is no Chromium.
    """

    def __init__(self, address: str, width: int = 1000, height: int = 1250):
        chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
        if chromium is None or driver is None:
            raise RuntimeError(HOW)
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        self._profile = tempfile.mkdtemp()
        for flag in (*FLAGS, f"--user-data-dir={self._profile}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        self.driver = webdriver.Chrome(options, Service(driver))
        self.driver.get(address)
        self.until(lambda: self.labelled("Sentence"))

    def close(self) -> None:
        self.driver.quit()
        shutil.rmtree(self._profile, ignore_errors=True)

    def until(self, found):
        """Wait until a function gives something -> what it gave."""
        return WebDriverWait(self.driver, SECONDS, ignored_exceptions=(Exception,)).until(lambda _: found())

    def labelled(self, label: str):
        """The text field that a label names, as a screen reader finds it."""
        return self.driver.find_element(
            By.XPATH, f"//label[contains(., '{label}')]//*[self::textarea or self::input]"
        )

    def button(self, name: str):
        return self.driver.find_element(By.XPATH, f"//button[normalize-space()='{name}']")

    def type(self, label: str, text: str, *keys: str) -> None:
        field = self.labelled(label)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text, *keys)

    def text(self, selector: str) -> str:
        return self.driver.find_element(By.CSS_SELECTOR, selector).text

    def rows(self) -> list[list[str]]:
        """The table of exits."""
        rows = self.driver.find_elements(By.CSS_SELECTOR, "#exits tbody tr")
        return [[cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td")] for row in rows]

    def answer(self) -> str:
        """The line about the sentence, once the page has timed it."""
        return self.until(lambda: (line := self.text("#answer")) and " ms at full depth" in line and line)

    def picture(self, path: Path) -> None:
        path.write_bytes(self.driver.get_screenshot_as_png())


def main() -> None:
    parser = argparse.ArgumentParser(description="Take the picture of the page.")
    parser.add_argument("--model", default="runs/quickstart/model")
    parser.add_argument("--picture", type=Path, default=Path("docs/results/demo.png"))
    arguments = parser.parse_args()
    with served(arguments.model) as address:
        page = Page(address, height=1000)
        try:
            page.type("Sentence", SENTENCE)
            page.button("Classify").click()
            print(page.answer())
            page.picture(arguments.picture)
        finally:
            page.close()


if __name__ == "__main__":
    main()
