"""Build the site into _docs, with Quarto where it is installed and with smalldocs where it is not. A warning stops it."""
import dataclasses
import fnmatch
import functools
import html
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbdev.serve
import nbformat
import yaml
from fastcore.docments import docments
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup
from nbdev.processors import FilterDefaults
from nbdev.quarto import refresh_quarto_yml
from nbdev.showdoc import BasicMarkdownRenderer

SECTIONS = {  # a notebook's section and place are those of the first pattern that its name without number matches
    "Tutorial": ["index", "study/playground*", "study/own_data", "extending"],
    "Method": ["examples", "questions", "rows", "data", "model", "loss", "batches", "trainer", "evaluate", "choosing", "stats", "claims"],
    "Analysis": ["study/*"],
    "Reference": ["glossary", "cli", "config", "*"],
}
LATER = {"study/playground*"}  # patterns of what need not be there


def without_numbers(
    text,  # that may name numbered notebooks
):  # the text, naming them without
    "Drop the numbers from the names of notebooks, as nbdev and Quarto do."
    return re.sub(r"(?<!\w)\d+[a-z]?_(\w+\.ipynb)", r"\1", text)


def place(
    notebook,  # path below nbs
):  # section, and which of its patterns
    "Where a notebook stands in the sidebar."
    name = without_numbers(notebook).removesuffix(".ipynb")
    return next((section, number) for section, patterns in SECTIONS.items()
                for number, pattern in enumerate(patterns) if fnmatch.fnmatchcase(name, pattern))


def sidebar(
    notebooks,  # paths below nbs
):  # what Quarto reads in sidebar.yml
    "The four sections and the notebooks in them."
    found = sorted((*place(notebook), notebook) for notebook in notebooks)
    contents = [{"section": section, "contents": [notebook for where, _, notebook in found if where == section]} for section in SECTIONS]
    return {"website": {"sidebar": {"contents": [part for part in contents if part["contents"]]}}}


def worded(
    text,  # of a comment, with `names` in it
):  # HTML
    "A comment with its names as code, and those of the package as links."
    def named(found):
        where = NbdevLookup().doc(found[1])
        return f'<a href="{where}"><code>{found[1]}</code></a>' if where else f"<code>{found[1]}</code>"
    return re.sub(r"`([^`]+)`", named, html.escape(text, quote=False))


def shown(
    value,  # a type or a default
):  # HTML
    "A type or a default as one writes it; nothing where there is none."
    if value is inspect.Parameter.empty: return ""
    if isinstance(value, str): text = value
    elif inspect.isfunction(value): text = value.__name__
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):  # only what is not as usual
        usual = {field.name: field.default for field in dataclasses.fields(value)}
        changed = ", ".join(f"{name}={getattr(value, name)!r}" for name, other in usual.items() if other is not dataclasses.MISSING and getattr(value, name) != other)
        text = f"{type(value).__name__}({changed})"
    elif isinstance(value, type) or type(value).__module__ in ("typing", "types"): text = inspect.formatannotation(value)
    else: text = repr(value)
    text = re.sub(r"(?<!\w)(?:[a-z_0-9]+[.])+(?=[A-Z])", "", text)  # without the modules' names
    return f"<code>{html.escape(text, quote=False)}</code>"


def api_table(
    symbol,  # a function or a class of the package
):  # HTML
    "What a symbol takes, from the comments beside its parameters."
    try: about = dict(docments(symbol, full=True, returns=not inspect.isclass(symbol)))
    except (ValueError, TypeError, AttributeError): return ""
    given = about.pop("return", None)
    if given and given["anno"] is inspect.Parameter.empty and not given["docment"]: given = None
    rows = [(f"<code>{name}</code>", shown(part["anno"]), shown(part["default"] if not isinstance(part["default"], str) else repr(part["default"])), worded(part["docment"] or ""))
            for name, part in about.items() if name != "self"]
    if given: rows.append(("returns", shown(given["anno"]), "", worded(given["docment"] or "")))
    if not any(row[3] for row in rows): return ""
    lines = "\n".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in rows)
    return f'<div class="api table-responsive">\n<table class="table table-sm">\n<thead><tr><th></th><th>type</th><th>default</th><th>what it is</th></tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table>\n</div>'


