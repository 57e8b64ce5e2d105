"""The playground: its forms and pieces by themselves, and the page in a real browser under JupyterLab and Voilà.

The pictures that the browser tests take go to the folder that SFTDPO_SHOTS names, or to pytest's own."""
import asyncio
import contextlib
import http.client
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest

from sftdpo.config import Execution, LoRA, SettingsError, Stage, Study, declared, to_yaml
from sftdpo.engine.folder import State, StudyFolder
from sftdpo.engine.inputs import Inputs
from sftdpo.engine.runs import cost_group
from sftdpo.engine.safe_files import held
from sftdpo.engine.timing import Plan, Timing, known_times
from sftdpo.engine.tree import stage_lines, stage_tree
from sftdpo.page.forms import PRESETS, Form, field_paths
from sftdpo.page.live import (
    COMMAND,
    AtWork,
    begin_study,
    command_words,
    log_file,
    page_lock,
    progress_of,
    settings_file,
    stop_study,
    working,
)
from sftdpo.page.views import answers_of, cells_html, html_table, python_call, read_parts, texts_html
from sftdpo.playground import Playground, folder_of, measure_apart
from sftdpo.tasks import metric_named

HOSTILE = "<img src=x onerror=alert(1)>\u202e"


def small(name="small", **changes):
    return Study(name, **(dict(train_size=400, test_size=32, recipes=("sft",), tunings=("full",), sft=Stage("sft", batch_size=4, epochs=2, evaluations=1, checkpoint_steps=5)) | changes))


def test_every_field_of_the_command_line_is_in_the_form():
    paths = field_paths(Study)
    assert {path.split(".")[0] for path in paths} == set(declared(Study))
    assert all(text for *_, text in paths.values())


def test_a_form_takes_any_study():
    form, wild = Form(), small(cells={"sft lora sft.learning_rate": 1e-3}, sweep={"lora.rank": [4, 8]}, lora=LoRA(rank=4, targets=("c_attn",)), seeds=(3, 4), tunings=("full", "lora"))
    for study in (wild, *(study for _, study in PRESETS.values())):
        form.set(study)
        assert form.settings == study, form.problems


@pytest.mark.parametrize("path, text, said", [
    ("train_size", "many", "train_size = 'many' cannot be used: give a whole number"), ("seeds", "0, 0", "none twice"), ("dpo.beta", "0", "dpo.beta"),
    ("sampling.top_p", "2", "sampling.top_p"), ("learning_rates.sft_full", "fast", "give a number"), ("search.trials", "1", "at least 3"),
    ("sweep", "dpo.beta: [", "sweep"), ("cells", "sfd lora dpo.beta: 1", "cells"), ("name", "a/b", "study.name"), ("reading.encoding", "utf8000", "reading.encoding")])
def test_a_mistake_is_named_beside_its_field(path, text, said):
    form = Form()
    form.entries[path].control.value = text
    assert form.settings is None and list(form.problems) == [path]
    assert said in form.entries[path].problem and sum(bool(entry.problem) for entry in form.entries.values()) == 1
    form.entries[path].set(form.entries[path].default)
    assert form.settings == Study()


@pytest.mark.parametrize("path, text, value", [
    ("seeds", "0 1 2", (0, 1, 2)), ("search.betas", "0.05 0.1", (0.05, 0.1)), ("lora.targets", "c_attn c_proj", ("c_attn", "c_proj")), ("sweep", "dpo.beta 0.05,0.1", {"dpo.beta": [0.05, 0.1]}),
    ("reading.verbalizers", "0 negative 1 positive", {"0": "negative", "1": "positive"}), ("reading.verbalizers", "0: no, 1: yes", {"0": "no", "1": "yes"}),
    ("cells", "'sft-dpo lora dpo.beta' 0.05", {"sft-dpo lora dpo.beta": 0.05})])
def test_several_values_are_typed_as_the_help_says(path, text, value):
    form = Form()
    form.entries[path].control.value = text
    found = form.settings
    for name in path.split("."): found = getattr(found, name)
    assert found == value


