"""What mkdocs calls while it builds the site: equations, links, gallery, llms.txt.

Equations are written as in the code, in Unicode, between dollars. They become MathML,
which browsers set themselves: no script, no font, no network.
"""

from __future__ import annotations

import ast
import html
import re
import textwrap
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

import rmsprop_jax

DOCS = Path(__file__).parent
EXAMPLES = DOCS.parent / "examples"
LAST = 8  # lines of what an example printed

# What pymdownx.arithmatex leaves of $…$ and of $$…$$.
_EQUATION = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL
)
_LATEX = {"²": "^2", "·": r"\,", "−": "-", "←": r"\leftarrow "}


def latex(text: str) -> str:
    """What the code writes in Unicode, in LaTeX."""
    text = re.sub(r"√(\w|\(.*?\))", lambda m: rf"\sqrt{{{m[1].strip('()')}}}", text)
    for ours, theirs in _LATEX.items():
        text = text.replace(ours, theirs)
    return text


def aligned(text: str) -> str:
    """Lines below each other by their arrow; behind three spaces there are words."""
    rows = []
    for line in text.strip().splitlines():
        equation, _, words = line.strip().partition("   ")
        row = re.sub("([←=])", r"&\1", equation, count=1)
        rows.append(latex(row) + (rf"& \text{{{words.strip()}}}" if words else ""))
    return r"\begin{align*}" + r"\\".join(rows) + r"\end{align*}"


def mathml(found: re.Match[str]) -> str:
    """An equation as browsers set it."""
    kind, text = found[1], html.unescape(found[2])
    if kind == "span":
        return convert(latex(text))
    # Behind an arrow, a minus is a sign: without this, browsers set a subtraction.
    equation = convert(aligned(text), display="block").replace(
        "&#x02190;</mo><mo>&#x02212;", '&#x02190;</mo><mo form="prefix">&#x02212;'
    )
    return f'<div class="equation">{equation}</div>'


def public() -> dict[str, str]:
    """Where the reference has what texts name; dialects go by their module's name."""
    found = {}
    for name in rmsprop_jax.__all__:
        place = f"rmsprop_jax.{name}"
        found |= {name: place, place: place}
        for inner in getattr(getattr(rmsprop_jax, name), "__all__", ()):
            of = {f"{name}.{inner}", f"{place}.{inner}"}
            of |= {inner} if name != "dialects" else set()
            found |= dict.fromkeys(of, f"{place}.{inner}")
    return found


_NAMES = public()
# Code in a sentence; that in links, headings and blocks is passed over.
_CODE = re.compile(r"<(a|h\d|pre)\b.*?</\1>|<code>([\w.]+)</code>", re.DOTALL)


def linked(found: re.Match[str]) -> str:
    """A public name, which the plugin autorefs will link to the reference."""
    if found[2] not in _NAMES:
        return found[0]
    return f'<autoref optional identifier="{_NAMES[found[2]]}">{found[0]}</autoref>'


# Cells whose code may break behind its dots, commas, underscores and brackets.
_CELL = re.compile(r"(?<=<td>).*?(?=</td>)", re.DOTALL)
_CELL_CODE = re.compile(r"(?<=<code>)[^<]*(?=</code>)")
_BREAK = re.compile(r"[_,(]|\.(?!\d)")  # not in a number


def breakable(found: re.Match[str]) -> str:
    """Return a table's cell in which long calls may break, so that the table fits."""
    return _CELL_CODE.sub(lambda m: _BREAK.sub(r"\g<0><wbr>", m[0]), found[0])


def entry(path: Path) -> str:
    """An example in the gallery: what it says of itself, draws and prints."""
    name = path.stem
    source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    title, says = (ast.get_docstring(ast.parse(source)) or "").split("\n\n", 1)
    first, *printed = path.read_text(encoding="utf-8").splitlines()
    took, versions = first.split(", ", 1)
    picture = f"pictures/{name}.webp"
    return "\n".join(
        [
            f"### {title.removesuffix('.')} {{ #{name} }}\n\n{says}\n",
            f"![The output of {name}.py]({picture})\n" * (DOCS / picture).exists(),
            f"The run took {took} on two CPU cores ({versions}). Its last lines:\n",
            "```text",
            *printed[-LAST:],
            "```\n",
            f'??? note "The source: examples/{name}.py"\n',
            f'    ```python\n    --8<-- "examples/{name}.py"\n    ```\n',
        ]
    )


_PAGES: list[Any] = []  # in the order of the navigation
_SNIPPET = re.compile(r'^( *)--8<-- "(.*?)"$', re.MULTILINE)


def on_nav(nav: Any, **_: Any) -> None:
    """Keep the pages, whose texts are known when the site has been built."""
    _PAGES[:] = nav.pages


def on_post_build(config: Any, **_: Any) -> None:
    """Write llms.txt, a list of the pages, and llms-full.txt, one page of all."""
    head = f"# {config.site_name}\n\n> {config.site_description}\n"
    links = "".join(f"- [{page.title}]({page.file.dest_uri})\n" for page in _PAGES)
    texts = [with_snippets(page.markdown) for page in _PAGES]
    # The reference is made of docstrings, which are not there.
    full = [head, *(x for x in texts if not re.search("^::: ", x, re.MULTILINE))]
    site = Path(config.site_dir)
    (site / "llms.txt").write_text(f"{head}\n{links}", encoding="utf-8")
    (site / "llms-full.txt").write_text("\n\n".join(full), encoding="utf-8")


def with_snippets(markdown: str) -> str:
    """Return the Markdown with the files that it includes."""

    def read(found: re.Match[str]) -> str:
        text = (DOCS.parent / found[2]).read_text(encoding="utf-8")
        return textwrap.indent(text, found[1])

    return _SNIPPET.sub(read, markdown)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Add every example that has been run to the gallery, grouped as in its README."""
    if page.file.src_uri == "gallery.md":
        readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
        for part in re.findall(r"^## .*?(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL):
            names = re.findall(r"^\| \[(\w+)\.py\]", part, re.MULTILINE)
            runs = [DOCS / "gallery" / f"{name}.txt" for name in names]
            markdown += part.splitlines()[0] + "\n\n"
            markdown += "\n".join(entry(run) for run in runs if run.exists())
    return markdown


def on_page_content(content: str, **_: Any) -> str:
    """Turn equations into MathML and names into links, and let code in cells break."""
    return _CELL.sub(breakable, _CODE.sub(linked, _EQUATION.sub(mathml, content)))
