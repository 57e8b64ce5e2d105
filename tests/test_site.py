"""The site: where its pages stand, what opens them, and the tables of its reference. `make docs` builds it whole and checks its links."""
import ast
import inspect
import re
import sys
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("nbdev")

import docs
import objections
import pages
from nbdev.config import get_config
from nbdev.frontmatter import _md2dict

from sftdpo.claims import judge_results
from sftdpo.loss import dpo_loss
from sftdpo.verdicts.verdict import Margins


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


def test_no_list_beside_a_title_is_read_as_settings(nbs):
    "nbdev reads `- word: text` in the first cell as YAML; at cc821436 one list there was an error of YAML's."
    for path in nbs.rglob("*.ipynb"):
        if ".ipynb_checkpoints" in path.parts: continue
        first = next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
        assert set(_md2dict(first.source)) <= {"title", "description"}, path


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


# --- what Quarto objects to, though smalldocs does not

def markdown(text): return nbformat.v4.new_markdown_cell(text)


def shown(html): return nbformat.v4.new_code_cell("show()", outputs=[nbformat.v4.new_output("display_data", {"text/html": html})])


def page(*cells): return nbformat.v4.new_notebook(cells=list(cells))


OBJECTIONS = {
    "a heading and a class": ([markdown("## Margins"), markdown("### Margins {#margins}")], "two places are named margins"),
    "a class and a function": ([markdown("### Plan {#plan}"), markdown("### plan {#plan}")], "two places are named plan"),
    "a picture of prose": ([markdown("![5 % of all](a.png)")], "'5 % of all' holds a percent sign"),
    "a picture that is shown": ([shown('<img src="data:," alt="from 5 to 9 %">')], "'from 5 to 9 %' holds a percent sign"),
    "a figure's directive": ([nbformat.v4.new_code_cell('#| fig-alt: "5 % of all"\nplot()')], "holds a percent sign"),
    "a table of one's own": ([shown("<div><table><thead><th>a</th></thead></table></div>")], "<table> is not read"),
}


@pytest.mark.parametrize("kind", OBJECTIONS)
def test_what_quarto_objects_to_is_found_and_mended(kind):
    cells, words = OBJECTIONS[kind]
    one = page(*cells)
    assert len(objections.objections(one)) == 1 and words in objections.objections(one)[0]
    objections.mend(one)
    assert not objections.objections(one)


def test_mending_changes_nothing_else():
    "Code, tables of pandas, and headings that are called like nothing else stay; links still find the class."
    cells = [markdown("## Margins\n\n```\n## Margins {#margins}\n```\n\n## Times, too\n\nWith --out, `--out`"), markdown("### Margins {#margins}"),
             shown('<style>a {color: var(--mark)}</style><table border="1" class="dataframe"><tr><td>give --reading.unusable drop</td></tr></table>')]
    one = page(*cells)
    objections.mend(one)
    assert one.cells[0].source == "## Margins {#about-margins}\n\n```\n## Margins {#margins}\n```\n\n## Times, too\n\nWith -<!-- -->-out, `--out`" and one.cells[1].source == "### Margins {#margins}"
    html = one.cells[2].outputs[0].data["text/html"]
    assert html == '<style>a {color: var(--mark)}</style><table border="1" class="dataframe"><tr><td>give &#45;&#45;reading.unusable drop</td></tr></table>'


def test_a_progress_bar_asks_for_no_scripts_from_elsewhere():
    bar = nbformat.v4.new_output("display_data", {objections.WIDGET: {"model_id": "a"}, "text/plain": "  0%"})
    one = page(nbformat.v4.new_code_cell("go()", outputs=[bar, nbformat.v4.new_output("stream", text="done")]))
    objections.mend(one)
    assert [output.output_type for output in one.cells[0].outputs] == ["stream"]


def documented(cell):
    "The cells that the site makes of one: a heading for each class and function of an exported cell, as `pages.documented` writes it."
    names = []
    if cell.cell_type == "code" and re.search(r"^#\|\s*exports?\s*$", cell.source, re.MULTILINE):
        names = [part.name for part in ast.parse(cell.source).body if isinstance(part, (ast.ClassDef, ast.FunctionDef)) and not part.name.startswith("_")]
    return [*(markdown(f"### {name} {{#{name.lower()}}}") for name in names), cell]


def test_quarto_objects_to_no_page(nbs):
    "Every notebook as the site shows it."
    before, after = [], []
    for name in docs.notebooks(nbs):
        one = page(*(part for cell in nbformat.read(nbs / name, as_version=4).cells for part in documented(cell)))
        before += objections.objections(one)
        objections.mend(one)
        after += [f"{name}: {said}" for said in objections.objections(one)]
    assert not after
    assert any("two places" in said for said in before), "no heading is called like a class any more: look whether this test still sees any"


def test_language_models_get_a_list_of_all_pages(nbs):
    text = docs.llms_text(nbs, get_config())
    links = re.findall(r"^- \[(.+?)\]\((https://[^)]+)\): (.+)$", text, re.MULTILINE)
    assert text.startswith("# sftdpo\n\n> SFT, DPO") and len(links) == len(docs.notebooks(nbs))
    assert all(re.fullmatch(r"[^\d]*|.*/(?!\d+_)[\w.-]+\.html", url) for _, url, _ in links)
    assert "sftdpo/loss.html)" in text and "\n## Machinery: reading\n" in text
