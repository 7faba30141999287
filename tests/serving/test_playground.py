"""S11: the page in a real browser. Skipped where no Chromium is installed."""

import json
import shutil

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
INJECTED = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script> & a harbour"
SIZES = {"desktop": (1280, 860), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        # A container without user namespaces has no sandbox; all that is opened is our own page.
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


EXAMPLES = {
    "sentiment": ["What an ending."],
    "qa": [{"question": "Who sang?", "context": "Ada sang. Tom slept."}],
    "translation": [{"text": "A dog.", "instruction": "Translate:"}],
}


@pytest.fixture
def site(serve, model):
    """Address of a served tiny model, with inputs to try for some of its tasks."""
    tasks = model.system.config.tasks
    for name, examples in EXAMPLES.items():
        tasks[name] = tasks[name].model_copy(update={"examples": examples})
    _, client = serve()
    return str(client.base_url)


@pytest.fixture(params=SIZES)
def page(request, browser, site):
    """The page, open, at the width of a desktop or a phone; no test may leave a console error or ask another host."""
    width, height = SIZES[request.param]
    context = browser.new_context(viewport={"width": width, "height": height})
    opened = context.new_page()
    said, asked = [], []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda sent: asked.append(sent.url))
    opened.goto(site)
    # The examples come with the server's answer, after the page itself.
    expect(opened.get_by_role("button", name=next(reversed(EXAMPLES)), exact=True)).to_be_visible()
    yield opened
    context.close()
    # Of a refused request the browser itself speaks; that is not an error of the page.
    assert [text for text in said if not text.startswith("Failed to load resource")] == []
    assert [url for url in asked if not url.startswith(site) and not url.startswith("data:")] == []
    assert any(url.endswith("/v1/tasks") for url in asked)


def answered(page, text):
    """Type a text, send it with the keyboard, and wait. Gives what the server said, and what is shown as the answer."""
    page.get_by_label("Text or question").fill(text)
    with page.expect_response("**/v1/predict") as caught:
        page.keyboard.press("Control+Enter")
    expect(page.get_by_role("button", name="Answer", exact=True)).to_be_enabled()
    return caught.value, page.locator("#answer .said").inner_text()


def test_typing_gives_an_answer_and_how_it_was_routed(page):
    """Fails if the page shows other things than the server said, or its bars are not of the probabilities."""
    response, shown = answered(page, "A slow start but what an ending.")
    answer = response.json()
    names = ("label", "answer", "summary_text", "generated_text", "translation_text")
    assert shown == (str(next(answer[name] for name in names if name in answer)).strip() or "(nothing)")
    probabilities = answer["routing"]["probabilities"]
    page.wait_for_timeout(500)
    for task, share in probabilities.items():
        row = page.locator(f'#bars li[data-task="{task}"]')
        assert row.locator(".share").inner_text() == f"{100 * share:.1f} %"
        bar, track = (row.locator(name).bounding_box() for name in (".bar", ".track"))
        assert bar["width"] == pytest.approx(share * track["width"], abs=1.0)
    assert page.locator("#bars .chosen").get_attribute("data-task") == answer["task"]
    sure = f"{100 * answer['routing']['confidence']:.1f} % sure of {answer['routing']['predicted_task']}"
    assert sure in page.locator("#verdict").inner_text()


def test_another_task_answers_when_it_is_chosen(page):
    """Fails if the chosen task is not sent, or the verdict does not say that it was forced."""
    page.get_by_label("Task", exact=True).select_option("translation")
    response, _ = answered(page, "Two children are playing in the snow.")
    assert json.loads(response.request.post_data)["task_hint"] == "translation"
    expect(page.locator("#answer .hint")).to_contain_text("by translation")
    expect(page.locator("#verdict")).to_contain_text("You asked translation to answer.")


def test_the_answer_is_marked_in_its_context(page):
    """Fails if the marked characters are not those of the answer; the context begins with one of two UTF-16 units."""
    page.get_by_text("Context, instruction and choices").click()
    context = "\U0001f6a2 The ferry left at noon and stopped at Lindholm."
    page.get_by_label("Context, or second text").fill(context)
    page.get_by_label("Task", exact=True).select_option("qa")
    answer = answered(page, "Where did it stop?")[0].json()
    assert page.locator(".passage").inner_text() == context
    assert page.locator(".passage mark").inner_text() == context[answer["start"] : answer["end"]] == answer["answer"]


def test_what_the_other_tasks_make_of_it(page):
    """Fails if a task is missing, or the one that answered is asked again."""
    first = answered(page, "A slow start but what an ending.")[0].json()["task"]
    page.get_by_role("button", name="What the other tasks make of it").click()
    expect(page.locator("#others h3").first).to_be_visible()
    # Without a context nothing is asked of the task that needs one.
    everything = page.locator("#task option").all_inner_texts()[1:-1]
    assert len(everything) == 5
    expected = [task for task in everything if task not in (first, "qa")]
    assert page.locator("#others h3").all_inner_texts() == expected


def test_markup_in_an_input_is_text(page):
    """Fails if what was typed becomes part of the page: as an answer, in its context, or in an error."""
    page.get_by_text("Context, instruction and choices").click()
    page.get_by_label("Context, or second text").fill(INJECTED)
    page.get_by_label("Task", exact=True).select_option("qa")
    answered(page, INJECTED)
    assert page.locator(".passage").inner_text() == INJECTED
    page.route("**/v1/predict", lambda route: route.fulfill(status=200, json=poisoned()))
    assert answered(page, "again")[1] == INJECTED
    expect(page.locator("#bars")).to_contain_text("<img")
    assert page.locator("#answer img, #answer script, #bars img, #bars script").count() == 0
    assert page.title() == "DYNAMO playground"


def poisoned():
    """An answer in which every string is markup."""
    routing = {"predicted_task": INJECTED, "confidence": 1.0, "rejected": False, "probabilities": {INJECTED: 1.0}}
    return {"task": "summarization", "summary_text": INJECTED, "routing": routing}


def test_an_error_is_said_and_the_page_goes_on(page):
    """Fails if an error is swallowed, or the button stays disabled after it."""
    failure = {"error": "full: come back later", "error_type": "Overloaded"}
    page.route("**/v1/predict", lambda route: route.fulfill(status=429, json=failure), times=1)
    page.get_by_label("Text or question").fill("A harbour.")
    page.get_by_role("button", name="Answer", exact=True).click()
    expect(page.get_by_role("alert")).to_have_text("full: come back later")
    expect(page.get_by_role("button", name="Answer", exact=True)).to_be_enabled()
    answered(page, "A harbour.")
    expect(page.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_axe_finds_nothing_serious(page, site, path):
    """Fails with missing labels, too little contrast, or areas that the keyboard does not reach."""
    page.goto(f"{site}{path}")
    if path == "/":
        page.get_by_role("button", name="qa", exact=True).click()
        expect(page.locator("#answer .hint")).to_contain_text("ms")
    found = Axe().run(page).response["violations"]
    assert [
        (fault["id"], fault["nodes"][0]["html"]) for fault in found if fault["impact"] in ("serious", "critical")
    ] == []


def test_everything_is_reached_by_keyboard(page):
    """Fails if an example, a field or the button is left out of the tab order, or nothing fits on the page's width."""
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert reached[:4] == [*EXAMPLES, "text"]
    assert {"task", "send"} <= set(reached)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