@pytest.mark.parametrize("path, text", [("seeds", "0 b"), ("cells", "'sft lora lora.rank'"), ("sweep", "dpo.beta"), ("reading.verbalizers", "0 don't")])
def test_a_mistake_in_several_values_shows_how_they_are_typed(path, text):
    form = Form()
    form.entries[path].control.value = text
    assert list(form.problems) == [path] and form.problems[path].endswith(f"Write it like this: {form.entries[path].control.placeholder}")


def test_a_mistake_in_who_trains_is_seen_from_outside(tmp_path):
    page = Playground(tmp_path / "study")
    assert page.who.accordion is None and page.who_fold.titles == ("Who trains",) and not page.run_button.disabled
    page.who.entries["workers"].control.value = "0"
    assert page.who_fold.titles == ("Who trains ✗",) and page.run_button.disabled and "1 to mend" in page.noted.value


def test_text_on_the_page_is_text():
    form = Form()
    form.entries["name"].control.value = form.entries["train_size"].control.value = HOSTILE
    shown = form.entries["train_size"].note.value + form.note.value
    assert "<img" not in shown and "&lt;img" in shown
    assert "<img" not in html_table([{HOSTILE: HOSTILE}], HOSTILE)
    texts = pd.DataFrame([dict(id=HOSTILE, prompt=HOSTILE, true=HOSTILE, cell=HOSTILE, generated=HOSTILE, chrf=1.0)])
    assert "<img" not in texts_html([dict(texts=texts)])
    part = dict(task=HOSTILE, about=HOSTILE, beside={HOSTILE: 0.5}, metric=metric_named("accuracy"), lines=[{"cell": HOSTILE}])
    assert "<img" not in cells_html([part], [HOSTILE])


def test_commands_that_are_shown_are_those_that_run(tmp_path):
    from sftdpo.cli import parse
    study = small(seeds=(0, 1))
    folder = tmp_path / "a study"
    settings_file(folder).write_text(to_yaml(study))
    command = parse(command_words(folder, Execution(workers=2, retry_failed=True))[1:])
    assert command.study == study and command.out == folder and command.execution == Execution(workers=2, retry_failed=True)
    found = {}
    exec(python_call(study, folder).rpartition("\n")[0], found)
    assert found["study"] == study


def test_unfinished_lines_and_folders_without_a_study(tmp_path):
    study = small()
    nodes = stage_tree(study, Inputs())
    assert list(progress_of(tmp_path, nodes).state) == ["waiting", "waiting"]
    home = tmp_path / "stages" / nodes[1].key
    home.mkdir(parents=True)
    for text, lines in (("", 0), ('{"step": 1', 0), ('{"step": 1, "steps": 200, "loss": NaN}\n{"st', 1)):
        (home / "progress.jsonl").write_text(text)
        assert len(stage_lines(StudyFolder(tmp_path).stage(nodes[1].key))) == lines
    assert list(progress_of(tmp_path, nodes).state) == ["waiting", "waiting"]  # there is no checkpoint to go on from
    page = Playground(tmp_path, study)
    page.open()
    assert "holds no study yet" in page.told.value and page.stop_button.disabled
    page.run()
    assert page.process is None and "holds files that are no study" in page.noted.value and page.run_button.disabled


