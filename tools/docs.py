"""Build the site into _docs, with Quarto where it is installed and with smalldocs where it is not. A warning stops it."""
import fnmatch
import html
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import nbdev.serve
import nbformat
import yaml
from latex2mathml.converter import convert
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup
from nbdev.quarto import refresh_quarto_yml
from objections import mend, objections
from pages import Pages

import sftdpo.page.live  # noqa: F401  (what is imported here is imported once, not once in each process)
import sftdpo.study  # noqa: F401

CHAPTERS = {  # the reading order: each notebook belongs to the first chapter with a pattern that its path matches
    "Start here": ["index", "study/own_data", "study/playground"],
    "Answers": [f"study/{name}" for name in ("which_recipe", "how_many_examples", "full_or_lora", "calibration", "forgetting", "speed", "recommendations", "questions", "*")],
    "The lesson": ["0*"],
    "Studies": ["1*"],
    "Verdicts": ["verdicts/*"],
    "Results and ways in": ["2*"],
    "More": ["more/*"],
    "Machinery: reading": ["reading/*"],
    "Machinery: measures": ["measures/*"],
    "Machinery: engine": ["engine/*"],
    "Machinery: page": ["page/*"],
}


def without_numbers(
    text,  # that may name numbered notebooks
):  # the text, naming them without
    "Drop the numbers from the names of notebooks, as nbdev and Quarto do."
    return re.sub(r"(?<!\w)\d+[a-z]?_(\w+\.ipynb)", r"\1", text)


def with_plain_links(
    text,  # a notebook as JSON
):  # the same, with links that the site has
    "Drop the numbers from links to other pages; what the text says of files in the repository, and addresses elsewhere, stay."
    return re.sub(r"""(\]\(|href=\\?["'])((?!\w+:)[^)"'\\\s]+)""", lambda link: link[1] + without_numbers(link[2]), text)


def place(
    notebook,  # path below nbs
):  # chapter, and which of its patterns
    "Where a notebook stands in the sidebar."
    name = notebook.removesuffix(".ipynb")
    return next((chapter, number) for chapter, patterns in CHAPTERS.items() for number, pattern in enumerate(patterns) if fnmatch.fnmatchcase(name, pattern))


def sidebar(
    notebooks,  # paths below nbs
):  # what Quarto reads in sidebar.yml
    "The chapters and the notebooks in them; within a pattern, in the order of their names."
    found = sorted((*place(notebook), notebook) for notebook in notebooks)
    contents = [{"section": chapter, "contents": [notebook for where, _, notebook in found if where == chapter]} for chapter in CHAPTERS]
    return {"website": {"sidebar": {"contents": [part for part in contents if part["contents"]]}}}


def opening(
    cell,      # the first one of a notebook: title, promise and question
    notebook,  # its path below nbs
    config,    # nbdev's settings
):  # Markdown
    "What stands between the promise and the next cell, and how to run the page; nbdev makes a title and a subtitle of the rest."
    text = re.sub(r"^#\s.*\n+(>.*\n*)?", "", cell.source, count=1).strip()
    address = f"https://colab.research.google.com/github/{config.user}/{config.repo}/blob/{config.branch}/nbs/{notebook}"
    folder = "/".join([config.repo, "nbs", *Path(notebook).parts[:-1]])
    first = f"`!git clone --depth 1 {config.git_url} && pip install -q './{config.repo}[dev]'` and `%cd {folder}`"
    return f"{NbdevLookup().linkify(text) or ''}\n\n::: {{.colab}}\n[Open in Colab]({address}); there, first run {first}.\n:::\n"


def finish(
    project,  # folder of processed notebooks
    config,   # nbdev's settings
):
    "Give pages back the text beside their title, which nbdev drops; make links inside the site relative, so that they are checked; and write what Quarto reads."
    home, said = f"{config.doc_host}{config.doc_baseurl}/", []
    for source in notebooks(config.nbs_path):
        page = nbformat.read(project / source, as_version=4)
        cells = nbformat.read(config.nbs_path / source, as_version=4).cells
        page.cells.insert(1, nbformat.v4.new_markdown_cell(opening(cells[0], source, config)))
        mend(page)
        said += [f"{source}: {one}" for one in objections(page)]
        up = "../" * source.count("/") or "./"
        (project / source).write_text(nbformat.writes(page).replace(f"]({home}", f"]({up}").replace(f'href=\\"{home}', f'href=\\"{up}'), encoding="utf-8")
    if said: sys.exit("\n".join(["Quarto would object:", *said]))


def notebooks(
    folder,  # nbs
):  # sorted paths below it
    "The notebooks that are pages."
    found = [path.relative_to(folder) for path in folder.rglob("*.ipynb")]
    return sorted(str(path) for path in found if not any(part.startswith((".", "_")) for part in path.parts))


