"""The course's page in headless Chromium: a newcomer's way, on a desk and on a phone."""

from __future__ import annotations

import re
import shutil

import pytest
from web_course import served

from processes import LIMIT, eventually
from tunemath.course.book import exercise

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: the dev extra")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
ONE = exercise("1")
PHONE = {"width": 375, "height": 667}
DESK = {"width": 1280, "height": 800}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]  # as in a small container
        found = started.chromium.launch(executable_path=CHROMIUM, args=options)
        yield found
        found.close()


@pytest.fixture
def server(tmp_path):
    with served(tmp_path / "learn") as server:
        yield server


@pytest.fixture
def page(browser, server, request):
    """The page on a screen of a given size; nothing may go wrong in it or leave it."""
    context = browser.new_context(viewport=getattr(request, "param", DESK))
    page = context.new_page()
    page.set_default_timeout(1000 * LIMIT)
    wrong, asked = [], []
    page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url)
    page.wait_for_selector("#count:not(:empty)")  # filled last
    yield page
    context.close()
    assert [text for text in wrong if "409 (Conflict)" not in text] == []  # is asked about
    assert {re.match(r"(\w+:(//)?[^/]*)/", url)[1] for url in asked} <= {
        f"http://{server.hosts[0]}", "blob:http:"
    }  # fmt: skip


PASTE = """source => {
  const clipboardData = new DataTransfer();
  clipboardData.setData("text/plain", source);
  const options = { clipboardData, bubbles: true, cancelable: true };
  document.querySelector(".cm-content").dispatchEvent(new ClipboardEvent("paste", options));
}"""


def write(page, source):
    page.locator(".cm-content").click()
    page.keyboard.press("ControlOrMeta+a")
    page.evaluate(PASTE, source)


def told(page):
    page.wait_for_selector("#result .card, #result img")
    return page.inner_text("#result")


@pytest.mark.parametrize("page", [DESK, PHONE], indirect=True, ids=["desk", "phone"])
def test_a_newcomers_way(page, server):
    def fits():
        return page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    assert page.inner_text("#title") == ONE.title
    assert page.locator("#question math").count() > 0
    assert page.inner_text("#count") == "0 of 10"
    assert "token" not in page.url
    assert fits()

    write(page, ONE.solution.replace("answer.mean()", "np.mean(losses)"))
    page.click("#grade")
    assert "Mean over all tokens." in told(page)
    assert fits()

    page.click("#hint")
    page.wait_for_selector("text=Hint 1 of 3")
    assert "Select them first" in page.inner_text("#hints")

    write(page, ONE.solution)
    page.keyboard.press("ControlOrMeta+Enter")
    page.wait_for_selector("text=Right.")
    assert page.inner_text("#count") == "1 of 10"
    assert fits()

    page.click("#figure")
    page.wait_for_selector("#result img")
    assert page.evaluate("document.querySelector('#result img').decode()") is None
    page.click("#result img")
    page.wait_for_selector("#large img:visible")
    page.keyboard.press("Escape")
    assert page.is_hidden("#large")
    assert fits()
    assert server.api.workspace.source(ONE) == ONE.solution


def test_an_endless_loop_has_a_stop_button(page, server):
    write(page, "print('begun')\nwhile True:\n    pass")
    page.click("#run")
    eventually(server.api._running.locked)
    page.click("#stop")
    page.wait_for_selector("#result .card")
    assert "it was stopped" in told(page)
    assert page.is_hidden("#stop")
    write(page, "print(6 * 7)")
    page.click("#run")
    page.wait_for_selector("#result >> text=42")


def test_a_solution_is_shown_only_after_a_second_yes(page):
    assert page.is_hidden("#solution")
    page.click("#ask-solution")
    page.click("dialog [value=no]")
    assert page.is_hidden("#solution")
    page.click("#ask-solution")
    page.click("dialog [value=yes]")
    page.wait_for_selector("#solution:visible")
    assert "answer.size == 0" in page.inner_text("#solution")


def test_it_begins_again(page, server):
    write(page, "mine")
    page.click("#ask-reset")
    page.click("dialog [value=yes]")
    page.wait_for_selector("#result >> text=01-answer-only-loss.old1.py")
    assert server.api.workspace.source(ONE) == ONE.starter
    assert (server.api.workspace.folder / "01-answer-only-loss.old1.py").read_text() == "mine"


def test_what_an_editor_saved_is_taken_or_asked_about(page, server):
    server.api.workspace.save(ONE, "theirs")
    page.evaluate("dispatchEvent(new Event('focus'))")
    page.wait_for_selector(".cm-content >> text=theirs")
    server.api.workspace.save(ONE, "theirs again")
    write(page, "mine")
    page.click("dialog [value=no]")
    page.wait_for_selector("#saved >> text=Saved")
    assert server.api.workspace.source(ONE) == "mine"


def test_keys_alone_reach_everything(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(10):  # the menu's button is hidden here: these are the ten exercises
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#number >> text=Exercise 10")
    page.locator(".cm-content").focus()
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "grade"


@pytest.mark.parametrize("page", [PHONE], indirect=True)
def test_a_phone_has_the_list_in_a_menu(page):
    assert page.is_hidden("#list")
    page.click("#menu")
    page.click("#list >> text=One number for two things")
    page.wait_for_selector("#number >> text=Exercise 9")
    assert page.is_hidden("#list")
    for number in range(1, 11):
        page.click("#menu")
        page.click(f"#list li:nth-child({number}) a")
        page.wait_for_selector(f"#number >> text=/^Exercise {number}$/")
        page.click("#practice summary") if not page.evaluate("practice.open") else None
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), number
