"""Write hashes/*.txt, against which `make` checks what pip downloads, from settings.ini and constraints.txt. Needs uv and a network.

There is a file for each level of installation. It has every file that the package index lists for a version, for all platforms,
and begins with the file of the level below. PyTorch and what its builds bring are left out: its CPU and CUDA builds are
different files of one version. `--check` needs neither uv nor a network, and says where constraints.txt and the files disagree."""
import argparse
import configparser
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent
levels = dict(base=[""], playground=["playground_"], dev=["dev_", "ray_"])  # the requirements that each adds, as in setup.py
top = "# Made by `python tools/hashes.py` from settings.ini and constraints.txt: change those, not this file."
remedy = "run `python tools/hashes.py`, as CONTRIBUTING.md says"
pin = re.compile(r"^([\w.-]+)==(\S+)", re.MULTILINE)
sha256 = re.compile(r"--hash=sha256:[0-9a-f]{64}\b")
builds = re.compile(r"torch|triton|(nvidia|cuda)-.*")


def canonical(name):
    "A package's name as the index compares it: `Jinja2` and `jinja2`, `huggingface_hub` and `huggingface-hub`."
    return re.sub(r"[-_.]+", "-", name).lower()


def settings():
    "The names and values of settings.ini."
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(root / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def requirements(level):
    "What is asked for at a level and at those below it."
    below = list(levels)[:list(levels).index(level) + 1]
    return " ".join(settings()[f"{kind}requirements"] for name in below for kind in levels[name]).split()


def compiled(level):
    "A level's packages at the versions of constraints.txt, for all platforms, with their hashes: what uv prints."
    if not (uv := shutil.which("uv")):
        sys.exit("there is no uv in PATH: `pip install uv` in an environment of its own, and put that one's bin folder into PATH")
    options = ["--universal", "--python-version", settings()["min_python"], "--generate-hashes", "--no-annotate", "--no-header"]
    with tempfile.NamedTemporaryFile("w", suffix=".in") as asked:
        print(*requirements(level), sep="\n", file=asked, flush=True)
        command = [uv, "pip", "compile", "--quiet", "--no-config", "--system-certs", *options]
        return subprocess.run([*command, "--constraint", root / "constraints.txt", asked.name], check=True, stdout=subprocess.PIPE, text=True).stdout


def packages(text):
    "The packages of a file of hashes: {a line with name, version and marker: the lines with its hashes}."
    blocks = re.split(r"^(?=\w)", text, flags=re.MULTILINE)
    return {line.rstrip(" \\"): hashes for line, *hashes in map(str.splitlines, filter(None, blocks)) if pin.match(line)}


def is_checked(line):
    "Is a package checked by its hashes? Not if it comes with PyTorch's builds, or is needed in browsers alone."
    return not builds.fullmatch(canonical(pin.match(line)[1])) and "sys_platform == 'emscripten'" not in line


def made():
    "The files of hashes, as {level: text}."
    texts, below = {}, {}
    for level in levels:
        found = {line: hashes for line, hashes in packages(compiled(level)).items() if is_checked(line)}
        added = [row for line, hashes in found.items() if below.get(line) != hashes for row in (line + " \\", *hashes)]
        texts[level] = "\n".join([top, *(f"-r {name}.txt" for name in [*texts][-1:]), *added]) + "\n"
        below = found
    return texts


def stored():
    "The files of hashes in this repository, as {level: text}."
    return {level: (root / "hashes" / f"{level}.txt").read_text(encoding="utf-8") for level in levels}


def disagreements(constraints, texts):
    "One line for each version that constraints.txt pins and no file has a hash of, or the other way round."
    pinned = {(canonical(name), version) for name, version in pin.findall(constraints) if not builds.fullmatch(canonical(name))}
    known = {line: hashes for text in texts for line, hashes in packages(text).items()}
    hashed = {(canonical(pin.match(line)[1]), pin.match(line)[2]) for line, hashes in known.items() if sha256.search("\n".join(hashes))}
    for name, version in sorted(pinned - hashed):
        yield f"constraints.txt pins {name}=={version}, and hashes/ has no hash of it: {remedy}"
    for name, version in sorted(hashed - pinned):
        yield f"hashes/ has {name}=={version}, which constraints.txt does not pin: pin the version that is needed, then {remedy}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if constraints.txt and the files disagree")
    if not parser.parse_args().check:
        (root / "hashes").mkdir(exist_ok=True)
        for level, text in made().items(): (root / "hashes" / f"{level}.txt").write_text(text, encoding="utf-8")
    sys.exit("\n".join(disagreements((root / "constraints.txt").read_text(encoding="utf-8"), stored().values())) or 0)
