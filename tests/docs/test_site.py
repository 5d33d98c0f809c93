"""The documentation as people read it: built strictly, and looked at in a browser.

These tests need the extras docs and browser, and a Chromium.
"""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import rmsprop_jax

pytestmark = pytest.mark.site

ROOT = Path(__file__).parents[2]
PHONE, DESK = 390, 1400  # pixels


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site."""
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    return folder


@pytest.fixture(scope="module")
def address(site):
    """Where the site is served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            """Not a line for every file."""

    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    assert path is not None, f"none of {names} is installed"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root, as in containers, it starts only so.
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.fixture(params=[DESK, PHONE])
def page(browser, address, request):
    """A page of the browser; all that goes wrong in it is a failure."""
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    wrong = []
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda asked: (
            None
            if asked.url.startswith((address, "data:", "blob:"))
            else wrong.append(f"another host: {asked.url}")
        ),
    )
    page.on(
        "response",
        lambda got: (
            wrong.append(f"{got.status} {got.url}") if got.status > 399 else None
        ),
    )
    yield page
    page.close()
    assert not wrong


# The beginnings of texts that are smaller than 14 pixels.
SMALL = """() => [...document.querySelectorAll(
        "article :is(p, li, td, th, code, label)")]
    .filter(x => x.offsetWidth && parseFloat(getComputedStyle(x).fontSize) < 13.95)
    .map(x => x.textContent.slice(0, 60))"""
# The beginnings of code and tables that are wider than their column.
CUT = """() => [...document.querySelectorAll(
        "article :is(pre code, .md-typeset__scrollwrap)")]
    .filter(x => x.scrollWidth > x.clientWidth + 1)
    .map(x => x.textContent.slice(0, 60))"""

# Texts whose contrast with their ground is less than 4.5, as WCAG 2.2 computes it.
FAINT = """() => {
    const pen = document.createElement("canvas").getContext(
        "2d", {willReadFrequently: true});
    const known = {};
    const rgba = color => known[color] ??= read(color);
    const read = color => {
        pen.clearRect(0, 0, 1, 1);
        pen.fillStyle = color;
        pen.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
        return [[r, g, b], a / 255];
    };
    const over = ([color, a], ground) =>
        color.map((x, i) => x * a + ground[i] * (1 - a));
    const luminance = color => color
        .map(x => x / 255)
        .map(x => x > 0.04045 ? ((x + 0.055) / 1.055) ** 2.4 : x / 12.92)
        .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0.05);
    const groundOf = element => element
        ? over(rgba(getComputedStyle(element).backgroundColor),
               groundOf(element.parentElement))
        : [255, 255, 255];
    const texts = document.createTreeWalker(
        document.querySelector("article"), NodeFilter.SHOW_TEXT);
    const faint = [];
    while (texts.nextNode()) {
        const element = texts.currentNode.parentElement;
        if (!element.offsetWidth || !texts.currentNode.textContent.trim()) continue;
        const ground = groundOf(element);
        const color = over(rgba(getComputedStyle(element).color), ground);
        const both = [luminance(color), luminance(ground)];
        if (Math.max(...both) / Math.min(...both) < 4.5)
            faint.push(element.outerHTML.slice(0, 60));
    }
    return faint;
}"""


def test_every_page_of_the_navigation(page, address):
    page.goto(address)
    links = page.eval_on_selector_all(
        ".md-nav--primary a.md-nav__link", "links => links.map(link => link.href)"
    )
    links = {link.split("#")[0] for link in links}
    sources = [*(ROOT / "docs").rglob("*.md")]
    assert len(links) == len(sources)
    for link in sorted(links):
        page.goto(link)
        assert page.locator("h1").count() == 1, link
        # Wide tables, code and equations scroll by themselves.
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= page.viewport_size["width"], link
        assert not page.evaluate(SMALL), link
        page.add_style_tag(content="* { transition: none !important }")
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert not page.evaluate(FAINT), (link, scheme)
        if page.viewport_size["width"] == DESK:
            assert not page.evaluate(CUT), link
        # Pictures below the screen would be loaded later.
        broken = page.evaluate(
            """async () => {
                const pictures = [...document.images];
                pictures.forEach(picture => picture.loading = "eager");
                await Promise.allSettled(pictures.map(picture => picture.decode()));
                return pictures.filter(p => !p.naturalWidth).map(p => p.src);
            }"""
        )
        assert not broken, link


def test_the_navigation_is_followed_by_clicks(page, address):
    page.goto(address)
    if page.viewport_size["width"] == PHONE:
        page.click("label.md-header__button[for=__drawer]")
    page.click(".md-nav--primary >> text=Dialects")
    page.wait_for_url("**/dialects/")
    assert page.inner_text("h1").startswith("Dialects")


# What people type, and the pages where they find it.
SEARCHES = {
    "lr": {"faq", "migrate/torch"},
    "learning rate": {"rule", "how-to"},
    "epsilon": {"rule", "dialects"},
    "momentum": {"rule"},
    "centered": {"rule"},
    "nan": {"faq", "how-to"},
    "resume": {"checkpoints"},
    "freeze": {"how-to", "migrate/torch"},
    "FSDP": {"many-devices"},
    "weight decay": {"rule", "how-to"},
}


@pytest.mark.parametrize("text", SEARCHES)
def test_searches_find_the_page_that_people_want(page, address, text):
    """Among the first three pages."""
    page.goto(address)
    if page.viewport_size["width"] == PHONE:
        page.click("label.md-header__button[for=__search]")
    page.locator("input.md-search__input").press_sequentially(text)
    found = page.locator(".md-search-result__item")
    found.first.wait_for()
    first = ".md-search-result__item > a.md-search-result__link"
    links = page.eval_on_selector_all(first, "links => links.map(link => link.href)")
    pages = [link.removeprefix(address).split("/?")[0] for link in links]
    assert SEARCHES[text] & {*pages[:3]}


def test_equations_are_set_and_code_can_be_copied(page, address):
    page.goto(address + "rule/")
    assert page.locator(".equation math mtr").count() == 8
    assert "$" not in page.inner_text("article")
    assert page.locator("[data-clipboard-target], .md-code__button").count()


def test_llms_txt_has_every_page(site):
    """And the texts of all that are not made of docstrings, in one file."""
    index = (site / "llms.txt").read_text(encoding="utf-8")
    pages = re.findall(r"^- \[.+\]\((.*)\)$", index, re.MULTILINE)
    assert len(pages) == len([*(ROOT / "docs").rglob("*.md")])
    assert all((site / page).exists() for page in pages)
    text = (site / "llms-full.txt").read_text(encoding="utf-8")
    assert "# FAQ and error messages" in text
    assert "--8<--" not in text


PUBLIC = [
    f"rmsprop_jax.{name}.{inner}".rstrip(".")
    for name in rmsprop_jax.__all__
    for inner in ["", *getattr(getattr(rmsprop_jax, name), "__all__", ())]
]


def test_every_public_name_is_in_the_reference(site):
    text = "".join(path.read_text() for path in (site / "api").rglob("*.html"))
    assert [name for name in PUBLIC if f'id="{name}"' not in text] == []


def test_docstrings_are_set(site):
    """What Markdown does not understand would stand there as it was typed."""
    for path in (site / "api").rglob("*.html"):
        text = path.read_text().split("<article", 1)[1].split("</article>")[0]
        text = re.sub(r"<(pre|code)\b.*?</\1>", "", text, flags=re.S)
        assert not re.findall(r"``|:math:|&gt;&gt;&gt;|\$|::", text), path
