"""The report in a real browser: sorting, filtering, evidence, and paper text that wants to be a script."""

import json
import shutil

import pytest

from tests.commands import qaray
from tests.conftest import make_paper, write_jsonl

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Chromium and its driver are not installed")
FLAGS = (
    "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync", "disable-dev-shm-usage",
)  # fmt: skip
EVIL = (
    '<script>document.title = "owned"</script> <img src=x onerror="document.title = \'owned\'"> </script> {{ 7 * 7 }}'
)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A generated and evaluated run of eight papers, one of which holds HTML."""
    folder = tmp_path_factory.mktemp("report")
    papers = [make_paper(i, title=f"Paper number {i}") for i in range(8)]
    papers[2] |= {"title": EVIL, "txt": f"{EVIL} " + papers[2]["txt"], "doi": EVIL, "keywords": [EVIL]}
    file = write_jsonl(folder / "papers.jsonl", papers)
    args = ("--engine", "echo", "--output_dir", folder / "out")
    for line in (("generate", "--file_path", file, "--num_qas", "3"), ("evaluate",)):
        done = qaray(*line, *args)
        assert done.returncode == 0, done.stderr
    return folder / "out" / "report"


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(f"--{flag}")
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    from selenium.webdriver.chrome.service import Service

    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_window_size(1400, 900)
    yield driver
    driver.quit()


def test_the_index_sorts_and_filters(report, browser):
    browser.get(f"file://{report}/index.html")
    shown = "[...document.querySelectorAll('#papers tbody tr')].filter(r => !r.hidden)"
    rows = f"return {shown}.map(r => r.cells[{{}}].innerText)"
    assert len(browser.execute_script(rows.format(0))) == 8
    heading = next(h for h in browser.find_elements("css selector", "#papers th button") if h.text == "Coverage")
    column = browser.execute_script("return arguments[0].closest('th').cellIndex", heading)
    for ascending in (True, False):
        heading.click()
        values = [float(v) for v in browser.execute_script(rows.format(column))]
        assert values == sorted(values, reverse=not ascending)
    browser.find_element("id", "filter").send_keys("test.000005 PAPER")
    assert [t.split("\n")[0] for t in browser.execute_script(rows.format(0))] == ["Paper number 5"]
    assert browser.find_element("id", "shown").text == "1 of 8 shown"
    assert len(browser.find_elements("css selector", ".figures img")) >= 6
    assert browser.get_log("browser") == []


def test_a_click_on_a_pair_marks_its_evidence(report, browser):
    browser.get(f"file://{report}/papers/000001.html")
    evidence = json.loads(browser.find_element("id", "evidence").get_attribute("textContent"))
    marked = (
        "return [...document.querySelectorAll('.text span')].flatMap((s, i) => s.classList.contains('hit') ? [i] : [])"
    )
    pairs = browser.find_elements("css selector", "button.pair")
    assert len(pairs) == len(evidence) == 3
    assert browser.execute_script(marked) == []
    for number in (1, 2):
        pairs[number].click()
        assert browser.execute_script(marked) == sorted(place for place, _ in evidence[number])
    pairs[2].click()
    assert browser.execute_script(marked) == []
    images = "return [...document.images].every(i => i.complete && i.naturalWidth > 100)"
    assert browser.execute_script(images)
    assert len(browser.find_elements("css selector", ".figures img")) == 3
    assert browser.get_log("browser") == []


def test_text_of_a_paper_is_text(report, browser):
    for page in ("papers/000003.html", "index.html"):
        browser.get(f"file://{report}/{page}")
        assert browser.title != "owned"
        assert EVIL in browser.execute_script("return document.body.textContent")
        assert browser.execute_script("return document.querySelectorAll('script:not([type])').length") == 1
        assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [1400, 420])
def test_nothing_is_wider_than_the_page(report, browser, width):
    browser.set_window_size(width, 900)
    for page in ("index.html", "papers/000001.html", "papers/000003.html"):
        browser.get(f"file://{report}/{page}")
        inner = browser.execute_script(
            "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert inner[0] <= inner[1], page
