"""The site: where its pages stand, what opens them, and the tables of its reference. `make docs` builds it whole and checks its links."""
import inspect
import re
import sys
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("nbdev")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import docs
import pages
from nbdev.config import get_config

from sftdpo.claims import Margins, judge_results
from sftdpo.loss import dpo_loss


@pytest.fixture(scope="module")
def nbs():
    return Path(__file__).resolve().parent.parent / "nbs"


def test_the_sidebar_is_the_reading_order(nbs):
    names = docs.notebooks(nbs)
    parts = docs.sidebar(names)["website"]["sidebar"]["contents"]
    assert [part["section"] for part in parts] == list(docs.CHAPTERS)
    listed = [name for part in parts for name in part["contents"]]
    assert sorted(listed) == names and listed[0] == "index.ipynb"
    lesson = next(part["contents"] for part in parts if part["section"] == "The lesson")
    assert [docs.without_numbers(name) for name in lesson] == [f"{name}.ipynb" for name in ("data", "model", "loss", "batches", "trainer", "evaluate")]
    numbered = [name for name in listed if re.match(r"\d", name)]
    assert numbered == sorted(numbered), "the numbers at the top of nbs say the reading order"


def test_no_chapter_names_a_notebook_that_has_gone(nbs):
    met = {docs.place(name) for name in docs.notebooks(nbs)}
    for chapter, patterns in docs.CHAPTERS.items():
        for number, pattern in enumerate(patterns):
            assert (chapter, number) in met, f"{chapter}: no notebook is {pattern!r}"


def test_the_top_of_the_notebooks_is_short(nbs):
    assert len(list(nbs.glob("*.ipynb"))) <= 20


def test_pages_have_a_title_and_a_promise(nbs):
    for name in docs.notebooks(nbs):
        first = nbformat.read(nbs / name, as_version=4).cells[0].source
        assert re.match(r"# .+\n+> .+", first), f"{name} begins with {first[:60]!r}"


def test_links_between_notebooks_open_in_jupyter_and_on_github(nbs):
    for name in docs.notebooks(nbs):
        for cell in nbformat.read(nbs / name, as_version=4).cells:
            if cell.cell_type != "markdown": continue
            for target in re.findall(r"(?<!!)\[[^\]]*\]\(((?!\w+:|#)[^)\s#]+)", cell.source): assert ((nbs / name).parent / target).exists(), f"{name} links {target}"


def test_only_links_lose_their_numbers(tmp_path):
    text = "Edit `nbs/11_config.ipynb`; see [the forms](../10a_forms.ipynb#form) or [there](https://github.com/a/b/blob/main/nbs/11_config.ipynb)."
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text), nbformat.v4.new_raw_cell('<a href="10a_forms.ipynb">')])
    nbformat.write(page, tmp_path / "10d_playground.ipynb")
    (tmp_path / "sidebar.yml").write_text("- study/bard.ipynb\n- 00_config.ipynb\n")
    docs.with_plain_names(tmp_path)
    cells = nbformat.read(tmp_path / "playground.ipynb", as_version=4).cells
    assert cells[0].source == text.replace("../10a_forms", "../forms") and cells[1].source == '<a href="forms.ipynb">'
    assert (tmp_path / "sidebar.yml").read_text() == "- study/bard.ipynb\n- config.ipynb\n"


def test_the_text_beside_a_title_is_kept(nbs):
    cell = nbformat.v4.new_markdown_cell("# A title\n\n> A promise.\n\nA question?\n\n> A quotation.")
    text = docs.opening(cell, "study/bard.ipynb", get_config(path=nbs.parent))
    assert text.startswith("A question?\n\n> A quotation.\n")
    assert "colab.research.google.com/github/sftdpo/sftdpo/blob/main/nbs/study/bard.ipynb" in text and "%cd sftdpo/nbs/study`" in text
    assert docs.opening(nbformat.v4.new_markdown_cell("# A title\n\n> A promise."), "index.ipynb", get_config(path=nbs.parent)).lstrip().startswith("::: {.colab}")


def test_parameters_become_a_table():
    table = pages.api_table(dpo_loss)
    assert table.count("<tr>") == 1 + len(inspect.signature(dpo_loss).parameters) + 1  # head, parameters, what is returned
    assert "<td><code>beta</code></td><td><code>float</code></td><td><code>0.1</code></td><td>strength of the pull towards the reference</td>" in table
    assert "<td><code>Margins()</code></td>" in pages.api_table(judge_results)
    assert pages.shown(Margins(chrf=2.0)) == "<code>Margins(chrf=2.0)</code>"
    assert pages.worded("1 < 2, see `dpo_loss` and `nothing_known`").startswith("1 &lt; 2, see <a href=") and "<code>nothing_known</code>" in pages.worded("`nothing_known`")


def test_source_lines_are_those_of_the_module():
    line = pages.line_of(dpo_loss)
    source = Path(sys.modules["sftdpo.loss"].__file__).read_text(encoding="utf-8").splitlines()
    assert source[line - 1].startswith("def dpo_loss(")


def test_themes_ask_for_no_fonts(tmp_path):
    sheet = tmp_path / "theme.css"
    sheet.write_text('@charset "UTF-8";@import url(https://fonts.googleapis.com/css2?family=Lato:wght@0,400;1,400&display=swap);:root{--a:1}')
    docs.at_home(tmp_path)
    assert sheet.read_text() == '@charset "UTF-8";:root{--a:1}'
