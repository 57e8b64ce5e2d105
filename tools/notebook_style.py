"""Measure our notebooks as the style guide measures others', and write the table into CONTRIBUTING.md between its markers."""
import re
from pathlib import Path

import nbformat
import numpy as np

root = Path(__file__).resolve().parent.parent
begin, end = "<!-- notebook style: begin -->", "<!-- notebook style: end -->"
heads = ("notebooks", "lines per code cell, median / 90 %", "lines per exported cell, median / 90 %", "prose : code cells", "test cells per exported cell",
         "definition shown or tested before the next one", "cells with stored output")


def lines(cell):
    "Lines of code, without blank ones and without directives."
    return sum(bool(line.strip()) and not line.startswith("#|") for line in cell.source.splitlines())


def exported(cell): return re.search(r"^#\|\s*exports?\b", cell.source, re.MULTILINE) is not None
def defines(cell): return exported(cell) and re.search(r"^(?:def|class) (?!_)", cell.source, re.MULTILINE) is not None
def tests(cell): return not exported(cell) and re.search(r"\b(?:test_\w+\(|assert\b)", cell.source) is not None


def spread(numbers):
    "Median and nine-tenths of some counts."
    return f"{np.median(numbers):g} / {np.quantile(numbers, 0.9):.0f}" if numbers else ""


def measured(name, paths):
    "One line of the table: the cells of all these notebooks together."
    notebooks = [nbformat.read(path, 4).cells for path in paths]
    cells = [cell for notebook in notebooks for cell in notebook]
    code = [cell for cell in cells if cell.cell_type == "code" and lines(cell)]
    out = [cell for cell in code if exported(cell)]
    shown = []  # of each public definition: does a cell that is not exported follow before the next one?
    for notebook in notebooks:
        waiting = False
        for cell in notebook:
            if cell.cell_type != "code" or not lines(cell): continue
            if defines(cell):
                if waiting: shown.append(False)
                waiting = True
            elif not exported(cell) and waiting:
                shown.append(True)
                waiting = False
        if waiting: shown.append(False)
    stored = np.mean([bool(cell.outputs) for cell in code])
    return (f"{name} ({len(paths)})", spread([lines(cell) for cell in code]), spread([lines(cell) for cell in out]), f"{sum(cell.cell_type == 'markdown' for cell in cells) / len(code):.2f}",
            f"{sum(map(tests, code)) / len(out):.2f}" if out else "", f"{np.mean(shown):.0%}" if shown else "", f"{stored:.0%}")


def table():
    "The table as Markdown."
    ours = {"modules": sorted((root / "nbs").glob("[0-9]*.ipynb")), "analysis": sorted((root / "nbs/study").glob("*.ipynb"))}
    rows = [heads, ("---",) * len(heads), *(measured(name, paths) for name, paths in ours.items() if paths)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    path = root / "CONTRIBUTING.md"
    before, rest = path.read_text(encoding="utf-8").split(begin)
    path.write_text(f"{before}{begin}\n{table()}\n{end}{rest.split(end)[1]}", encoding="utf-8")
    print(table())