def with_plain_names(
    project,  # folder of processed notebooks
):
    "Give pages the addresses that Quarto gives them: `00_config.ipynb` asks for config.html, which smalldocs does not read."
    for notebook in list(project.rglob("*.ipynb")):
        text = re.sub(r'"output-file: [^"]*",?', "", notebook.read_text(encoding="utf-8"))
        notebook.unlink()
        notebook.with_name(without_numbers(notebook.name)).write_text(with_plain_links(text), encoding="utf-8")
    plan = project / "sidebar.yml"
    plan.write_text(without_numbers(plan.read_text(encoding="utf-8")), encoding="utf-8")


def at_home(
    site,  # the folder with the site
):
    "Drop the themes' fonts from Google: a page needs none of them."
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        if "fonts.googleapis" in text:
            sheet.write_text(re.sub(r"@import url\([^)]*fonts\.googleapis[^)]*\);?|@import ?[\"'][^\"']*fonts\.googleapis[^\"']*[\"'];?", "", text), encoding="utf-8")


def formula(
    found,  # a match: display or inline, and the TeX
):  # MathML
    "A formula that a browser draws by itself."
    kind, tex = found[1], html.unescape(found[2])
    return convert(tex, display="block" if kind == "display" else "inline").replace("<mi>log</mi>", '<mi>log</mi><mspace width="0.17em"/>')


def with_mathml(
    site,  # the folder with the site
):
    "Write formulas as MathML, as Quarto is told to, instead of fetching KaTeX from outside."
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        if "/katex" not in text: continue
        text = re.sub(r'<link[^>]*/katex[^>]*>|<script[^>]*/katex[^>]*></script>', "", text)
        page.write_text(re.sub(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', formula, text, flags=re.DOTALL), encoding="utf-8")


def quarto(
    project,  # folder of processed notebooks
):
    "Render with Quarto; what it warns of stops the build."
    done = subprocess.run(["quarto", "render", "--no-cache"], cwd=project, text=True, stderr=subprocess.PIPE)
    print(done.stderr, file=sys.stderr)
    if done.returncode or re.search(r"\bWARN", done.stderr): sys.exit("quarto failed or warned: see above")


def smalldocs(
    project,  # folder of processed notebooks
):
    "Render with smalldocs, after its check of links; what it warns of stops the build."
    with_plain_names(project)
    settings = project / "_quarto.yml"
    told = settings.read_text(encoding="utf-8")
    settings.unlink()  # perhaps a link to the one file
    settings.write_text(re.sub(r"^ *html-math-method:.*\n", "", told, flags=re.MULTILINE), encoding="utf-8")  # smalldocs does not know it: `with_mathml` does the same
    command = Path(sys.executable).parent / "smalldocs"
    subprocess.run([command, "check"], cwd=project, check=True)
    subprocess.run([command, "render", "--strict"], cwd=project, check=True)
    with_mathml(project / get_config().doc_path.name)


def llms_text(
    nbs,  # folder of the notebooks
    config,  # nbdev's settings
):  # Markdown
    "The site as a list for language models (llmstxt.org): each page with its title and what it is about, chapter by chapter."
    home, lines = f"{config.doc_host}{config.doc_baseurl}", [f"# {config.title}", "", f"> {config.description}"]
    for chapter in sidebar(notebooks(nbs))["website"]["sidebar"]["contents"]:
        lines += ["", f"## {chapter['section']}", ""]
        for name in chapter["contents"]:
            first = nbformat.read(nbs / name, 4).cells[0].source.splitlines()
            about = next((line.removeprefix("> ") for line in first if line.startswith("> ")), "")
            lines.append(f"- [{first[0].removeprefix('# ')}]({home}/{without_numbers(name).removesuffix('.ipynb')}.html): {about}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    warnings.filterwarnings("error", "Found cells containing imports")  # nbdev would run their other lines as well
    config = get_config()
    refresh_quarto_yml()
    (config.nbs_path / "sidebar.yml").write_text(yaml.safe_dump(sidebar(notebooks(config.nbs_path)), sort_keys=False), encoding="utf-8")
    nbdev.serve.FilterDefaults = Pages
    nbdev.serve.IN_NOTEBOOK = True  # processes that are forked, and so have the libraries and the filter
    project = nbdev.serve.proc_nbs(force=True)
    finish(project, config)
    (quarto if shutil.which("quarto") else smalldocs)(project)
    at_home(project / config.doc_path.name)
    shutil.rmtree(config.doc_path, ignore_errors=True)
    shutil.move(project / config.doc_path.name, config.doc_path)
    (config.doc_path / "llms.txt").write_text(llms_text(config.nbs_path, config), encoding="utf-8")
    print(f"The site is in {config.doc_path.name}/index.html")
