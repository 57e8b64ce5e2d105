"""The playground: its forms and pieces by themselves, and the page in a real browser under JupyterLab and Voilà.

The pictures that the browser tests take go to the folder that SFTDPO_SHOTS names, or to pytest's own."""
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from sftdpo.config import Execution, LoRA, Stage, Study, declared, to_yaml
from sftdpo.forms import Form, PRESETS, field_paths, flattened, settle_form
from sftdpo.live import COMMAND, begin, command_words, page_lock, progress_of, said_last, stage_lines, stop, working
from sftdpo.playground import Playground
from sftdpo.safe_files import held
from sftdpo.tree import stage_tree
from sftdpo.views import answers_of, html_table, python_call, read_parts, texts_html, cells_html

HOSTILE = "<img src=x onerror=alert(1)>\u202e"


def small(name="small", **changes):
    return Study(name, **(dict(train_size=400, test_size=32, recipes=("sft",), tunings=("full",), sft=Stage("sft", batch_size=4, epochs=2, looks=1, checkpoint_steps=5)) | changes))


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
    ("sampling.top_p", "2", "sampling.top_p"), ("learning_rates.sft_full", "fast", "give a number"), ("choosing.trials", "1", "at least 3"),
    ("sweep", "dpo.beta: [", "sweep"), ("cells", "sfd lora dpo.beta: 1", "cells"), ("name", "a/b", "study.name"), ("reading.encoding", "utf8000", "reading.encoding")])
def test_a_mistake_is_named_beside_its_field(path, text, said):
    form = Form()
    form.entries[path].control.value = text
    assert form.settings is None and list(form.problems) == [path]
    assert said in form.entries[path].problem and sum(bool(entry.problem) for entry in form.entries.values()) == 1
    form.entries[path].set(form.entries[path].default)
    assert form.settings == Study()


def test_text_on_the_page_is_text():
    form = Form()
    form.entries["name"].control.value = form.entries["train_size"].control.value = HOSTILE
    shown = form.entries["train_size"].note.value + form.note.value
    assert "<img" not in shown and "&lt;img" in shown
    assert "<img" not in html_table([{HOSTILE: HOSTILE}], HOSTILE)
    texts = pd.DataFrame([dict(id=HOSTILE, prompt=HOSTILE, true=HOSTILE, cell=HOSTILE, generated=HOSTILE, chrf=1.0)])
    assert "<img" not in texts_html([dict(texts=texts)])
    part = dict(task=HOSTILE, about=HOSTILE, beside={HOSTILE: 0.5}, metric="accuracy", lines=[{"cell": HOSTILE}])
    assert "<img" not in cells_html([part], [HOSTILE])


def test_commands_that_are_shown_are_those_that_run(tmp_path):
    from sftdpo.cli import parse
    study = small(seeds=(0, 1))
    folder = tmp_path / "a study"
    folder.with_name("a study.yaml").write_text(to_yaml(study))
    command = parse(command_words(folder, Execution(workers=2, retry_failed=True))[1:])
    assert command.study == study and command.out == folder and command.execution == Execution(workers=2, retry_failed=True)
    found = {}
    exec(python_call(study, folder).rpartition("\n")[0], found)
    assert found["study"] == study


def test_unfinished_lines_and_folders_without_a_study(tmp_path):
    study = small()
    nodes = stage_tree(study)
    assert list(progress_of(tmp_path, nodes, True).state) == ["to do", "to do"]
    home = tmp_path / "stages" / nodes[1].key
    home.mkdir(parents=True)
    for text, lines in (("", 0), ('{"step": 1', 0), ('{"step": 1, "steps": 200, "loss": NaN}\n{"st', 1)):
        (home / "progress.jsonl").write_text(text)
        assert len(stage_lines(tmp_path, nodes[1])) == lines
    assert list(progress_of(tmp_path, nodes, False).state) == ["to do", "stopped"]
    page = Playground(tmp_path, study)
    page.open()
    assert "No such file" in page.told.value and page.stop_button.disabled
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
    assert working(folder) is None and not stop(folder)


def test_results_are_read_from_any_study(repository):
    home = repository / "nbs/study/results"
    for name, task in (("smollm2-paraphrase", "paraphrase"), ("smollm2-sonnet", "sonnet")):
        answers = answers_of(home / name, task)
        cells = read_parts(home / name)[0]["cells"].set_index("cell")["mean"]
        by_name = answers.groupby("name")["value"].mean()
        assert len(by_name) == len(cells) and by_name["backbone"] == pytest.approx(cells["backbone"], abs=0.005)


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
        for name in ("lab", "voila"): stop(home / f"results-{name}")
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
    page.fill("train size", "400")
    page.fill("test size", "32")
    for label in ("dpo", "sft-dpo", "lora"): page.tick(label)
    page.fold("SFT stages")
    for label, text in (("batch size", "4"), ("epochs", "2"), ("looks", "1"), ("checkpoint steps", "5")): page.fill(label, text)
    page.wait(lambda: not page.all("//*[contains(@class,'sftdpo-problem')]"), "a form without mistakes")
    page.wait(lambda: page.text("2 runs, 1 stage to train"), "an estimate")
    page.shoot("estimate")

    page.press("Run")
    def step(): return int(page.one("").text.split("training · step ")[1].split()[0])
    page.wait(lambda: step() >= 10, "ten steps")
    page.shoot("training")
    assert page.field("epochs").get_attribute("value") == "2"
    page.press("Stop")
    page.wait(lambda: page.text("Resume goes on from here"), "a process that has stopped")
    page.wait(lambda: page.text("stopped · step"), "a stage that has stopped")
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
    page.wait(lambda: page.text(f"sftdpo compare --settings results-{name}.yaml --out results-{name}"), "the command")
    errors = [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE" and line["source"] != "network"]
    assert [message for message in errors if VOILAS_OWN not in message] == []
    history = pd.read_csv(next(folder.glob("runs/*sft-full*/history.csv")))
    assert history["step"].max() == 200 and history["loss"].notna().sum() == 200
