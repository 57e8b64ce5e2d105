"""The repository itself: version, imports, command, package."""
import ast
import configparser
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hashes
import sftdpo

package = Path(sftdpo.__file__).parent
modules = sorted(file for file in package.rglob("*.py") if not file.name.startswith("_"))


def dotted(
    file: Path,  # a module of the package
) -> str:
    "The name of a module below the package: `engine.work`."
    return ".".join(file.relative_to(package).with_suffix("").parts)


def imported(
    file: Path,  # a module of the package
) -> set[str]:  # the first names of what it imports; for a module of the package, its dotted name after a dot
    "What a module imports, anywhere in it."
    names, here = set(), file.relative_to(package).parent.parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names.add("." + alias.name.removeprefix("sftdpo.") if alias.name.startswith("sftdpo.") else alias.name.split(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.level:
            above = [*here[:len(here) - node.level + 1], *(node.module or "").split(".")]
            names |= {"." + ".".join(filter(None, above))} if node.module else {"." + ".".join([*filter(None, above), alias.name]) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." + node.module.removeprefix("sftdpo.") if node.module.startswith("sftdpo.") else node.module.split(".")[0])
    return names


def python(
    code: str,  # run in a new interpreter
    *arguments: str,  # what it finds in sys.argv
) -> str:  # what it printed
    "Run code in an interpreter that has imported nothing yet."
    return subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session")
def settings(repository):
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(repository / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def test_version_is_told_once(settings, repository):
    assert sftdpo.__version__ == settings["version"]
    assert f"version: {settings['version']}\n" in (repository / "CITATION.cff").read_text(encoding="utf-8")


def test_constraints_satisfy_settings(settings, repository):
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (repository / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    for line in " ".join(settings[which] for which in ("requirements", "dev_requirements", "ray_requirements", "playground_requirements")).split():
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), line


def test_each_version_has_hashes(repository):
    constraints, texts = (repository / "constraints.txt").read_text(encoding="utf-8"), hashes.stored()
    assert list(hashes.disagreements(constraints, texts.values())) == []
    newer = constraints.replace("\npandas==", "\npandas==9", 1)
    assert [line.split(":")[0] for line in hashes.disagreements(newer, texts.values())] == [
        f"constraints.txt pins pandas=={(now := re.search(r'^pandas==(.+)$', newer, re.MULTILINE)[1])}, and hashes/ has no hash of it",
        f"hashes/ has pandas=={now[1:]}, which constraints.txt does not pin"]
    bare = re.sub(r"^(tqdm==.+ \\\n)(    --hash.+\n)+", r"\1", texts["base"], flags=re.MULTILINE)
    [line] = hashes.disagreements(constraints, [bare, texts["playground"], texts["dev"]])
    assert line.startswith("constraints.txt pins tqdm==")


@pytest.mark.parametrize("level", hashes.levels)
def test_hashes_cover_whatever_is_installed(level):
    "All that a level needs here, and what its packages need, but PyTorch's builds: pip has nothing else to fetch afterwards, nor to build this package with."
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement
    texts = hashes.stored()
    lines = [line for name in [*texts][:[*texts].index(level) + 1] for line in hashes.packages(texts[name])]
    assert all(f"-r {below}.txt\n" in texts[above] for below, above in zip(texts, [*texts][1:]))
    known = {hashes.canonical(one.name): one for one in map(Requirement, lines) if not one.marker or one.marker.evaluate()}
    wanted, seen, lacking = [Requirement(line) for line in ["setuptools>=64", *hashes.requirements(level)]], set(), []
    while wanted:
        one = wanted.pop()
        name = hashes.canonical(one.name)
        if (key := (name, *sorted(one.extras))) in seen: continue
        seen.add(key)
        if not hashes.builds.fullmatch(name) and not (name in known and one.specifier.contains(str(known[name].specifier)[2:])): lacking.append(str(one))
        try: below = map(Requirement, requires(one.name) or [])
        except PackageNotFoundError: continue
        wanted += [two for two in below if not two.marker or any(two.marker.evaluate({"extra": extra}) for extra in ("", *one.extras))]
    assert not lacking and len(seen) > 90, lacking


@pytest.mark.parametrize("target, level", [("installed", "base"), ("installed-playground", "playground"), ("installed-dev", "dev")])
def test_make_installs_what_has_hashes_first(target, level, repository):
    if not shutil.which("make"): pytest.skip("there is no make")
    said = subprocess.run(["make", "-n", "VENV=nowhere", f"nowhere/{target}"], cwd=repository, check=True, capture_output=True, text=True).stdout
    first, second = re.findall(r"-m pip install ([^&\n]+)", said)
    assert "--no-deps --require-hashes" in first and "--no-build-isolation -c constraints.txt -e " in second
    command = re.search(r"grep[^|]+\| awk [^|]+", said).group()
    shares = [subprocess.run(["sh", "-c", command.replace("@", str(share))], cwd=repository, check=True, capture_output=True, text=True).stdout for share in range(3)]
    levels = ("base", "playground", "dev")
    lists = [(repository / "hashes" / f"{below}.txt").read_text(encoding="utf-8") for below in levels[:levels.index(level) + 1]]
    def packages(texts): return sorted(line for line in "".join(texts).splitlines() if line[0] not in "#-")
    assert packages(shares) == packages(lists) and "seq 0 2" in said


def test_versions_with_known_faults_are_not_allowed(settings):
    "filelock followed links at its lock's name until 3.20.1, and in soft locks until 3.20.3; tqdm's command evaluated its options until 4.66.3."
    from packaging.requirements import Requirement
    allowed = {one.name: one.specifier for one in map(Requirement, settings["requirements"].split())}
    for name, faulty in (("filelock", "3.20.2"), ("tqdm", "4.66.2")): assert not allowed[name].contains(faulty), name


@pytest.mark.parametrize("file", modules, ids=lambda file: file.stem)
def test_package_needs_no_development_tools(file):
    assert not imported(file) & {"fastcore", "nbdev", "execnb", "IPython", "pytest"}


def test_imports_form_no_circle(repository):
    notebooks = [path for path in (repository / "nbs").rglob("*.ipynb") if not any(part.startswith((".", "_")) for part in path.parts)]
    exported = {name for path in notebooks for name in re.findall(r"#\|\s*default_exp ([\w.]+)", path.read_text(encoding="utf-8"))}
    assert {dotted(file) for file in modules} == exported
    arrows = {dotted(file): {name[1:] for name in imported(file) if name.startswith(".") and name[1:] in exported} for file in modules}
    while free := [name for name, targets in arrows.items() if not targets]:
        arrows = {name: targets - set(free) for name, targets in arrows.items() if name not in free}
    assert not arrows, f"these modules import one another in a circle: {arrows}"


def test_explorers_are_stored_without_their_widgets(repository):
    seen = 0
    for notebook in sorted((repository / "nbs").rglob("[0-9]*.ipynb")):
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            if re.search(r"^interact\(", "".join(cell["source"]), re.MULTILINE):
                seen += 1
                assert cell["outputs"] == [], f"{notebook.name}: clear the output of the cell that calls interact; a page without a kernel shows a dead widget"
    assert seen


def slow_faults(
    notebook: Path,  # with code that no test runs
) -> list[str]:
    "Imports of the package in a notebook that fail, and calls in its slow cells that do not fit what is called."
    found, known = [], {}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or source.startswith(("%", "!")): continue
        nodes = list(ast.walk(ast.parse(source)))
        for node in nodes:
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("sftdpo"): continue
            module = importlib.import_module(node.module)
            for alias in node.names:
                if hasattr(module, alias.name): known[alias.asname or alias.name] = getattr(module, alias.name)
                elif not (package.parent / node.module.replace(".", "/") / f"{alias.name}.py").exists(): found.append(f"{node.module} has no {alias.name}")
        for node in nodes if "| slow" in source else []:
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in known: continue
            if any(isinstance(one, ast.Starred) for one in node.args) or any(one.arg is None for one in node.keywords): continue
            try: inspect.signature(known[node.func.id]).bind(*node.args, **{one.arg: one for one in node.keywords})
            except TypeError as error: found.append(f"{node.func.id}: {error}")
    return found


def test_slow_cells_call_what_there_is(repository, tmp_path):
    notebooks = [path for path in sorted((repository / "nbs").rglob("*.ipynb")) if "| slow" in path.read_text(encoding="utf-8")]
    assert len(notebooks) > 5 and {path.name: faults for path in notebooks if (faults := slow_faults(path))} == {}
    wrong = tmp_path / "wrong.ipynb"
    cells = ["from sftdpo.model import empty_model, nothing", "#| slow\nempty_model('bard')"]
    wrong.write_text(json.dumps(dict(cells=[dict(cell_type="code", source=[source]) for source in cells])))
    assert [fault.partition(":")[0] for fault in slow_faults(wrong)] == ["sftdpo.model has no nothing", "empty_model"]


def test_command_line_starts_light():
    heavy = "torch transformers datasets peft trl pandas sklearn scipy statsmodels matplotlib seaborn sacrebleu ray jinja2"
    loaded = python(f"import sys, sftdpo.cli; print(*set('{heavy}'.split()) & set(sys.modules))")
    assert loaded.split() == []


def test_help_names_the_commands():
    shown = python("from sftdpo.cli import main; main()", "--help")
    for command in ("quickstart", "data", "plan", "compare", "report", "train", "evaluate", "submit", "generate", "fetch"):
        assert command in shown


def test_a_build_holds_modules_and_assets(repository, tmp_path):
    pytest.importorskip("setuptools")
    subprocess.run([sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path, "build", "--build-base", tmp_path / "build",
                    "--build-lib", tmp_path / "lib"], cwd=repository, check=True, capture_output=True)

    def files(folder):
        return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts}

    built = files(tmp_path / "lib/sftdpo")
    assert built == files(package)
    assert {"assets/sonnets.txt", "assets/bard/model.safetensors", "assets/bard/tokenizer.json"} <= built


def test_assets_are_small():
    assert sum(file.stat().st_size for file in (package / "assets").rglob("*") if file.is_file()) < 12e6


def test_tiny_models(tiny):
    model, tokenizer = tiny
    assert 50_000 < model.num_parameters() < 200_000
    assert tokenizer.pad_token is None and model.config.eos_token_id == tokenizer.eos_token_id
    assert [len(tokenizer.encode(word)) for word in ("yes", "no")] == [1, 1]
    line = "Shall I compare thee? Ünïcode, too.\n"
    assert tokenizer.decode(tokenizer.encode(line)) == line
    model.train()
    ids = torch.tensor([tokenizer.encode(line)])
    assert torch.equal(model(ids).logits, model(ids).logits), "dropout is on"


def test_a_release_builds_installs_and_tries_the_package(repository):
    import yaml
    flow = yaml.safe_load((repository / ".github/workflows/release.yaml").read_text())
    steps = {step.get("name", step.get("uses")): step for step in flow["jobs"]["build"]["steps"]}
    said = "\n".join(step.get("run", "") for step in steps.values())
    assert re.search(r"python -m build$", said, re.MULTILINE) and "install" in said and "dist/*.whl" in said
    assert f"\nversion = {sftdpo.__version__}\n" in (repository / "settings.ini").read_text() and 'grep -qx "version = ${GITHUB_REF_NAME#v}" settings.ini' in said
    commands = re.findall(r"new/bin/sftdpo (.+)", steps["Smoke test"]["run"])
    from sftdpo.cli import parse
    for command in commands:
        if "--help" not in command: parse(command.split())
    assert [command.split()[0] for command in commands] == ["--help", "data", "train", "predict"]
    assert flow["jobs"]["publish"]["needs"] == "build" and flow["jobs"]["publish"]["permissions"] == {"id-token": "write"}


def test_the_package_is_found_from_the_folder_above_its_clone(tmp_path, repository):
    "At 280782a Python took the clone's folder, named like the package, for the package."
    (tmp_path / "sftdpo").symlink_to(repository, target_is_directory=True)
    found = subprocess.run([sys.executable, "-c", "import sftdpo.data\nprint(sftdpo.data.load_task('sonnet').name)"], cwd=tmp_path, capture_output=True, text=True)
    assert found.stdout == "sonnets\n", found.stderr
