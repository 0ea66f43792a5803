"""The page in a real browser: nothing fails, nothing is loaded, brush and filters and sorting work, names stay text.

Debian's chromium and chromium-driver; CVTUNE_BROWSER=must makes their absence a failure. Screenshots are kept below
pytest's temporary folder, or in CVTUNE_SHOTS.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cvtune.report.compare import compare
from cvtune.report.compare import render as render_comparison
from cvtune.report.content import gather
from cvtune.report.page import render
from cvtune.report.pictures import Pictures
from cvtune.results import read_tables
from tests.report.made import ODD, findings, write_study

pytestmark = [pytest.mark.slow, pytest.mark.browser]

BROWSER, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
if BROWSER is None or DRIVER is None:
    assert os.environ.get("CVTUNE_BROWSER") != "must", "no chromium and chromedriver; apt install chromium-driver"
    pytest.skip("needs Debian's chromium and chromium-driver", allow_module_level=True)


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots are kept."""
    folder = Path(os.environ.get("CVTUNE_SHOTS") or tmp_path_factory.mktemp("shots"))
    folder.mkdir(exist_ok=True, parents=True)
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a made-up study of 40 trials with a surface."""
    folder = write_study(tmp_path_factory.mktemp("studies"))
    content = gather(folder, read_tables(folder), findings())
    path = folder / "report.html"
    path.write_text(render(content, Pictures(None, {}, "no images here")))
    return path


@pytest.fixture(scope="module")
def browser(page: Path) -> Iterator[Any]:
    """Chromium with the page open, everything drawn."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in ("--headless=new", "--no-sandbox", "--window-size=1200,1000", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        opened(driver, page)
        yield driver
    finally:
        driver.quit()


