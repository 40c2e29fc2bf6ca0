"""The read-only page in a real, headless Chromium: nothing runs in it, it works by keyboard, light and dark."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any, Literal

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright

from lora_dpo_api.protocol import Advice
from lora_dpo_localcluster import debian

from .page_jobs import EVIL, Jobs, failed, running, served, thousand

# The first test may have to install the browser, which all of them share.
pytestmark = [pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

CONTRAST = """() => {
  const light = color => {
    const [r, g, b] = color.match(/[\\d.]+/g).map(Number).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = node => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if (!/, 0\\)$|transparent/.test(color)) return color;
    }
    return 'rgb(255, 255, 255)';
  };
  const found = [];
  for (const node of document.querySelectorAll('body *')) {
    const words = [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim());
    if (!words || !node.getClientRects().length || node.closest('svg')) continue;
    const [a, b] = [light(getComputedStyle(node).color), light(paper(node))];
    found.push({words: node.textContent.trim(), contrast: (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)});
  }
  return found;
}"""


@pytest.fixture
def known() -> Jobs:
    advice = [Advice(code="FlatMargin", message="Try 1e-5.")]
    return {("team-a", "tiny"): running(advice=advice), ("team-b", "broken"): failed()}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Browser]:
    program = debian.ensure_for_browser(print)
    async with async_playwright() as playwright:
        # The sandbox needs a user of its own; what is shown here is ours.
        made = await playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield made
        await made.close()


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser, known: Jobs) -> AsyncIterator[Page]:
    """A page at the server's address; whatever it complains about fails the test."""
    complaints: list[str] = []
    async with served(known) as server:
        made = await browser.new_page(base_url=str(server.make_url("/")), viewport={"width": 1280, "height": 800})
        made.on("console", lambda line: complaints.append(line.text))
        made.on("pageerror", lambda error: complaints.append(str(error)))
        made.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        yield made
        await made.close()
    assert complaints == []


async def focused(page: Page) -> str:
    """The words of what has the keyboard's focus."""
    found: str = await page.evaluate("document.activeElement.innerText || document.activeElement.id")
    return found.replace("\n", "")


async def test_a_job_is_found_and_opened_by_keyboard_alone(page: Page) -> None:
    await page.goto("/ui")
    await page.keyboard.press("Tab")
    assert await focused(page) == "Skip to the content"
    await page.keyboard.press("Enter")
    assert await page.evaluate("document.activeElement.id") == "main"
    await page.keyboard.press("Tab")
    assert await focused(page) == "q"
    await page.keyboard.type("broken")
    await page.keyboard.press("Enter")
    await page.wait_for_url(re.compile(r"q=broken"))
    assert await page.locator("tbody tr").count() == 1
    for _ in range(20):
        await page.keyboard.press("Tab")
        if await focused(page) == "team-b/broken":
            break
    outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/ui/team-b/broken")
    assert await page.get_by_role("heading", name="Failure: Data/InvalidRow").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/ui", "/ui/team-a/tiny", "/ui/team-b/broken"])
async def test_every_word_can_be_read_in_light_and_in_dark(
    scheme: Literal["light", "dark"], path: str, page: Page
) -> None:
    await page.emulate_media(color_scheme=scheme)
    await page.goto(path)
    paper = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) > 3 * 128) == (scheme == "light")
    words: list[dict[str, Any]] = await page.evaluate(CONTRAST)
    assert len(words) > 10
    assert [word for word in words if word["contrast"] < 4.5] == []


async def test_the_curves_are_drawn(page: Page) -> None:
    await page.goto("/ui/team-a/tiny")
    for name in ("loss", "reward margin", "accuracy"):
        box = await page.get_by_role("img", name=re.compile(name)).bounding_box()
        assert box is not None
        assert box["width"] > 200
    box = await page.locator("svg.loss polyline").bounding_box()
    assert box is not None
    assert box["width"] > 150
    assert box["height"] > 50


async def test_a_strangers_words_are_text_and_nothing_else(page: Page, known: Jobs) -> None:
    known[EVIL, EVIL] = known["team-a", "tiny"] = known["team-a", "tiny"].model_copy(update={"message": EVIL})
    await page.goto("/ui")
    assert await page.locator("tbody tr").count() == 3
    assert EVIL in await page.locator("tbody tr th").first.inner_text()
    assert await page.locator("img, script").count() == 0
    await page.get_by_role("link", name=re.compile("tiny")).click()
    assert EVIL in await page.locator(".message").inner_text()
    assert await page.locator("img, script").count() == 0


async def test_a_thousand_jobs_are_fifty_rows_a_page(page: Page, known: Jobs) -> None:
    known.clear()
    known.update(thousand())
    await page.goto("/ui")
    assert await page.locator("tbody tr").count() == 50
    assert await page.evaluate("document.querySelectorAll('*').length") < 2000
    await page.get_by_role("link", name="Next").click()
    assert await page.get_by_text("1000 jobs, page 2 of 20").is_visible()
    await page.get_by_role("link", name="Failed 334").click()
    assert await page.get_by_text("334 jobs, page 1 of 7").is_visible()


@pytest.mark.parametrize("path", ["/ui", "/ui/team-a/tiny", "/ui/team-b/broken"])
async def test_a_phone_scrolls_no_page_sideways(path: str, page: Page) -> None:
    await page.set_viewport_size({"width": 360, "height": 740})
    await page.goto(path)
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
