"""What Quarto objects to in a page although smalldocs passes it: found, and mended where pages are made.

Three kinds: two places of one name, alternative texts that are no valid addresses, and tables that Quarto cannot read."""
import re

CODE = re.compile(r"^(`{3,}|~{3,}).*?^\1", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#{1,6}) +(.*?)(?: *\{#([^\s}]+)[^}]*\})? *$", re.MULTILINE)
ALTERNATIVES = [re.compile(pattern, re.MULTILINE) for pattern in (  # what stands before an alternative text; the text; what follows
    r"(!\[)([^\]]*)(\]\()", r"""(<img\b[^>]*?\balt=")([^"]*)(")""", r"^(#\| *fig-alt: *)(.*)($)")]
TABLE = re.compile(r"<table\b([^>]*)>")
READABLE = ('class="dataframe"', 'id="T_')  # tables that pandas writes
OPTIONS = {  # two hyphens before the name of an option: outside code and styles, and in HTML outside tags
    "text/markdown": re.compile(r"`[^`\n]*`|(?<![\w!-])--(?=[a-z])"),
    "text/html": re.compile(r"<style.*?</style>|(?<![\w-])--(?=[a-z])(?=[^<>]*<)", re.DOTALL)}
LEFT_ALONE = 'data-quarto-disable-processing="true"'
WIDGET = "application/vnd.jupyter.widget-view+json"


def texts(
    page,  # a processed notebook
):  # (holder, key, kind) of each
    "Where a page has text: prose, code with its directives, and outputs."
    for cell in page.cells:
        if cell.cell_type != "raw": yield cell, "source", "text/markdown" if cell.cell_type == "markdown" else "code"
        for output in cell.get("outputs", []):
            for kind in {"text/markdown", "text/html"} & set(output.get("data", {})): yield output["data"], kind, kind


def prose(
    text,  # Markdown
):  # (is it code?, part) for each, in order
    "A text in parts, code apart."
    last = 0
    for found in CODE.finditer(text):
        yield from ((False, text[last:found.start()]), (True, found[0]))
        last = found.end()
    yield False, text[last:]


def name_of(
    heading,  # a match of `HEADING`
):
    "The identifier of a heading: its own, or what Pandoc makes of its words."
    if heading[3]: return heading[3]
    words = re.sub(r"[^\w\s.-]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[2])).strip().lower()
    return re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", words))


def headings(
    page,  # a processed notebook
):  # matches of `HEADING`
    "All headings of a page, in order."
    parts = (part for holder, key, kind in texts(page) if kind == "text/markdown" for code, part in prose(holder[key]) if not code)
    return [found for part in parts for found in HEADING.finditer(part)]


def objections(
    page,  # a processed notebook
):  # a sentence for each
    "What Quarto would warn of."
    said, taken = [], set()
    for heading in headings(page):  # Pandoc makes its own names unique, but never one that was given
        if heading[3] and heading[3] in taken: said.append(f"two places are named {heading[3]}: give one of the headings another name")
        taken.add(name_of(heading))
    for holder, key, kind in texts(page):
        found = [match[2] for pattern in ALTERNATIVES for match in pattern.finditer(holder[key])]
        said += [f"the alternative text {text[:60]!r} holds a percent sign: write percent" for text in found if "%" in text]
        if kind == "text/html":
            said += [f"{table[0][:60]} is not read: add {LEFT_ALONE}" for table in TABLE.finditer(holder[key]) if not any(mark in table[1] for mark in (*READABLE, LEFT_ALONE))]
    return said


def with_own_names(
    page,  # a processed notebook, changed in place
):
    "Let the name of a class or function, which links use, be its own: a heading with the same word is named otherwise."
    documented, taken = {heading[3] for heading in headings(page)}, set()
    def named(heading):
        name = heading[3] or name_of(heading)
        if not heading[3] and name not in documented: return heading[0]
        name = name if heading[3] else f"about-{name}"
        while name in taken: name += "-2"  # a class and a function whose names differ in case alone
        taken.add(name)
        return f"{heading[1]} {heading[2]} {{#{name}}}"
    for holder, key, kind in texts(page):
        if kind == "text/markdown": holder[key] = "".join(part if code else HEADING.sub(named, part) for code, part in prose(holder[key]))


def mend(
    page,  # a processed notebook, changed in place
):
    "Write a page as Quarto likes it; options keep their hyphens, and a progress bar that has ended is left out with the scripts it needs."
    for cell in page.cells:
        if "outputs" in cell: cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    with_own_names(page)
    for holder, key, kind in texts(page):
        for pattern in ALTERNATIVES:
            holder[key] = pattern.sub(lambda found: found[1] + re.sub(r" ?%", " percent", found[2]) + found[3], holder[key])
        if kind in OPTIONS:  # else they become a dash
            kept = "-<!-- -->-" if kind == "text/markdown" else "&#45;&#45;"
            hyphens = lambda text: OPTIONS[kind].sub(lambda found: kept if found[0] == "--" else found[0], text)
            holder[key] = "".join(part if code else hyphens(part) for code, part in prose(holder[key]))
        if kind == "text/html":
            holder[key] = TABLE.sub(lambda table: table[0] if any(mark in table[1] for mark in (*READABLE, LEFT_ALONE)) else f"<table {LEFT_ALONE}{table[1]}>", holder[key])
