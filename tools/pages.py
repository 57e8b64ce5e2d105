"""What `show_doc` makes of a function or a class on the site: a table from the comments beside its parameters."""
import dataclasses
import functools
import html
import importlib
import inspect
import re

from fastcore.docments import docments
from nbdev.doclinks import NbdevLookup
from nbdev.processors import FilterDefaults
from nbdev.showdoc import BasicMarkdownRenderer


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
    file = NbdevLookup()[symbol.__qualname__][1].removesuffix(".py")
    module = importlib.import_module(".".join(["sftdpo", *file.split("sftdpo/")[-1].split("/")]))
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
    return f"---\n\n{link}{'#' * shows.title_level} {shows.nm} {{#{shows.nm.lower()}}}\n\n{signature}\n\n{shows.docs or ''}\n\n{table}\n"


class Pages(FilterDefaults):
    "nbdev's processing of a notebook, with tables in its documentation."
    def __call__(self, notebook):
        BasicMarkdownRenderer._repr_markdown_ = functools.lru_cache(maxsize=1)(documented)  # it is asked for twice
        return super().__call__(notebook)