def opened(driver: Any, page: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    driver.get(page.as_uri())
    WebDriverWait(driver, 60).until(lambda d: d.execute_script("return document.body.dataset.drawn") == "yes")


def names(driver: Any) -> list[str]:
    """The first column of the table as it stands."""
    found = driver.execute_script(
        "return [...document.querySelectorAll('#table tbody tr td:first-child')].map(x => x.textContent)"
    )
    return [str(name) for name in found]


def column(driver: Any, name: str) -> list[str]:
    place = driver.execute_script(
        "return [...document.querySelectorAll('#table th button')].findIndex(x => x.textContent === arguments[0])", name
    )
    script = "return [...document.querySelectorAll('#table tbody tr')].map(x => x.children[arguments[0]].textContent)"
    return [str(text) for text in driver.execute_script(script, place)]


def test_opens_without_an_error_and_without_a_request(browser: Any, shots: Path) -> None:
    """First: the logs are read once."""
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors
    asked = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.append(message["params"]["request"]["url"])
    assert len([url for url in asked if url.startswith("file:")]) == 1  # the page itself
    assert not [url[:60] for url in asked if not url.startswith(("file:", "data:", "blob:"))]
    browser.save_screenshot(str(shots / "top.png"))


def test_surface_and_parallel_coordinates_are_drawn(browser: Any, shots: Path) -> None:
    heat = browser.execute_script(
        "return document.querySelectorAll('[data-figure=surface] .heatmaplayer image').length"
    )
    stars = browser.execute_script(
        "return document.querySelectorAll('[data-figure=surface] .scatterlayer .point').length"
    )
    assert heat == 1 and stars > 41  # 40 trials, a star, some crosses
    axes = browser.execute_script(
        "return [...document.querySelectorAll('[data-figure=parallel] .axis-title')].map(x => x.textContent)"
    )
    assert axes == ["augment.strength", "regularize.strength", "optim.lr", "optim.name", "epochs", "val_accuracy"]
    ink = """const c = document.querySelector('[data-figure=parallel] canvas.gl-canvas-focus');
      const p = document.createElement('canvas'); p.width = c.width; p.height = c.height;
      Plotly.redraw(document.querySelector('[data-figure=parallel]')); p.getContext('2d').drawImage(c, 0, 0);
      const pixels = p.getContext('2d').getImageData(0, 0, c.width, c.height).data;
      return pixels.filter((v, i) => i % 4 === 3 && v > 0).length;"""
    assert browser.execute_script(ink) > 1000
    browser.execute_script("document.querySelector('#surface').scrollIntoView({behavior: 'instant'})")
    browser.save_screenshot(str(shots / "surface.png"))


def test_sorting_by_click_and_by_keyboard(browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    scores = [float(text) for text in column(browser, "best") if text]
    assert len(names(browser)) == 46 and scores == sorted(scores, reverse=True)
    head = browser.find_element("xpath", "//table[@id='table']//th[.//button[text()='augment.strength']]")
    head.find_element("css selector", "button").send_keys(Keys.ENTER)
    assert head.get_attribute("aria-sort") == "descending"
    strengths = [float(text) for text in column(browser, "augment.strength")]
    assert strengths == sorted(strengths, reverse=True)
    browser.execute_script("arguments[0].click()", head.find_element("css selector", "button"))
    assert head.get_attribute("aria-sort") == "ascending"
    assert [float(text) for text in column(browser, "augment.strength")] == sorted(strengths)
    best = browser.find_element("xpath", "//table[@id='table']//th[.//button[text()='best']]//button")
    browser.execute_script("arguments[0].click()", best)
    blanks = [text == "" for text in column(browser, "best")]
    assert blanks == sorted(blanks) and any(blanks)  # trials without a score come last


def test_filters_take_words_bounds_and_ranges(browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    box = browser.find_element("css selector", "input[aria-label='Filter state']")
    box.send_keys("diverged")
    assert names(browser) == ["00005"]
    assert browser.find_element("id", "count").text == "1 of 46 trials"
    box.send_keys(Keys.BACKSPACE * 8)
    strength = browser.find_element("css selector", "input[aria-label='Filter augment.strength']")
    for text, holds in ((">0.5", lambda v: v > 0.5), ("0.2..0.4", lambda v: 0.2 <= v <= 0.4)):
        strength.send_keys(Keys.BACKSPACE * 8, text)
        kept = [float(v) for v in column(browser, "augment.strength")]
        assert 0 < len(kept) < 46 and all(map(holds, kept))
    browser.execute_script("document.getElementById('reset').click()")
    assert len(names(browser)) == 46 and strength.get_attribute("value") == ""


def test_brushing_an_axis_filters_the_table_and_the_curves(browser: Any, shots: Path) -> None:
    from selenium.webdriver import ActionChains

    node = browser.find_element("css selector", "[data-figure=parallel]")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", node)
    axis = node.find_elements("css selector", ".axis-brush .background-brush, .axis-brush rect")[0]
    height = axis.size["height"]
    drag = ActionChains(browser, duration=100).move_to_element_with_offset(axis, 0, round(-0.45 * height))
    drag.click_and_hold().move_by_offset(0, round(0.4 * height)).release().perform()
    kept = [float(text) for text in column(browser, "augment.strength")]
    assert 0 < len(kept) < 30 and min(kept) > 0.4  # the upper end of the first axis
    drawn = browser.execute_script("return document.getElementById('all-curves').data.flatMap(t => t.text).join(' ')")
    assert set(re.findall(r"trial (\d+)", drawn)) == set(names(browser))
    browser.save_screenshot(str(shots / "brushed.png"))
    browser.execute_script("document.getElementById('reset').click()")
    assert len(names(browser)) == 46


def test_curves_are_colored_by_any_value(browser: Any) -> None:
    from selenium.webdriver.support.ui import Select

    choice = Select(browser.find_element("id", "color"))
    assert {o.get_attribute("value") for o in choice.options} > {"augment.strength", "optim.name", "best", "state"}
    choice.select_by_value("optim.name")
    found = browser.execute_script("return document.getElementById('all-curves').data.map(t => t.name)")
    assert found == ["adamw", "sgd", "best trial"]


def test_an_odd_class_name_stays_text(browser: Any) -> None:
    assert browser.title == "made - cvtune"
    assert browser.execute_script("return document.querySelectorAll('img[onerror], img[src=x]').length") == 0
    shown = browser.execute_script(
        "return [...document.querySelectorAll('#classes th[scope=row]')].map(x => x.textContent)"
    )
    assert ODD in shown


def test_follows_the_readers_colors_and_fits_a_narrow_screen(browser: Any, shots: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    for name, width, scheme in (("dark", 1200, "dark"), ("narrow", 400, "light")):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        metrics = {"width": width, "height": 3000, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(20, 24, 28)") == (scheme == "dark")
        ink = browser.execute_script("return document.querySelector('[data-figure=importance]').layout.font.color")
        assert ink == ("#e6eaee" if scheme == "dark" else "#1c2126")
        # Nothing sticks out, once the figures have followed the window (plotly does so a moment later).
        WebDriverWait(browser, 60).until(
            lambda d, width=width: d.execute_script("return document.documentElement.scrollWidth") <= width
        )
        browser.save_screenshot(str(shots / f"{name}.png"))
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_comparison_draws_the_surfaces_side_by_side(browser: Any, shots: Path, tmp_path: Path) -> None:
    """Last: it leaves the report's page."""
    compared = compare([write_study(tmp_path, "one", 16), write_study(tmp_path, "other", 20, tested=False)])
    page = tmp_path / "compare.html"
    page.write_text(render_comparison(compared))
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get_log("browser"), browser.get_log("performance")  # what the report's page left there
    opened(browser, page)
    drawn = "return document.querySelectorAll('[data-figure^=surface] .heatmaplayer image').length"
    assert browser.execute_script(drawn) == 2
    rows = browser.execute_script("return document.querySelectorAll('#recipes tbody tr').length")
    assert rows == len(compared.differences) > 0
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"]
    assert not [url[:60] for url in urls if not url.startswith(("file:", "data:", "blob:"))]
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    browser.save_screenshot(str(shots / "compare.png"))
