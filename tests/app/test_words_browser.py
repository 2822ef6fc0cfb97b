"""The page in the reader's language: every screen in Chinese and in Portuguese, the user's own words as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from PIL import Image

from gradio_app.workspace import Workspace
from tests.app.browser import Page, expect, shot, watched
from tests.app.helpers import served
from tests.app.test_access import barriers

pytestmark = pytest.mark.browser
SCREENS = ("dataset", "recipe", "compare", "library", "system", "help", "train")
# An English phrase or word, on a page that is Chinese; and the names that stay as they are.
ENGLISH = re.compile(r"[A-Za-z]{2,} [a-z]{2,}|\b[A-Z][a-z]{3,}")
NAMES = re.compile(
    r"Tuner|Alpha|ControlNet|Apache-2\.0|Python|English|Português|Linux \w+|Huber c|SNR gamma|\d+ bytes|\S*/\S*"
    r"|\S+\.png|.* \d{4}, \d\d:\d\d"
)
# Everything on the screen that is not the user's own, and what is known of it but was not translated.
VISIBLE = """() => {
  const own = (n) => n.closest('[translate="no"], script, style, textarea, code');
  const seen = (n) => n.getClientRects().length && getComputedStyle(n).visibility !== "hidden";
  const found = new Set();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n = walk.nextNode(); n; n = walk.nextNode())
    if (n.data.trim() && !own(n.parentElement) && seen(n.parentElement)) found.add(n.data.trim());
  for (const name of ["aria-label", "title", "placeholder", "alt"])
    for (const n of document.querySelectorAll(`[${name}]`))
      if (n.getAttribute(name) && !own(n) && seen(n)) found.add(n.getAttribute(name).trim());
  return [...found];
}"""
FORGOTTEN = f"() => ({VISIBLE})().filter((text) => Tuner.words.say(text) !== text)"
BUDGET = 10.0


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app with a data set whose captions are words of the interface."""
    home = tmp_path_factory.mktemp("words") / "home"
    workspace = Workspace(home)
    name = workspace.datasets.create("mine")
    for i, text in enumerate(("Train", "Stop", "24 pictures, all with captions. Click a caption to change it.")):
        Image.new("RGB", (64, 64), (80 * i, 90, 120)).save(workspace.datasets.folder(name) / f"picture-{i}.png")
        (workspace.datasets.folder(name) / f"picture-{i}.txt").write_text(text, encoding="utf-8")
    with served(home, "0.05") as where:
        yield where


def opened(page: Page, name: str) -> None:
    """Open a screen, whatever its tab says, and wait until nothing known on it is English."""
    page.locator(f"#screens button[role=tab][data-tab-id={name}]:visible").first.click()
    expect(page.locator(f"#{name} .t-widget")).to_be_visible()
    page.wait_for_function(f"() => ({FORGOTTEN})().length === 0")


def title(page: Page, name: str) -> str:
    """What the tab of a screen says."""
    return page.locator(f"#screens button[role=tab][data-tab-id={name}]:visible").first.inner_text().strip()


def costs(page: Page) -> float:
    """Milliseconds for each second in which a training is drawn, over three redraws at least."""
    before = page.evaluate("({ ...Tuner.words.spent, at: performance.now() })")
    page.wait_for_function("([n]) => Tuner.words.spent.times >= n + 3", arg=[before["times"]])
    after = page.evaluate("({ ...Tuner.words.spent, at: performance.now() })")
    return (after["ms"] - before["ms"]) / max(1.0, (after["at"] - before["at"]) / 1000)


def test_chinese_on_every_screen_and_the_users_words_as_they_are(address: str) -> None:
    with watched(locale="zh-CN") as (window, _):
        page = window.new_page()
        page.goto(f"{address}?tab=dataset")
        expect(page.locator(".t-card").first).to_be_visible()
        assert page.evaluate("document.documentElement.lang") == "zh-CN"
        page.locator("#dataset select").first.select_option("mine")
        expect(page.locator(".t-caption > span")).to_have_count(3)
        expect(page.locator(".t-caption > span").nth(0)).to_have_text("Train")
        expect(page.locator(".t-caption > span").nth(1)).to_have_text("Stop")
        expect(page.locator(".t-caption > span").nth(2)).to_have_text(re.compile("^24 pictures, all with captions"))
        assert page.locator(".t-art img").first.get_attribute("alt") == "Train"
        expect(page.locator("#dataset ~ * .t-plan, .t-plan").first).to_have_text(
            "3 张图片，均有标注。点击标注即可修改。"
        )
        page.locator("#dataset select").first.select_option("demo")
        expect(page.locator(".t-card")).to_have_count(24)
        opened(page, "recipe")
        page.locator("#start").click()
        expect(page.locator("#train .t-band h2")).to_have_text(re.compile("^(训练中，第|启动中|准备|加载模型|完成)"))
        english = {}
        for name in SCREENS:
            opened(page, name)
            shot(page, f"{name}-zh-CN")
            texts = [t for t in page.evaluate(VISIBLE) if not re.search(r"[\u4e00-\u9fff]", t)]
            english |= {t: name for t in texts if ENGLISH.search(NAMES.sub("", t))}
        assert english == {}
        spent = costs(page)
        print(f"translating what a training draws: {spent:.2f} ms a second")
        assert spent <= BUDGET
        assert barriers(page) == []


def test_portuguese_and_the_switch_back(address: str) -> None:
    with watched(locale="pt-BR") as (window, _):
        page = window.new_page()
        page.goto(f"{address}?tab=dataset")
        expect(page.locator(".t-card").first).to_be_visible()
        for name in SCREENS:
            opened(page, name)
            shot(page, f"{name}-pt-BR")
        assert (title(page, "train"), title(page, "dataset")) == ("Treinar", "Dados")
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
        assert barriers(page) == []
        switch = page.locator(".t-language select")
        switch.select_option("en")
        assert (title(page, "train"), title(page, "dataset")) == ("Train", "Dataset")
        assert page.evaluate("document.documentElement.lang") == "en"
        expect(page.get_by_label("Language", exact=True)).to_be_visible()
        switch.select_option("zh-CN")
        assert title(page, "train") == "训练"
        page.reload()
        expect(page.locator("#train .t-widget")).to_be_visible()
        expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
        expect(page.locator("#screens button[role=tab][data-tab-id=train]:visible").first).to_have_text("训练")
        page.locator(".t-language select").select_option("")
        assert title(page, "train") == "Treinar"
