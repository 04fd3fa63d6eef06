"""The page of tools/playground.py in a real browser: masks drawn by the mouse, clicks, files dropped and saved."""
import base64
import json
import re

import numpy as np
import pytest
from PIL import Image

from data.mask_generators import read_mask

from .browser import CHROMIUM, Browser
from .processes import start

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome")]
IS_DONE = "document.body.ariaBusy === 'false'"
LINES = "[...document.querySelectorAll('article p')].map(line => line.textContent)"


@pytest.fixture(scope="module")
def url(pretrained_run, images):
    """Address of a playground with two models, whose units are 8 of 32 pixels, and 11 images."""
    process = start("tools/playground.py", images / "val", "--port", 0, "--device", "cpu", "--models",
                    *[pretrained_run / "ckpt_epoch_0.pth"] * 2)
    yield re.search(r"http\S+", process.stdout.readline())[0]
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def page(opened, url):
    """The page, when both models have reconstructed the first image under the first mask."""
    opened.requests.clear()
    opened.problems.clear()
    opened.open(url)
    opened.wait_for(f"document.querySelectorAll('figure').length === 10 && {IS_DONE}")
    yield opened
    assert all(request.startswith((url, "data:")) for request in opened.requests)  # nothing comes from elsewhere
    assert opened.problems == []


def wait_for_lines(page, beginning):
    """Until both models say so."""
    page.wait_for(f"{IS_DONE} && {LINES}.every(line => line.startsWith({json.dumps(beginning)}))")


def test_mask_drawn_by_the_mouse_is_reconstructed(page, tmp_path):
    wait_for_lines(page, "62% hidden")  # 10 of 16 units
    before = np.array(page.value("mask"))
    page.drag(page.place("#canvas", 0.1, 0.1), page.place("#canvas", 0.9, 0.1))  # along the first row of units
    drawn = before.copy()
    drawn[:2] = 1 - before[0, 0]
    assert (np.array(page.value("mask")) == drawn).all()
    wait_for_lines(page, f"{drawn.mean():.0%} hidden")
    page.screenshot(tmp_path / "page.png")
    (left, top), (right, bottom) = (map(round, page.place("#canvas", share, share)) for share in (0, 1))
    canvas = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"), dtype=float)[top:bottom, left:right]
    spread = canvas.reshape(4, canvas.shape[0] // 4, 4, canvas.shape[1] // 4, 3)[:, 9:-9, :, 9:-9].std(axis=(1, 3)).mean(axis=2)
    hidden = drawn[::2, ::2].astype(bool)
    assert spread[hidden].max() < spread[~hidden].min()  # grey lies over noise


def test_click_hides_a_unit_and_shows_it_again(page):
    before = page.value("mask")
    page.click("#canvas")
    assert page.value("mask") != before
    page.click("#canvas")
    assert page.value("mask") == before


def test_buttons_change_the_mask(page):
    page.click("#draw")
    wait_for_lines(page, "62% hidden")
    page.click("#invert")
    wait_for_lines(page, "38% hidden")
    page.value("Object.assign(document.getElementById('kind'), {value: 'square'}).dispatchEvent(new Event('change'))")
    page.value("Object.assign(document.getElementById('ratio'), {value: 25}).dispatchEvent(new Event('input'))")
    wait_for_lines(page, "25% hidden")
    rows, columns = np.nonzero(page.value("mask"))
    assert np.ptp(rows) == np.ptp(columns) == 3  # 2 units of 2 cells


def test_mask_that_leaves_nothing_to_do_is_said_where_the_pictures_were(page):
    page.click("#clear")
    wait_for_lines(page, "mask hides 0 of 64 patches")
    assert page.value("document.querySelectorAll('figure').length") == 0
    assert len(page.problems) == 2  # the browser's own lines
    page.problems.clear()
    page.click("#draw")
    wait_for_lines(page, "62% hidden")


def test_image_and_models_are_chosen_by_clicks(page):
    source = "document.querySelector('figure img').src"
    first = page.value(source)
    page.click("#images button:nth-child(5)")
    page.wait_for(f"{IS_DONE} && {source} !== {json.dumps(first)}")
    page.click("article:last-child input")
    page.wait_for(f"{IS_DONE} && document.querySelectorAll('figure').length === 5")


def test_dropped_image_is_reconstructed(page, images):
    content = base64.b64encode(next((images / "val").glob("*/*.png")).read_bytes()).decode()
    drop = f"""(name, text) => {{
      const data = new DataTransfer();
      data.items.add(new File([text ?? Uint8Array.from(atob("{content}"), letter => letter.charCodeAt())], name));
      document.dispatchEvent(new DragEvent("drop", {{ dataTransfer: data }}));
    }}"""
    page.value(f"({drop})('<b>mine</b>.png')")
    page.wait_for(f"document.querySelector('#images button:nth-child(12)')?.ariaSelected === 'true' && {IS_DONE}")
    assert page.value("document.querySelector('#images button:nth-child(12)').title") == "<b>mine</b>.png"
    page.value(f"({drop})('no.png', 'no image')")
    page.wait_for("document.getElementById('problem').textContent.startsWith('no.png (8 bytes) can\\'t be read as an image')")
    assert len(page.problems) == 1
    page.problems.clear()


def test_saved_mask_is_one_for_a_recipe(page, tmp_path):
    page.order("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path), eventsEnabled=True)
    page.click("#save")
    page.wait_for_event("Browser.downloadProgress", state="completed")
    assert (read_mask(tmp_path / "mask.png") == np.array(page.value("mask"))).all()
