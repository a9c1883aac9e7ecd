"""examples/demo.py in a real browser: types, clicks, moves the slider, reads what comes, downloads a file.

`make test-browser` installs what it needs but Chromium.
"""

import re
from pathlib import Path

import pytest
from browser import Page, served
from scored import TEXTS, expected, save_classifier
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from tiny import write_rows


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_classifier(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def page(model):
    with served(model) as address:
        page = Page(address)
        yield page
        page.close()


def test_a_sentence_is_typed_and_each_exit_is_read(page, model):
    (wanted,) = expected(model, [TEXTS[0]])
    page.type("Sentence", TEXTS[0])
    page.button("Classify").click()
    line = page.answer()
    assert line.startswith(wanted["label"]) and f"after layer {wanted['exit_layer']} of 4" in line
    rows = page.rows()
    assert [row[0] for row in rows] == ["1 of 4", "2 of 4", "3 of 4", "4 of 4"]
    states = [row[3] for row in rows]
    assert states.index("leaves") == wanted["exit_layer"] - 1
    assert rows[wanted["exit_layer"] - 1][1] == wanted["label"]


def test_the_slider_moves_with_keys_and_changes_the_exit(page):
    """Home asks for certainty: nobody leaves early. End lets everybody out at once."""
    slider = page.driver.find_element(By.CSS_SELECTOR, "input[type=range]")
    assert "Threshold" in (slider.get_attribute("aria-label") or "")
    for key, layer in ((Keys.HOME, 4), (Keys.END, 1)):
        slider.send_keys(key)
        page.type("Sentence", f"{TEXTS[1]} {layer}", Keys.ENTER)
        page.until(lambda layer=layer: f"after layer {layer} of 4" in page.answer())


def test_the_page_has_labels_for_screen_readers(page):
    status = page.driver.find_element(By.ID, "answer")
    assert (status.get_attribute("role"), status.get_attribute("aria-live")) == ("status", "polite")
    assert page.driver.find_element(By.CSS_SELECTOR, "#exits caption").text
    meters = page.driver.find_elements(By.CSS_SELECTOR, "#exits meter")
    assert len(meters) == 4
    assert all(re.fullmatch(r"confidence \d+%", meter.get_attribute("aria-label")) for meter in meters)
    for name in ("Sentence", "Classify"):
        assert name in page.driver.page_source
    unnamed = page.driver.execute_script(
        "return [...document.querySelectorAll('button')].filter(b => b.offsetParent"
        " && !(b.innerText.trim() || b.ariaLabel || b.title)).length"
    )
    assert unnamed == 0


def test_a_file_is_labelled(page, model, here):
    write_rows("few.csv", [{"text": text} for text in TEXTS[:12]])
    page.driver.find_element(By.XPATH, "//button[@role='tab'][contains(., 'A file')]").click()
    upload = page.until(lambda: page.driver.find_element(By.CSS_SELECTOR, "input[type=file]"))
    upload.send_keys(str(Path("few.csv").resolve()))
    page.until(lambda: "few.csv" in page.driver.page_source)
    page.until(lambda: page.button("Classify the file").is_displayed())
    page.button("Classify the file").click()
    line = page.until(lambda: (found := page.text("#file-answer")) and "12 rows" in found and found)
    assert "0 with an error" in line and "of the layers run" in line
    label = expected(model, TEXTS[:1])[0]["label"]
    page.until(lambda: label in page.driver.page_source and "few-labels.csv" in page.driver.page_source)


def test_a_picture(page, tmp_path):
    page.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG") and (
        tmp_path / "page.png"
    ).stat().st_size > 10_000
