"""The trace explorer in headless Chromium: somebody clicks through it."""

import pytest
from chromium import CHROMIUM, open_browser
from report_runs import HOSTILE, write_run

from r1lab.trace.report import write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
CARDS = '.column[data-column="chosen"] .completion'


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    return write_report(write_run(tmp_path_factory.mktemp("browser") / "<i>run", hostile=True))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser, page_file):
    """The report, just opened; in the end it has thrown nothing, logged nothing, and fetched nothing but itself."""
    browser.open(page_file)
    yield browser
    failures = [event for event in browser.events if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert not failures
    requests = [event["params"]["request"]["url"] for event in browser.events if event["method"].endswith("BeSent")]
    assert {url.partition("#")[0] for url in requests} <= {page_file.resolve().as_uri(), "about:blank"}


def count(page, selector: str) -> int:
    return page.evaluate(f"document.querySelectorAll({selector!r}).length")


def text(page, selector: str) -> str:
    return page.evaluate(f"document.querySelector({selector!r}).textContent")


def test_it_opens_in_the_middle_with_curves_and_three_columns(page):
    assert text(page, "#step-label") == "2 of 4"
    assert count(page, ".column") == 3 and count(page, CARDS) == 4
    assert count(page, ".curve polyline") >= 3 and count(page, ".curve .grid") >= 6
    assert "[object" not in page.evaluate("document.body.innerText")
    assert text(page, CARDS + " .mark-a") == "wait"


def test_hostile_text_is_shown_as_it_is(page):
    page.evaluate("setState({group: 2})")
    shown = page.evaluate(f"[...document.querySelectorAll('{CARDS}')].map(card => card.children[1].textContent)")
    assert sorted(shown) == sorted(one.replace("\ud800", "?") for one in HOSTILE)
    assert page.evaluate("window.hacked") is None
    assert text(page, "h1") == "<i>run" and count(page, "h1 i, .completion img, .completion a, .prompt script") == 0


def test_policy_stops_injected_scripts(browser, page_file):
    browser.open(page_file)
    browser.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.hacked = 5'}))"
    )
    assert browser.evaluate("window.hacked") is None


def test_filters(page):
    page.click('[data-letter="c"]')
    assert count(page, CARDS) == 2 and "2 of 4 hidden" in text(page, '.column[data-column="chosen"]')
    page.click('[data-letter="a"]')
    assert count(page, CARDS) == 1
    assert text(page, "#match-count") == "1 at this step, 4 in all"
    page.click('[data-letter="w"]')  # instead of right, which excludes it
    assert page.evaluate("state.filters") == "aw" and count(page, CARDS) == 0
    page.press("0")
    assert count(page, CARDS) == 4


def test_keys(page):
    page.press("ArrowRight")
    assert text(page, "#step-label") == "3 of 4"
    page.press("End")
    assert text(page, "#step-label") == "4 of 4"
    page.press("Home")
    page.press("ArrowDown")
    assert text(page, "#step-label") == "1 of 4" and text(page, "#group-label").startswith("2 of 3")
    page.press("4")  # aha: in the first group of every step
    page.press("n")
    assert text(page, "#step-label") == "2 of 4" and text(page, "#group-label").startswith("1 of 3")
    page.press("p")
    assert text(page, "#step-label") == "1 of 4"
    page.press("?")
    assert page.evaluate("byId('help').open") is True
    page.press("Escape")
    assert page.evaluate("byId('help').open") is False


def test_shading(page):
    assert count(page, CARDS + " [class*=level-]") > 20
    page.press("s")
    assert page.evaluate("state.shade") == "none" and count(page, CARDS + " [class*=level-]") == 0


def test_curves_choose_the_step(page):
    page.evaluate(
        "(() => { const svg = document.querySelector('.curve svg'), box = svg.getBoundingClientRect();"
        "svg.dispatchEvent(new MouseEvent('click', {clientX: box.right - 2, clientY: box.y + 20})); })()"
    )
    assert text(page, "#step-label") == "4 of 4"


def test_findings_open_their_group(page):
    page.click("#first-aha button")
    assert text(page, "#step-label") == "1 of 4" and text(page, ".found .badge-a") == "aha"
    page.click("#suspects button")
    assert text(page, "#step-label") == "4 of 4" and count(page, CARDS + ".found") == 1


def test_address_keeps_the_choice(page, page_file):
    page.press("End")
    fragment = page.evaluate("location.hash")
    page.open(page_file, fragment=fragment)
    assert text(page, "#step-label") == "4 of 4"
    page.open(page_file, fragment="#group=999&theme=<b>&filters=xyz&shade=nonsense&column=__proto__")
    assert text(page, "#step-label") == "2 of 4"


def test_themes(page, page_file):
    def paper() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = paper()
    page.open(page_file, dark=True)
    dark = paper()
    assert dark != light
    page.click("#theme")
    assert text(page, "#theme") == "Theme: light" and paper() == light
    page.click("#theme")
    assert text(page, "#theme") == "Theme: dark" and paper() == dark


def test_narrow_screens_show_one_column_without_scrolling_sideways(page, page_file):
    page.open(page_file, width=420)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    visible = "[...document.querySelectorAll('.column')].filter(one => one.offsetWidth).map(one => one.dataset.column)"
    assert page.evaluate(visible) == ["chosen"]
    page.click('#tabs [data-column="last"]')
    assert page.evaluate(visible) == ["last"]


def test_a_run_without_completions(browser, tmp_path):
    run = write_run(tmp_path / "run")
    for file in (run / "completions").iterdir():
        file.unlink()
    browser.open(write_report(run))
    browser.press("ArrowRight")
    assert "no completions were recorded" in text(browser, "#notes") and count(browser, ".curve polyline") >= 3
    assert not [event for event in browser.events if event["method"] == "Runtime.exceptionThrown"]
