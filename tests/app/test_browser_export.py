"""From Compare to files in headless Chromium: choose a checkpoint, export it, see it proven, download, publish."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradio_app.workspace import Workspace
from tests.app.helpers import served
from tests.app.test_compare_tab import foreign_file
from tests.app.test_export_page import RUN, run_with_checkpoint

pytestmark = pytest.mark.browser
browser = pytest.importorskip("tests.app.browser", reason="playwright or a browser is missing")
access = pytest.importorskip("tests.app.test_access")

expect = browser.expect


def test_export_this_one(context: browser.Window, tmp_path: Path) -> None:
    run_with_checkpoint(Workspace(tmp_path / "home").runs / RUN, tmp_path / "pictures")
    page = context[0].new_page()
    with served(tmp_path / "home", "0.01") as address:
        page.goto(f"{address}?tab=compare")
        choose(page)
        write(page)
        download(page)
        go_on_to_publish(page)
        export_from_elsewhere(page, foreign_file(tmp_path / "bent one.safetensors"))


def choose(page: browser.Page) -> None:
    """One of the checkpoints, not compared before."""
    page.get_by_text("Checkpoints (1)").click()
    choice = page.locator("#compare .t-contender.t-step").get_by_role("button", name="Choose cat, step 50 for export")
    choice.click()
    expect(choice).to_have_attribute("aria-pressed", "true")
    browser.shot(page, "compare-chosen")
    assert access.barriers(page) == []
    page.locator("#compare-export").click()


def write(page: browser.Page) -> None:
    """Two of the formats, in bf16."""
    expect(page.locator("#library").get_by_role("heading", name="Export")).to_be_visible()
    expect(page.locator("#library")).to_contain_text("cat, step 50")
    page.locator("#x-kohya").uncheck()
    page.locator("#x-precision").select_option("bf16")
    browser.shot(page, "export")
    assert access.barriers(page) == []
    page.locator("#x-write").click()
    expect(page.locator(".t-proof")).to_have_text(["loads in diffusers", "loads in ComfyUI"])
    browser.shot(page, "export-done")
    assert access.barriers(page) == []


def download(page: browser.Page) -> None:
    """One click, one file."""
    with page.expect_download() as fetched:
        page.get_by_role("link", name="Download step-000050.safetensors for ComfyUI").click()
    assert fetched.value.suggested_filename == "step-000050.safetensors"
    assert b"--precision=bf16 --metadata=share" in Path(fetched.value.path()).read_bytes()


def go_on_to_publish(page: browser.Page) -> None:
    """The files that were written are those that would be sent; the page is still there after a look elsewhere."""
    page.locator("#x-publish").click()
    expect(page.get_by_role("heading", name="Publish")).to_be_visible()
    page.locator("#p-repo").fill("me/cat")
    page.locator("#p-look").click()
    expect(page.locator(".t-pub-files")).to_contain_text("comfyui/step-000050.safetensors")
    browser.tab(page, "Compare")
    expect(page.locator("#c-prompts")).to_be_visible()
    browser.tab(page, "Library")
    expect(page.locator(".t-pub-files")).to_be_visible()
    page.get_by_role("button", name="Back to the library").click()
    expect(page.locator(".t-lib > li")).to_have_count(2)


def export_from_elsewhere(page: browser.Page, file: Path) -> None:
    """A file added in the library; what does not load as it should is said."""
    page.set_input_files("#l-file", str(file))
    row = page.locator(".t-lib > li", has=page.get_by_label("Name of bent-one.safetensors"))
    expect(row).to_contain_text("Adapter from elsewhere")
    browser.shot(page, "library-all")
    assert access.barriers(page) == []
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate(access.WIDER) <= 0, "on a phone the page scrolls sideways"
    page.set_viewport_size({"width": 1280, "height": 720})
    row.get_by_role("button", name="Export").click()
    expect(page.locator("#library").get_by_role("heading", name="Export")).to_be_visible()
    if page.locator("#x-family").count():  # the engine has not looked at it yet
        page.locator("#x-family").select_option("flux1")
    page.locator("#x-write").click()
    expect(page.locator(".t-proof.t-wrong").first).to_be_visible()
    expect(page.locator(".t-written")).to_contain_text("not the trained one")
    expect(page.locator("#x-publish")).to_have_count(0)
    browser.shot(page, "export-wrong")