def line_of(
    symbol,  # a function or a class of the package, as its notebook has just defined it
):  # a number
    "The line of the module where a symbol begins."
    module = importlib.import_module("sftdpo." + NbdevLookup()[symbol.__qualname__][1].split("/")[-1].removesuffix(".py"))
    there = functools.reduce(getattr, symbol.__qualname__.split("."), module)
    return inspect.getsourcelines(inspect.unwrap(there))[1]


def documented(
    shows,  # what `show_doc` made
):  # Markdown
    "A symbol's documentation: heading, signature, docstring, table."
    source = NbdevLookup().code(shows.fn)
    source = source and f"{source.split('#')[0]}#L{line_of(shows.sym)}"
    link = f'[source]({source}){{target="_blank" .source-link}}\n\n' if source else ""
    names = [f"{'*' if part.kind is part.VAR_POSITIONAL else '**' if part.kind is part.VAR_KEYWORD else ''}{name}" for name, part in (shows.sig.parameters.items() if shows.sig else ()) if name != "self"]
    table = api_table(shows.sym)
    signature = f"```python\n{shows.nm}({', '.join(names)})\n```" if table or not shows.sig else f"```python\n{str(shows.dm).replace('`', '')}\n```"
    return f"---\n\n{link}{'#' * shows.title_level} {shows.nm}\n\n{signature}\n\n{shows.docs or ''}\n\n{table}\n"


class Pages(FilterDefaults):
    "nbdev's processing of a notebook, with tables in its documentation."
    def __call__(self, notebook):
        BasicMarkdownRenderer._repr_markdown_ = documented
        return super().__call__(notebook)


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
    return f"{NbdevLookup().linkify(text)}\n\n::: {{.colab}}\n[Open in Colab]({address}); there, first run {first}.\n:::\n"


def finish(
    project,  # folder of processed notebooks
    config,   # nbdev's settings
):
    "Give pages back the text beside their title, which nbdev drops, and make links inside the site relative, so that they are checked."
    home = f"{config.doc_host}{config.doc_baseurl}/"
    for source in notebooks(config.nbs_path):
        page = nbformat.read(project / source, as_version=4)
        cells = nbformat.read(config.nbs_path / source, as_version=4).cells
        page.cells.insert(1, nbformat.v4.new_markdown_cell(opening(cells[0], source, config)))
        up = "../" * source.count("/") or "./"
        (project / source).write_text(nbformat.writes(page).replace(f"]({home}", f"]({up}").replace(f'href=\\"{home}', f'href=\\"{up}'), encoding="utf-8")


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
        notebook.with_name(without_numbers(notebook.name)).write_text(without_numbers(text), encoding="utf-8")
    plan = project / "sidebar.yml"
    plan.write_text(without_numbers(plan.read_text(encoding="utf-8")), encoding="utf-8")


def at_home(
    site,  # the folder with the site
):
    "Drop the themes' fonts from Google: a page asks no other server for anything."
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        if "fonts.googleapis" in text:
            sheet.write_text(re.sub(r"@import url\([^)]*fonts\.googleapis[^)]*\);?|@import ?[\"'][^\"']*fonts\.googleapis[^\"']*[\"'];?", "", text), encoding="utf-8")


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
    command = Path(sys.executable).parent / "smalldocs"
    subprocess.run([command, "check"], cwd=project, check=True)
    subprocess.run([command, "render", "--strict"], cwd=project, check=True)


if __name__ == "__main__":
    os.environ["PYTHONWARNINGS"] = "error:Found cells containing imports"  # nbdev would run their other lines as well
    config = get_config()
    refresh_quarto_yml()
    (config.nbs_path / "sidebar.yml").write_text(yaml.safe_dump(sidebar(notebooks(config.nbs_path)), sort_keys=False), encoding="utf-8")
    nbdev.serve.FilterDefaults = Pages
    project = nbdev.serve.proc_nbs(force=True)
    finish(project, config)
    (quarto if shutil.which("quarto") else smalldocs)(project)
    at_home(project / config.doc_path.name)
    shutil.rmtree(config.doc_path, ignore_errors=True)
    shutil.move(project / config.doc_path.name, config.doc_path)
    print(f"The site is in {config.doc_path.name}/index.html")
