"""Measure how the notebooks read, and write the table into CONTRIBUTING.md between its markers.

`--check` only says where a notebook falls short of what CONTRIBUTING.md asks for."""
import re
import sys
from pathlib import Path

import nbformat
import numpy as np

root = Path(__file__).resolve().parent.parent
begin, end = "<!-- notebook style: begin -->", "<!-- notebook style: end -->"
heads = ("notebooks", "lines per exported cell, median / 90 %", "characters, median / 90 %", "lines over 100 / 120",
         "prose words per exported line", "tests per exported cell", "definitions shown before the next", "cells with stored output")
MOST_LINES, LEAST_SHOWN, MOST_OVER_100, MOST_OVER_120 = 9, 0.8, 0.05, 0.01


def lines(cell):
    "Lines of code, without blank ones and without directives."
    return [line for line in cell.source.splitlines() if line.strip() and not line.startswith("#|")]


def exported(cell): return re.search(r"^#\|\s*exports?\b", cell.source, re.MULTILINE) is not None
def defines(cell): return exported(cell) and re.search(r"^(?:def|class) (?!_)", cell.source, re.MULTILINE) is not None
def tests(cell): return not exported(cell) and re.search(r"\b(?:test_\w+\(|assert\b)", cell.source) is not None


def shown(cells):
    "Of each public definition of a notebook: does a cell that is not exported follow before the next one?"
    found, waiting = [], False
    for cell in cells:
        if cell.cell_type != "code" or not lines(cell): continue
        if defines(cell):
            if waiting: found.append(False)
            waiting = True
        elif not exported(cell) and waiting:
            found.append(True)
            waiting = False
    return found + [False] * waiting


def measure(paths):
    "The figures of some notebooks, all their cells together."
    notebooks = [nbformat.read(path, 4).cells for path in paths]
    cells = [cell for notebook in notebooks for cell in notebook]
    code = [cell for cell in cells if cell.cell_type == "code" and lines(cell)]
    out = [cell for cell in code if exported(cell)]
    written = [line for cell in out for line in lines(cell)]
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    definitions = [one for notebook in notebooks for one in shown(notebook)]
    return dict(lines=[len(lines(cell)) for cell in out], characters=[len(cell.source) for cell in out],
                over_100=np.mean([len(line) > 100 for line in written]) if written else None,
                over_120=np.mean([len(line) > 120 for line in written]) if written else None,
                words=words / len(written) if written else None, tests=sum(map(tests, code)) / len(out) if out else None,
                shown=np.mean(definitions) if definitions else None, stored=np.mean([bool(cell.outputs) for cell in code]))


def row(name, paths):
    "One line of the table."
    found = measure(paths)
    def spread(numbers): return f"{np.median(numbers):g} / {np.quantile(numbers, 0.9):.0f}" if numbers else ""
    def share(number): return "" if number is None else f"{number:.1%}"
    def ratio(number): return "" if number is None else f"{number:.2f}"
    over = "" if found["over_100"] is None else f"{share(found['over_100'])} / {share(found['over_120'])}"
    return (f"{name} ({len(paths)})", spread(found["lines"]), spread(found["characters"]), over,
            ratio(found["words"]), ratio(found["tests"]), share(found["shown"]), share(found["stored"]))


def notebooks():
    "The notebooks by kind."
    numbered = sorted(path for path in (root / "nbs").rglob("[0-9]*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    return {"the lesson": [path for path in numbered if path.parent == root / "nbs" and path.name < "1"], "all modules": numbered,
            "analysis": sorted((root / "nbs/study").glob("*.ipynb"))}


def table():
    "The table as Markdown."
    rows = [heads, ("---",) * len(heads), *(row(name, paths) for name, paths in notebooks().items() if paths)]
    return "\n".join(f"| {' | '.join(one)} |" for one in rows)


def shortfalls():
    "One line for each notebook that falls short, and in what."
    for path in notebooks()["all modules"]:
        found, said = measure([path]), []
        if not found["lines"]: continue
        if np.median(found["lines"]) > MOST_LINES: said.append(f"exported cells have a median of {np.median(found['lines']):g} lines ({MOST_LINES})")
        if found["over_100"] > MOST_OVER_100: said.append(f"{found['over_100']:.0%} of lines are over 100 characters ({MOST_OVER_100:.0%})")
        if found["over_120"] > MOST_OVER_120: said.append(f"{found['over_120']:.0%} are over 120 ({MOST_OVER_120:.0%})")
        if found["shown"] is not None and found["shown"] < LEAST_SHOWN: said.append(f"{found['shown']:.0%} of definitions are shown before the next ({LEAST_SHOWN:.0%})")
        if said: yield f"{path.relative_to(root)}: {'; '.join(said)}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        found = list(shortfalls())
        print("\n".join(["How the notebooks read (what is asked for stands in brackets):", *found]) if found else "All notebooks read as asked.")
    else:
        path = root / "CONTRIBUTING.md"
        text = path.read_text(encoding="utf-8")
        path.write_text(text[:text.index(begin) + len(begin)] + f"\n{table()}\n" + text[text.index(end):], encoding="utf-8")
        print(table())