def test_pictures_lie_where_voila_finds_them(repository):
    "Voilà never finishes a page with a picture that is not in the notebook's folder."
    for path in (repository / "nbs/study").glob("*.ipynb"):
        pictures = [name for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown" for name in re.findall(r"!\[.*?\]\((.*?)\)", cell.source)]
        assert all(not name.startswith("..") and (path.parent / name).exists() for name in pictures), path


def test_one_page_at_a_time(tmp_path):
    folder = tmp_path / "study"
    with held(page_lock(folder)):
        assert working(folder) == os.getpid()
        second = subprocess.run([sys.executable, "-c", COMMAND, str(page_lock(folder)), "compare"], capture_output=True, text=True)
    assert second.returncode == 1 and "another page" in second.stderr
    assert working(folder) is None and not stop_study(folder)


class Process:
    "What `begin` gives, without a process."
    def __init__(self, code=None): self.code, self.asked = code, 0
    def poll(self): return self.code
    def terminate(self): self.asked += 1


def test_a_second_page_writes_nothing(tmp_path):
    folder = tmp_path / "study"
    settings_file(folder).write_text(to_yaml(small()))
    log_file(folder).write_text("at work")
    with held(page_lock(folder)):
        with pytest.raises(FileExistsError, match="press Open"): begin_study(small(seeds=(1,)), folder)
    assert settings_file(folder).read_text() == to_yaml(small()) and log_file(folder).read_text() == "at work"


def test_a_page_that_is_opened_while_another_trains_follows_it(tmp_path):
    folder = tmp_path / "study"
    settings_file(folder).write_text(to_yaml(small("theirs")))
    with held(page_lock(folder)):  # its study.yaml is not yet written
        page = Playground(folder)
        assert page.form.settings.name == "theirs" and page.process.poll() is None and page.run_button.disabled and not page.stop_button.disabled
    assert page.process.poll() == 1
    page.ended()
    assert "Finished" not in page.told.value and page.process is None and not page.run_button.disabled
    page.process, page.done = AtWork(folder), True
    page.ended()
    assert "Finished." in page.told.value
    page.ended()  # nothing is left to say


def test_a_page_keeps_its_own_process(tmp_path):
    folder, process = tmp_path / "study", Process()
    page = Playground(folder, small())
    settings_file(folder).write_text(to_yaml(small()))
    page.process = AtWork(folder, process)
    page.open()
    assert page.process.begun is process
    page.folder.value = str(tmp_path / "other")
    page.halt()
    assert process.asked == 1 and page.followed == folder
    page.folder.value = str(folder)
    process.code = -signal.SIGKILL
    page.ended()
    assert "SIGKILL (not enough memory?)" in page.told.value


def test_resume_tries_again_what_failed_and_says_why_it_did(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr("sftdpo.playground.begin_study", lambda study, folder, execution: given.append(execution) or Process(1))
    page = Playground(tmp_path / "study", small())
    page.run()
    assert given == [Execution(retry_failed=True)]
    (page.home / "failures").mkdir(parents=True)
    (page.home / "failures/abc.txt").write_text("paraphrase: sft full, seed 0\nFloatingPointError: the loss is not a number\n\nTraceback ...")
    page.ended()
    assert "1 stage failed; Resume tries again. paraphrase: sft full, seed 0: FloatingPointError: the loss is not a number" in page.told.value


def test_a_stopped_stage_stands_at_its_last_checkpoint(tmp_path):
    nodes = stage_tree(small(), Inputs())
    home = tmp_path / "stages" / nodes[1].key
    for name in ("checkpoint-8", "checkpoint-16", "checkpoint-24"): (home / "checkpoints" / name).mkdir(parents=True)
    for name in ("checkpoint-8", "checkpoint-16"): (home / "checkpoints" / name / "complete.json").write_text("{}")  # 24 was being written
    (home / "progress.jsonl").write_text("".join(f'{{"step": {step}, "steps": 32, "loss": {step}, "elapsed": {step}}}\n' for step in range(1, 29)))
    folder, stopped = StudyFolder(tmp_path), progress_of(tmp_path, nodes).iloc[1]
    with folder.held(nodes[1].key): at_work = progress_of(tmp_path, nodes).iloc[1]
    assert (stopped.step, stopped.done, stopped.loss) == (16, 0.5, 16) and (at_work.step, at_work.loss) == (28, 28)
    timing = Timing()
    timing.measured = {cost_group(nodes[1].run, None): [0.0]}
    def left(): return timing.left(folder, nodes[1], folder.state(nodes[1]))
    assert (stopped.state, at_work.state, left()) == ("stopped", "running", 16)
    with folder.held(nodes[1].key): assert left() == pytest.approx(4)


@contextlib.contextmanager
def closed(folder):
    "A folder that this process may not look into, even if it is root's."
    folder.mkdir()
    folder.chmod(0)
    if root := os.geteuid() == 0: os.seteuid(65534)
    try: yield
    finally:
        if root: os.seteuid(0)
        folder.chmod(0o700)


def test_neighbours_that_cannot_be_read_have_nothing_to_say():
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        home.chmod(0o755)
        (home / "damaged/stages/one").mkdir(parents=True)
        for path, text in (("study.yaml", ""), ("stages/one/stage.json", '{"seconds": '), ("calibration.json", "[]")): (home / "damaged" / path).write_text(text)
        with closed(home / "private"): timing = known_times(StudyFolder(home / "mine"))
    assert timing.measured == timing.calibrated == {}


def test_a_folder_that_cannot_be_used_is_told_below_its_name(tmp_path):
    page = Playground(tmp_path / "study", small())
    (tmp_path / "a file").write_text("")
    for text, why in (("", "Name a folder"), ("~nobody-of-this-name/runs", "no user ~nobody-of-this-name"), (str(tmp_path / "a file" / "runs"), "is a file")):
        page.folder.value = text
        assert why in page.place.value and all(one.disabled for one in (page.run_button, page.open_button, page.show_button, page.measure_button))
    page.folder.value = str(tmp_path / "new")
    assert str(tmp_path / "new") in page.place.value and not page.run_button.disabled and not page.open_button.disabled
    with closed(tmp_path / "private"), pytest.raises(ValueError, match="Permission denied"): folder_of(str(tmp_path / "private/runs"))


def test_results_before_any_run(tmp_path):
    page = Playground(tmp_path / "study", small())
    page.show(page.read(page.home))
    assert "No run is finished yet" in page.views["Cells"].value


def test_paths_on_the_page_are_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Playground("runs/mine", small())
    assert f"sftdpo compare --settings {tmp_path}/runs/mine.page.yaml --out {tmp_path}/runs/mine" in page.views["Command"].value and "cd " not in page.views["Command"].value
    page.save()
    assert str(tmp_path / "study.yaml") in page.told.value
    page.load()
    assert str(tmp_path / "study.yaml") in page.told.value
    page.form.entries["data"].control.value = "nowhere.csv"
    assert f"cd {tmp_path}\nsftdpo compare" in page.views["Command"].value and "os.chdir(" in page.views["Command"].value
    try: page.look()
    except ValueError as error: page.refuse(error)
    assert f"nowhere.csv was looked for in {tmp_path}" in page.form.entries["data"].problem


def test_save_asks_before_it_replaces_and_keeps_rights(tmp_path):
    page, path = Playground(tmp_path / "study", small()), tmp_path / "mine.yaml"
    page.file.value = str(path)
    path.write_text("a diary")
    path.chmod(0o600)
    page.save()
    assert path.read_text() == "a diary" and "is there already. Press Replace" in page.told.value and page.save_button.description == "Replace"
    page.file.value = str(tmp_path / "other.yaml")  # another name: it asks anew
    page.file.value = str(path)
    page.save()
    assert path.read_text() == "a diary"
    page.save()
    assert path.read_text() == to_yaml(small()) and path.stat().st_mode & 0o777 == 0o600 and "Saved" in page.told.value and page.save_button.description == "Save"
    page.save()
    assert "Press Replace" in page.told.value


def test_what_is_saved_in_place_of_a_link_leaves_its_target(tmp_path):
    page, diary, link = Playground(tmp_path / "study", small()), tmp_path / "diary", tmp_path / "mine.yaml"
    diary.write_text("mine")
    link.symlink_to(diary)
    page.file.value = str(link)
    page.save()
    page.save()
    assert diary.read_text() == "mine" and not link.is_symlink() and link.read_text() == to_yaml(small())


@pytest.mark.parametrize("text", ["password: hunter2", "train_size: hunter2", "hunter2", "- hunter2", "a: [hunter2", "hunter2: &a [*a]", "sft: {hunter2: 1}", b"hunter2: \xff"])
def test_load_does_not_repeat_what_is_in_a_file(text, tmp_path, capsys):
    from sftdpo.cli import main
    page, path = Playground(tmp_path / "study", small()), tmp_path / "private"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    page.file.value = str(path)
    page.load()
    assert "hunter2" not in page.told.value and f"{path} cannot be loaded: " in page.told.value and page.form.settings == small()
    assert ("its field train_size cannot be used" in page.told.value) == (text == "train_size: hunter2")
    if not isinstance(text, bytes):  # the remedy
        with pytest.raises(SystemExit) as end: main(["plan", "--settings", str(path)])
        told = capsys.readouterr().err
        assert end.value.code == 2 and told.startswith("sftdpo: ") and any(words in told for words in ("cannot be used: ", "this is not YAML: ", "has the alias"))


def estimated(runs, stages, left, unknown, memory, disk):
    "What `estimate` gives."
    node = SimpleNamespace(stage=stages or None, runs=[None] * runs)
    return Plan([node] * bool(runs), [State("waiting")] * bool(runs), [left] * bool(runs), [], disk, 1, memory, unknown)


def test_a_refusal_goes_with_its_cause(tmp_path):
    page = Playground(tmp_path / "study", small())
    page.refuse(SettingsError("train_size = 400 cannot be used: ..."))
    assert page.form.entries["train_size"].problem and page.run_button.disabled
    page.folder.value = str(tmp_path / "other")
    assert not page.form.entries["train_size"].problem and not page.run_button.disabled
    page.refuse(FileExistsError("..."))
    page.note(estimated(1, 1, 1.0, ("sft",), 1, 1))
    assert not page.run_button.disabled and not page.measure_button.disabled
    page.note(estimated(0, 0, 0.0, (), 1, 1))
    assert page.run_button.disabled and page.run_button.description == "Finished"


def test_an_older_look_says_nothing(tmp_path, monkeypatch):
    begun, go = threading.Event(), threading.Event()
    def look(study, folder, workers, inputs):
        if study.train_size != 7: return estimated(1, 1, 1.0, (), 1, 1)
        begun.set()
        go.wait(60)
        raise SettingsError("train_size = 7 cannot be used: ...")
    monkeypatch.setattr("sftdpo.playground.estimate", look)
    page = Playground(tmp_path / "study", small())
    async def typed():
        page.form.entries["train_size"].control.value = "7"
        asked = page.looking()
        while not begun.is_set(): await asyncio.sleep(0.05)
        page.form.entries["train_size"].control.value = "8"
        assert asked.args[0].train_size == 7
        go.set()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
    asyncio.run(typed())
    assert not page.form.entries["train_size"].problem and "1 run," in page.noted.value and not page.run_button.disabled


def test_measuring_leaves_the_page_free(tmp_path, monkeypatch):
    go = threading.Event()
    def fails(study, folder):
        go.wait(60)
        raise ValueError("there is no such file")
    monkeypatch.setattr("sftdpo.playground.measure_apart", fails)
    monkeypatch.setattr("sftdpo.playground.estimate", lambda *asked: estimated(1, 1, None, ("sft",), 1, 1))
    page = Playground(tmp_path / "study", small())
    async def pressed():
        page.measure()
        await page.beside(page.looking(), page.note)  # is answered meanwhile
        assert "1 run," in page.noted.value and page.measure_button.disabled and page.run_button.disabled and "Measuring" in page.told.value
        go.set()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
    asyncio.run(pressed())
    assert "Nothing was measured. there is no such file" in page.told.value and not page.run_button.disabled and not page.measure_button.disabled
    page.process = AtWork(page.home, Process())
    page.dress()
    assert page.measure_button.disabled


def test_why_nothing_was_measured_is_a_sentence(tmp_path, monkeypatch):
    for code, said, told in ((1, "Traceback ...\nsftdpo.examples.DataError: data is 'x', and there is no such file", r"^data is 'x'"), (-9, "", "SIGKILL")):
        monkeypatch.setattr("subprocess.run", lambda *words, **how: subprocess.CompletedProcess(words, code, "", said))
        with pytest.raises(ValueError, match=told): measure_apart(small(), tmp_path / "study")


def test_results_are_read_from_any_study(repository):
    home = repository / "nbs/study/results"
    for name, task in (("smollm2-paraphrase", "paraphrase"), ("smollm2-sonnet", "sonnet")):
        answers = answers_of(home / name, task)
        cells = read_parts(home / name)[0]["cells"].set_index("cell")["mean"]
        by_name = answers.groupby("name")["value"].mean()
        assert len(by_name) == len(cells) and by_name["base"] == pytest.approx(cells["base"], abs=0.005)


# in a browser

chromium, driver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
lacking = [name for name, there in (("Chromium: apt-get install chromium chromium-driver", chromium and driver), *((f"{name}: pip install {name}", importlib.util.find_spec(name)) for name in ("selenium", "jupyterlab", "voila"))) if not there]
in_a_browser = pytest.mark.skipif(bool(lacking), reason=f"needs {'; '.join(lacking)}")
PATIENCE = 200  # seconds until something that must come is given up: never what a test is decided by


@pytest.fixture(scope="module")
def server(tmp_path_factory, repository):
    "JupyterLab, with Voilà beside it: its address and its folder."
    home = tmp_path_factory.mktemp("jupyter")
    for name in ("lab", "voila"):  # the notebook itself, with a folder for its results, and more often looked at
        notebook = nbformat.read(repository / "nbs/study/playground.ipynb", as_version=4)
        page = next(cell for cell in notebook.cells if cell.source == 'Playground("runs/playground")')
        page.source = f'Playground("results-{name}", every=0.3)'
        for cell in notebook.cells: cell.source = re.sub(r"!\[.*?\]\(images/.*?\)", "", cell.source)  # Voilà beside JupyterLab cannot embed a picture (its own error); alone, it can
        nbformat.write(notebook, home / f"{name}.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (home / "jupyter/JUPYTER_CONFIG_DIR/labconfig").mkdir(parents=True)
    (home / "jupyter/JUPYTER_CONFIG_DIR/labconfig/page_config.json").write_text('{"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": true}}')
    places = {name: str(home / "jupyter" / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")}
    environment = os.environ | places | {"PYTHONPATH": str(repository), "JUPYTER_PREFER_ENV_PATH": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with open(home / "server.log", "w") as log:
        process = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=",
                                    f"--ServerApp.root_dir={home}", "--LabApp.expose_app_in_browser=True"],
                                   cwd=home, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError: time.sleep(0.2)
        assert process.poll() is None, (home / "server.log").read_text()
        yield f"http://127.0.0.1:{port}", home
    finally:
        for name in ("lab", "voila"): stop_study(home / f"results-{name}")
        os.killpg(process.pid, signal.SIGTERM)
        try: process.wait(20)
        except subprocess.TimeoutExpired: os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def browser(tmp_path):
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
                 "--disable-dev-shm-usage", "--window-size=1280,2000", f"--user-data-dir={tmp_path / 'profile'}"): options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    found.set_page_load_timeout(PATIENCE)
    yield found
    found.quit()


class Page:
    "What a person does on the page."
    def __init__(self, browser, shots, name):
        self.browser, self.shots, self.name, self.number = browser, shots, name, 0

    def wait(self, what, why):
        from selenium.common.exceptions import StaleElementReferenceException
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                if found := what(): return found
            except (StaleElementReferenceException, IndexError): pass
            time.sleep(0.2)
        self.shoot("given-up")
        raise AssertionError(f"never came: {why}; picture in {self.shots}")

    def shoot(self, name):
        self.number += 1
        self.browser.save_screenshot(str(self.shots / f"{self.name}-{self.number}-{name}.png"))

    def all(self, xpath): return [one for one in self.browser.find_elements("xpath", f"//*[contains(@class,'sftdpo-playground')]{xpath}") if one.is_displayed()]

    def one(self, xpath): return self.wait(lambda: self.all(xpath)[0], xpath)

    def text(self, words): return words in self.one("").text

    def field(self, label): return self.one(f"//div[contains(@class,'widget-text')][label[normalize-space()='{label}']]//input")

    def fill(self, label, text):
        from selenium.webdriver.common.keys import Keys
        self.field(label).send_keys(Keys.CONTROL, "a")
        self.field(label).send_keys(text or Keys.DELETE)

    def tick(self, label): self.one(f"//label[contains(@class,'widget-label-basic')][span[normalize-space()='{label}']]/input").click()

    def button(self, label): return self.one(f"//button[normalize-space()='{label}']")

    def press(self, label):
        self.wait(lambda: self.button(label).is_enabled(), f"a button {label} that can be pressed")
        self.button(label).click()

    def fold(self, label): self.one(f"//*[contains(@class,'Collapse-header')][normalize-space()='{label}']").click()

    def tab(self, label): self.one(f"//*[contains(@class,'TabBar-tabLabel')][normalize-space()='{label}']").click()


@pytest.fixture(scope="module")
def alone(tmp_path_factory, repository):
    "Voilà as `make playground` starts it: its port, its token, and the page that it gives to who has the token, with the cookie."
    pytest.importorskip("voila")
    home = tmp_path_factory.mktemp("voila")
    command = re.search(r"^playground:.*\n\t\$\(BIN\)/(voila .*)$", (repository / "Makefile").read_text(), re.MULTILINE)[1].split()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {name: str(home / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")} | {"PYTHONPATH": str(repository)}
    process = subprocess.Popen([sys.executable, "-m", *command, "--no-browser", f"--port={port}"], cwd=repository, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        address = next((line for line in process.stdout if f":{port}/" in line), "")
        token = (re.search(r"token=(\w+)", address) or [None, ""])[1]
        threading.Thread(target=process.stdout.read, daemon=True).start()
        status, headers, page = asked(port, f"/?token={token}", until=time.monotonic() + PATIENCE)
        cookies = "; ".join(re.findall(r"(username[^=;]*=[^;]+);", headers.get("Set-Cookie", "")))
        kernel = re.search(r'"kernelId": *"([\w-]+)"', page)
        yield port, token, cookies, kernel and kernel[1]
    finally:
        process.send_signal(signal.SIGTERM)
        try: process.wait(20)
        except subprocess.TimeoutExpired: process.kill()


def asked(port, path, host=None, until=0.0):
    "What a server on this machine answers: status, headers, page."
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    while True:
        try:
            connection.request("GET", path, headers={"Host": host} if host else {})
            break
        except ConnectionError:
            if time.monotonic() > until: raise
            time.sleep(0.2)
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read().decode(errors="replace")


def test_the_page_is_for_who_has_the_token(alone):
    port, token, cookies, kernel = alone
    assert len(token) >= 32 and cookies and kernel
    for path in ("/", "/?token=wrong"):
        status, headers, page = asked(port, path)
        assert (status, "/login" in headers.get("Location", ""), "kernelId" in page) == (302, True, False), path


def test_the_page_answers_to_no_other_name(alone):
    port, token, *_ = alone
    for host in (f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", f"192.0.2.1:{port}"): assert asked(port, f"/?token={token}", host)[0] == 403, host
    assert asked(port, "/voila/files/images/playground.png")[0] == 200 and asked(port, "/voila/files/results/any.png")[0] == 403


def test_the_page_s_socket_asks_for_token_host_and_origin(alone):
    from tornado.httpclient import HTTPClientError, HTTPRequest
    from tornado.websocket import websocket_connect
    port, token, cookies, kernel = alone
    here, evil = f"127.0.0.1:{port}", f"evil.example:{port}"
    async def opened(query="", **headers):
        try: (await websocket_connect(HTTPRequest(f"ws://{here}/api/kernels/{kernel}/channels{query}", headers=headers, connect_timeout=PATIENCE))).close()
        except HTTPClientError as error: return error.code
        return "open"
    assert asyncio.run(opened(Cookie=cookies, Origin=f"http://{here}")) == "open"
    assert asyncio.run(opened(Origin=f"http://{here}")) == 403
    assert asyncio.run(opened("?token=wrong", Origin=f"http://{here}")) == 403
    assert asyncio.run(opened(Cookie=cookies, Origin=f"http://{evil}")) == 403
    assert asyncio.run(opened(Cookie=cookies, Host=evil, Origin=f"http://{evil}")) == 403
    assert asyncio.run(opened(f"?token={token}", Host=evil, Origin=f"http://{evil}")) == 403


VOILAS_OWN = "The getter for the shared module is not a function"  # Voilà 0.5 says so of JupyterLab extensions that it does not share modules with


@in_a_browser
@pytest.mark.parametrize("name", ["lab", "voila"])
def test_in_a_browser(server, browser, tmp_path, name):
    address, home = server
    shots = Path(os.environ.get("SFTDPO_SHOTS", tmp_path))
    shots.mkdir(parents=True, exist_ok=True)
    page = Page(browser, shots, name)
    if name == "voila": browser.get(f"{address}/voila/render/voila.ipynb")
    else:
        browser.get(f"{address}/doc/tree/lab.ipynb")
        page.wait(lambda: browser.execute_script("const app = window.jupyterapp, panel = app && app.shell.currentWidget; if (!panel || !panel.sessionContext || !panel.sessionContext.isReady || !panel.sessionContext.session?.kernel) return false; app.commands.execute('notebook:run-all-cells'); return true"), "a kernel")
    page.button("Run")
    page.shoot("form")

    page.fill("train size", "many")  # a mistake is named beside its field, and nothing can be run
    page.wait(lambda: "train_size = 'many' cannot be used: give a whole number" in page.one("//*[contains(@class,'sftdpo-problem')]").text, "a mistake that is named")
    page.wait(lambda: not page.button("Run").is_enabled(), "a Run that cannot be pressed")
    page.shoot("mistake")
    page.fill("name", "in a browser")
    page.fill("train size", "200")
    page.fill("test size", "32")
    for label in ("dpo", "sft-dpo", "lora"): page.tick(label)
    page.fold("SFT stages")
    for label, text in (("batch size", "4"), ("epochs", "2"), ("evaluations", "1"), ("checkpoint steps", "5")): page.fill(label, text)
    page.wait(lambda: not page.all("//*[contains(@class,'sftdpo-problem')]"), "a form without mistakes")
    page.wait(lambda: page.text("2 runs, 1 stage to train"), "an estimate")
    page.shoot("estimate")

    page.press("Run")
    def step(): return int(page.one("").text.split("running · step ")[1].split()[0])
    page.wait(lambda: step() >= 10, "ten steps")
    page.shoot("training")
    assert page.field("epochs").get_attribute("value") == "2"
    page.press("Stop")
    page.wait(lambda: page.text("Resume goes on from the last checkpoint"), "a process that has stopped")
    page.wait(lambda: page.text("stopped · goes on from step"), "a stage that has stopped")
    page.shoot("stopped")
    folder = home / f"results-{name}"
    assert working(folder) is None and list(folder.glob("stages/*/checkpoints/checkpoint-*/complete.json")) and not list(folder.glob("stages/*/stage.json"))

    page.press("Resume")
    page.wait(lambda: page.text("Finished."), "the end")
    page.wait(lambda: page.text("Nothing is left to do here"), "an estimate that knows of the end")
    assert not page.button("Finished").is_enabled()
    page.wait(lambda: page.all("//*[contains(@class,'sftdpo-table')]//td[normalize-space()='sft full']"), "the table of cells")
    pictures = page.all("//figure/img")
    assert pictures and all(browser.execute_script("return arguments[0].complete && arguments[0].naturalWidth > 100", one) for one in pictures)
    page.fold("SFT stages")
    page.shoot("cells")
    page.tab("Figures")
    page.wait(lambda: len(page.all("//figure/img")) > len(pictures), "figures")
    page.shoot("figures")
    page.tab("Predictions")
    page.wait(lambda: page.text("of 32 examples"), "predictions")
    page.shoot("predictions")
    page.tab("Command")
    page.wait(lambda: page.text(f"sftdpo compare --settings {folder}.page.yaml --out {folder}"), "the command")
    errors = [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE" and line["source"] != "network"]
    assert [message for message in errors if VOILAS_OWN not in message] == []
    history = pd.read_csv(next(folder.glob("runs/*sft-full*/history.csv")))
    assert history["step"].max() == 100 and history["loss"].notna().sum() == 100


@in_a_browser
def test_the_link_works_in_a_browser_and_save_asks(alone, browser, tmp_path):
    port, token, *_ = alone
    page, saved = Page(browser, tmp_path, "alone"), tmp_path / "mine.yaml"
    browser.get(f"http://localhost:{port}/?token={token}")
    page.button("Run")
    page.fill("train size", "many")
    page.wait(lambda: "give a whole number" in page.one("//*[contains(@class,'sftdpo-problem')]").text, "a mistake that is named")
    page.fill("train size", "200")
    saved.write_text("a diary")
    page.fill("YAML file", str(saved))
    page.press("Save")
    page.wait(lambda: page.text("is there already. Press Replace"), "a question")
    assert saved.read_text() == "a diary"
    page.press("Replace")
    page.wait(lambda: page.text(f"Saved: {saved}"), "the end of it")
    assert "train_size: 200" in saved.read_text() and page.button("Save")
