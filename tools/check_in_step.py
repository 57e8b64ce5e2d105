"""Say what is out of step: unclean notebooks, exports, README, and traces of one machine in a notebook.

The work is done on a copy, so nothing here is changed and the tree need not be committed.
"""
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from readme import out_of_step

root = Path(__file__).resolve().parent.parent
trace = re.compile(r"(?<![\w.~])/(?:home|root|Users|work|opt|tmp)/[\w.]+[^\s\"'\\]*|Looking in (?:indexes|links): \S+")


def contents(folder):
    "The notebooks and exported modules of a tree, as {path: bytes}."
    files = [*folder.glob("nbs/**/*.ipynb"), *folder.glob("sftdpo/**/*.py")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files
            if ".ipynb_checkpoints" not in file.parts and "__pycache__" not in file.parts}


def remade():
    "The same, after cleaning and exporting every notebook of a copy into an empty package."
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / root.name
        shutil.copytree(root / "nbs", copy / "nbs", symlinks=True)
        (copy / "sftdpo").mkdir()
        shutil.copy(root / "settings.ini", copy)
        shutil.copy(root / "sftdpo/__init__.py", copy / "sftdpo")
        for command in ("nbdev_clean", "nbdev_export"):
            subprocess.run([Path(sys.executable).parent / command], cwd=copy, check=True)
        return contents(copy)


def complaints():
    "One line for each thing that is out of step, with its remedy."
    here, there = contents(root), remade()
    for name in sorted(here.keys() | there.keys()):
        if name not in there:
            yield f"{name}: no notebook exports it; delete it, or write it in a notebook"
        elif here.get(name) != there[name]:
            yield f"{name}: " + ("not clean" if name.endswith(".ipynb") else "not what its notebook exports") + "; run `make export`"
    for name in out_of_step():
        yield f"{name}: not what nbs/index.ipynb makes; run `make readme`"
    for name in sorted(here):
        if name.endswith(".ipynb"):
            for number, cell in enumerate(nbformat.reads(here[name].decode(), as_version=4).cells):
                for found in trace.findall(str(cell.source) + "\n" + str(cell.get("outputs", ""))):
                    yield f"{name}, cell {number}: names a place on one machine ({found}); use a relative path and run the cell again"


if __name__ == "__main__":
    found = list(complaints())
    print("\n".join(found) or "Notebooks, exports and README are in step.")
    sys.exit(bool(found))
