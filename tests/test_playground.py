"""The playground: its forms and pieces by themselves, and the page in a real browser under JupyterLab and Voilà.

The pictures that the browser tests take go to the folder that SFTDPO_SHOTS names, or to pytest's own."""
import asyncio
import contextlib
import html
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
from test_report import make_study

from sftdpo.claims import judge_claims
from sftdpo.config import Execution, LoRA, Reading, SettingsError, Stage, Study, declared, to_yaml
from sftdpo.engine.folder import State, StudyFolder
from sftdpo.engine.inputs import Inputs
from sftdpo.engine.runs import cost_group
from sftdpo.engine.safe_files import held
from sftdpo.engine.timing import Plan, Timing, known_times, measure
from sftdpo.engine.tree import stage_lines, stage_tree
from sftdpo.page.ask import Ask, answer_html, kept_models, one_row
from sftdpo.page.forms import PRESETS, Form, field_paths, in_page_words
from sftdpo.page.live import (
    COMMAND,
    AtWork,
    begin_study,
    command_words,
    log_file,
    page_lock,
    progress_of,
    recommendation_in,
    settings_file,
    stop_study,
    working,
)
from sftdpo.page.own_file import OwnFile, PageActions, keep_upload, remedy_in_words
from sftdpo.page.views import (
    Predictions,
    answers_of,
    cells_html,
    disagreements,
    html_table,
    python_call,
    read_parts,
    relative_files,
    texts_html,
    verdicts_html,
)
from sftdpo.playground import Playground, Recommending, folder_of, measure_apart
from sftdpo.tasks import metric_named

PATIENCE = 200  # seconds until something that must come is given up: never what a test is decided by
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
    monkeypatch.setattr("sftdpo.playground.live.begin_study", lambda study, folder, execution: given.append(execution) or Process(1))
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
    assert "No run is finished yet" in page.results.views["Cells"].value


def test_paths_on_the_page_are_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Playground("runs/mine", small())
    assert f"sftdpo compare --settings {tmp_path}/runs/mine.page.yaml --out {tmp_path}/runs/mine" in page.results.command.value and "cd " not in page.results.command.value
    page.yaml.save()
    assert str(tmp_path / "study.yaml") in page.told.value
    page.yaml.load()
    assert str(tmp_path / "study.yaml") in page.told.value
    page.form.entries["data"].control.value = "nowhere.csv"
    assert f"cd {tmp_path}\nsftdpo compare" in page.results.command.value and "os.chdir(" in page.results.command.value
    try: page.look()
    except ValueError as error: page.refuse(error)
    assert f"nowhere.csv was looked for in {tmp_path}" in page.form.entries["data"].problem


def test_save_asks_before_it_replaces_and_keeps_rights(tmp_path):
    page, path = Playground(tmp_path / "study", small()), tmp_path / "mine.yaml"
    page.yaml.path.value = str(path)
    path.write_text("a diary")
    path.chmod(0o600)
    page.yaml.save()
    assert path.read_text() == "a diary" and "is there already. Press Replace" in page.told.value and page.yaml.save_button.description == "Replace"
    page.yaml.path.value = str(tmp_path / "other.yaml")  # another name: it asks anew
    page.yaml.path.value = str(path)
    page.yaml.save()
    assert path.read_text() == "a diary"
    page.yaml.save()
    assert path.read_text() == to_yaml(small()) and path.stat().st_mode & 0o777 == 0o600 and "Saved" in page.told.value and page.yaml.save_button.description == "Save"
    page.yaml.save()
    assert "Press Replace" in page.told.value


def test_what_is_saved_in_place_of_a_link_leaves_its_target(tmp_path):
    page, diary, link = Playground(tmp_path / "study", small()), tmp_path / "diary", tmp_path / "mine.yaml"
    diary.write_text("mine")
    link.symlink_to(diary)
    page.yaml.path.value = str(link)
    page.yaml.save()
    page.yaml.save()
    assert diary.read_text() == "mine" and not link.is_symlink() and link.read_text() == to_yaml(small())


@pytest.mark.parametrize("text", ["password: hunter2", "train_size: hunter2", "hunter2", "- hunter2", "a: [hunter2", "hunter2: &a [*a]", "sft: {hunter2: 1}", b"hunter2: \xff"])
def test_load_does_not_repeat_what_is_in_a_file(text, tmp_path, capsys):
    from sftdpo.cli import main
    page, path = Playground(tmp_path / "study", small()), tmp_path / "private"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    page.yaml.path.value = str(path)
    page.yaml.load()
    assert "hunter2" not in page.told.value and f"{path} cannot be loaded: " in page.told.value and page.form.settings == small()
    assert ("its field train_size cannot be used" in page.told.value) == (text == "train_size: hunter2")
    if not isinstance(text, bytes):  # the remedy
        with pytest.raises(SystemExit) as end: main(["plan", "--settings", str(path)])
        told = capsys.readouterr().err
        assert end.value.code == 2 and told.startswith("sftdpo: ") and any(words in told for words in ("cannot be used: ", "there is no setting ", "this is not YAML: ", "has the alias"))


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
    monkeypatch.setattr("sftdpo.playground.live.estimate", look)
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
    monkeypatch.setattr("sftdpo.playground.live.estimate", lambda *asked: estimated(1, 1, None, ("sft",), 1, 1))
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


@pytest.mark.usefixtures("undrawn")
def test_results_are_read_from_any_study(repository):
    home = repository / "nbs/study/results"
    for name, task in (("smollm2-paraphrase", "paraphrase"), ("smollm2-sonnet", "sonnet")):
        answers = answers_of(home / name, task)
        cells = read_parts(home / name)[0]["cells"].set_index("cell")["mean"]
        by_name = answers.groupby(answers["name"].str.partition(",")[0])["value"].mean()
        assert len(by_name) == len(cells) and by_name["base"] == pytest.approx(cells["base"], abs=0.005)


# one study at a time, and one estimate

RESULTS = "nbs/study/results/smollm2-paraphrase"


@pytest.mark.usefixtures("undrawn")
def test_another_folder_shows_nothing_of_the_study_before(tmp_path):
    page, theirs = Playground(tmp_path / "study", small()), make_study(tmp_path / "theirs", ("paraphrase",), recipes=("sft",), tunings=("full",), seeds=(0,))
    page.folder.value = str(theirs)
    page.open()
    found = page.read(page.home)
    page.show(found)
    assert "sft full" in page.results.views["Cells"].value and str(theirs) in page.results.of.value
    page.folder.value = str(tmp_path / "empty")
    page.open()
    assert "sft full" not in page.results.views["Cells"].value and "holds no study yet" in page.told.value and len(page.results.predictions.children) == 1
    page.show(found)  # read before, arrives late
    assert "sft full" not in page.results.views["Cells"].value and str(tmp_path / "empty") in page.results.of.value


def begun_page(folder, process):
    "A page whose study is begun, with a process."
    folder.mkdir()
    StudyFolder(folder).write_study(small())
    page = Playground(folder)
    page.watch(AtWork(folder, process))
    return page


def test_a_finished_study_never_says_resume(tmp_path):
    page = begun_page(tmp_path / "study", Process(0))
    assert page.run_button.description == "Resume" and not page.stop_button.disabled
    page.done = True
    page.ended()
    assert "Finished." in page.told.value and page.run_button.description == "Finished" and page.run_button.disabled
    page.form.entries["seeds"].control.value = "0 1"  # there is more to do
    assert page.run_button.description == "Resume" and not page.run_button.disabled
    page.form.entries["seeds"].control.value = "0"
    page.changed()
    assert page.run_button.description == "Finished"


def test_there_is_one_estimate_at_a_time(tmp_path):
    page = begun_page(tmp_path / "study", Process())
    page.note(estimated(1, 1, 60.0, (), 1, 1))  # asked for before the process began
    page.tick(page.read_course())
    assert page.noted.value == "" and "time left" in page.course.progress.value
    page.form.entries["seeds"].control.value = "0 1"
    assert "counts from the next run" in page.noted.value
    page.process.begun.code = -signal.SIGTERM
    page.ended()
    assert "left" not in page.course.progress.value and "sft full" in page.course.progress.value and "Stopped" in page.told.value
    page.note(estimated(1, 1, 60.0, (), 1, 1))
    assert "time left: 60 s" in page.noted.value


def test_notes_on_several_verdicts_stand_once(repository):
    verdicts = judge_claims(repository / RESULTS, claims=["C2", "C3"])
    shown, notes = verdicts_html(verdicts), [note for one in verdicts for note in one.notes]
    assert len(notes) > len(set(notes))  # some are said of several
    for note in set(notes): assert shown.count(html.escape(note, quote=False).replace("'", "&#39;").replace('"', "&#34;")) == 1, note


def test_predictions_open_on_something():
    def answers(name, values): return pd.DataFrame(dict(id=["a", "b"], prompt="p", true="t", run=name, name=name, answer=name, value=values))
    for runs, show in (([("one", (1.0, 0.0)), ("two", (1.0, 0.0)), ("three", (0.0, 0.0))], "they differ"), ([("one", (1.0, 0.0)), ("two", (1.0, 0.0))], "all"), ([("one", (1.0, 0.0))], "all")):
        view = Predictions(pd.concat([answers(*one) for one in runs]))
        assert view.show.value == show and "<td" in view.table.value and "0 of" not in view.table.value


def test_each_run_has_the_labels_of_its_own_data(monkeypatch):
    # At 2313f6f5 labels were numbered over all data sets of a sweep: a row of eggs, ham and spam was called bug.
    one = pd.DataFrame(dict(run="base-a", label=[0., 1.], prediction=[0., 0.], probability_bug=[.9, .8], probability_praise=[.1, .2]))
    two = pd.DataFrame(dict(run="base-b", label=[0., 2.], prediction=[2., 1.], probability_eggs=[.1, .2], probability_ham=[.2, .7], probability_spam=[.7, .1]))
    table = pd.concat([one, two]).assign(task="labels", recipe="base", tuning="-", seed=0, fold=0, correct=1., id=["1", "2", "1", "2"], prompt=["p", "q", "r", "s"])
    monkeypatch.setattr("sftdpo.page.views.read_texts", lambda folder, runs: table)
    monkeypatch.setattr("sftdpo.page.views.up_to_date", lambda folder: table)
    found = answers_of("", "labels")
    assert list(found.true) == ["bug", "praise", "eggs", "spam"] and list(found.answer) == ["bug (0.90)", "bug (0.80)", "spam (0.70)", "ham (0.70)"]
    names = list(dict.fromkeys(found.name))
    assert len(names) == 2 and disagreements(found, *names, "all").empty  # the same ids, other rows


def test_examples_are_searched_where_none_is_left():
    "At cad44a56 a search among no examples was an AttributeError."
    answers = pd.DataFrame([dict(name=name, id="1", prompt="Hello", true="a", answer=answer, value=value) for name, answer, value in (("x", "a", 1.), ("y", "b", 0.))])
    assert len(disagreements(answers, "x", "y", search="HELLO")) == 1 and disagreements(answers, "x", "y", search="good-bye").empty
    assert disagreements(answers, "x", "y", "only the second is better", search="hello").empty


def test_answers_of_two_tasks_are_told_apart(monkeypatch):
    "A study of labels and texts: at 62ea385b the answers to the labels are all missing."
    labels = pd.DataFrame(dict(run="base-a", task="labels", label=[0., 1.], prediction=[0., 0.], correct=[1., 0.], probability_bug=[.9, .8], probability_praise=[.1, .2]))
    texts = pd.DataFrame(dict(run="base-b", task="sonnet", generated="so", true="thus", chrf=[10., 20.]))
    table = pd.concat([labels, texts]).assign(recipe="base", tuning="-", seed=0, fold=0, id=["1", "2", "3", "4"], prompt="p")
    monkeypatch.setattr("sftdpo.page.views.read_texts", lambda folder, runs: table)
    monkeypatch.setattr("sftdpo.page.views.up_to_date", lambda folder: table)
    assert list(answers_of("", "labels").answer) == ["bug (0.90)", "bug (0.80)"] and list(answers_of("", "sonnet").value) == [10, 20]


def test_files_of_a_command_are_found_from_its_folder():
    "At 62ea385b files that judge, and a text, were left out of what the command needs."
    study = Study(data="mine.csv", also_judge=("more=more.csv", "far=/far.csv"), held_out_text="text.txt")
    assert relative_files(study) == ["mine.csv", "text.txt", "more.csv"] and relative_files(Study()) == []


def test_the_newer_of_two_outcomes_is_shown(tmp_path):
    "The page's own try declined, and a longer one from the shell did not. At 62ea385b the page keeps saying that nothing is recommended."
    StudyFolder(tmp_path).recommendation.write_text("Train sft full.")
    log_file(tmp_path).write_text("No recommendation. 1 minute is too little.")
    for path, older in ((log_file(tmp_path), "Train sft full."), (StudyFolder(tmp_path).recommendation, "No recommendation. 1 minute is too little.")):
        os.utime(path, (1000, 1000))
        assert recommendation_in(tmp_path) == older
        os.utime(path, (9e8, 9e8))


def test_a_busy_machine_is_not_measured(tmp_path, monkeypatch):
    "At 62ea385b it measures for minutes, keeps nothing and says nothing."
    monkeypatch.setattr("sftdpo.engine.timing.busy_machine", lambda: "load 4.0 on 2 processors")
    with pytest.raises(ValueError, match="load 4.0 on 2 processors.* try again later"): measure(tmp_path / "none.yaml", tmp_path)


def test_the_page_says_what_a_table_needs(repository):
    part = read_parts(repository / RESULTS)[0] | dict(opening="No cell beats it: --sft.epochs may help.", said=["runs that give every row the same answer: 1"])
    shown = cells_html([part])
    assert "No cell beats it" in shown and "runs that give every row the same answer" in shown and "--sft.epochs" not in shown


@pytest.mark.parametrize("words", [("no", "text", "null"), ("on", "label"), ("😀", "ja")])
def test_words_that_mean_something_to_yaml_stay_words(words):
    form = Form()
    form.set(Study(reading=Reading(columns=words, verbalizers={"0": "no", "1": "😀"})))
    assert (form.settings.reading.columns, form.settings.reading.verbalizers) == (words, {"0": "no", "1": "😀"}) and not form.problems


def test_what_changes_before_the_browser_has_the_page_is_sent_again(tmp_path, monkeypatch):
    page, sent = Playground(tmp_path / "study", small()), []
    monkeypatch.setattr("ipywidgets.Widget.send_state", lambda one, key=None: sent.append(one))
    asyncio.run(page.say_again((0,)))
    assert {page.noted, page.told, page.run_button, page.results.views["Cells"]} <= set(sent)
    assert not {entry.control for entry in page.form.entries.values()} & set(sent)  # nobody is interrupted


# a file of one's own

ROWS = [f"{word} {i},{label}" for i in range(30) for word, label in (("late parcel", "shipping"), ("wrong bill", "money"))]


def own_file(folder, **actions):
    "The part of the page for files, which looks at once."
    actions = dict(use=None, recommend=None, later=lambda read, show, fail: look_now(read, show, fail), folder=lambda: folder / "uploads", backbone=lambda: "bard", readers=lambda backbone: (None, None)) | actions
    return OwnFile(PageActions(**actions))


def look_now(read, show, fail):
    try: found = read()
    except Exception as error: return fail(error)
    show(found)


@pytest.mark.parametrize("head, rows, used", [
    ("text,label", ROWS, Reading()),
    ("text,label", [*ROWS, "no label,"], Reading(unusable="drop")),
    ("body,kind", ROWS, Reading(prompt="{body}\\n", label="kind")),
    ("body,kind", [*ROWS, "no label,"], Reading(prompt="{body}\\n", label="kind", unusable="drop"))])
def test_a_file_is_seen_mended_and_used(head, rows, used, tmp_path):
    taken, file = [], "\n".join([head, *rows]).encode()
    own = own_file(tmp_path, use=lambda *what: taken.append(what))
    own.arrive(dict(name="tickets.csv", content=memoryview(file)))
    assert "late parcel 0" in own.preview.value and list(own.fields) == ["prompt", "label"]
    assert own.task.value == "labels" and ("guessed from the rows" in own.findings.value) == (head == "body,kind")
    assert (own.mend_button.layout.display is None) == ("no label," in rows)
    if own.use_button.disabled:
        assert own.mend_button.description == "Leave out the rows that cannot be used"
        own.mend_button.click()
    assert not own.use_button.disabled and [field.control.value for field in own.fields.values()] == head.split(",")
    own.use_button.click()
    assert taken == [(str(tmp_path / "uploads/tickets.csv"), "labels", used)]


def test_what_is_found_stands_beside_the_column_in_the_page_s_words(tmp_path):
    own = own_file(tmp_path)
    (tmp_path / "holes.csv").write_text("\n".join(["text,label,note", *(f"{row},x" for row in ROWS), "no label,,x", ",money,x"]))
    own.pick(str(tmp_path / "holes.csv"))
    label, prompt = own.fields["label"].note.value, own.fields["prompt"].note.value
    assert "1 row: the label is empty" in label and "1 row: the prompt is empty" in prompt and "line 62" in label
    assert own.mend_button.description == "Leave out the rows that cannot be used" and "cannot be used" in own.findings.value
    assert "--" not in re.sub("<[^>]*>", "", label + prompt + own.findings.value)


@pytest.mark.parametrize("bad", [[], ["no label,"]])
def test_a_file_whose_columns_were_renamed_meanwhile_is_read_anew(bad, tmp_path):
    "At c71f3681 Look again went on asking for the columns that were guessed before."
    (tmp_path / "x.csv").write_text("\n".join(["body,kind", *ROWS, *bad]))
    own = own_file(tmp_path)
    own.pick(str(tmp_path / "x.csv"))
    if bad: own.mend_button.click()
    assert not own.use_button.disabled and own.reading.label == "kind"
    (tmp_path / "x.csv").write_text("\n".join(["message,team", *ROWS, *bad]))
    own.again.click()
    if bad: own.mend_button.click()
    assert not own.use_button.disabled and own.seen.report.columns["label"] == "team"


def test_the_look_at_another_file_is_not_taken_for_this_one_s(tmp_path):
    "While a second file is read, the first one's task and columns are not used for it, nor shown when they come late. At cb0b3cb1 both happen."
    waiting, taken = [], []
    own = own_file(tmp_path, later=lambda *look: waiting.append(look), use=lambda *what: taken.append(what))
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *ROWS]))
    (tmp_path / "b.csv").write_text("\n".join(["prompt,chosen,rejected", *(f"ask {i},yes {i},no {i}" for i in range(60))]))
    own.pick(str(tmp_path / "a.csv"))
    look_now(*waiting[0])
    assert own.then.layout.display is None
    own.fields["prompt"].control.value = "label"
    own.pick(str(tmp_path / "b.csv"))
    assert own.then.layout.display == own.rows.layout.display == "none" and not own.fields and own.reading == Reading()
    look_now(*waiting[0])
    assert own.then.layout.display == "none"
    look_now(*waiting[-1])
    own.use_button.click()
    assert [what[:2] for what in taken] == [(str(tmp_path / "b.csv"), "preferences")] and list(own.fields) == ["prompt", "chosen", "rejected"]


def test_a_remedy_keeps_the_letters_of_a_file_s_own_words():
    "At cb0b3cb1 a column `Ticket Text` is called 'ticket text' on the button."
    look = SimpleNamespace(remedy=("labels", Reading(prompt="Ticket Text", label="Team")), reading=Reading())
    assert remedy_in_words(look).startswith("T") and "'Ticket Text'" in remedy_in_words(look) and "'Team'" in remedy_in_words(look)


def test_a_file_that_is_no_table_is_refused_in_a_sentence(tmp_path):
    own = own_file(tmp_path)
    for name, content, said in (("a.csv", b"", "is empty"), ("a.exe", b"MZ", "is none of .csv"), ("a.csv", b"%PDF-1.4", "is not a table but a PDF"), (HOSTILE + ".csv", b"\x00\x01", "")):
        own.arrive(dict(name=name, content=memoryview(content)))
        assert said in own.findings.value and "sftdpo-problem" in own.findings.value and own.then.layout.display == "none" and "<img" not in own.findings.value
    own.pick(str(tmp_path / "nowhere.csv"))
    assert "there is no such file" in own.findings.value


def test_a_file_that_arrives_replaces_nothing(tmp_path):
    folder, diary = tmp_path / "uploads", tmp_path / "diary.csv"
    folder.mkdir()
    diary.write_text("mine")
    (folder / "diary.csv").symlink_to(diary)
    (folder / "a.csv").write_text("theirs")
    for name, content, at in (("a.csv", b"new", "a-2.csv"), ("a.csv", b"theirs", "a.csv"), ("../diary.csv", b"new", "diary-2.csv"), (str(diary), b"x", "diary-3.csv"), ("..\\..\\b.csv", b"b", "b.csv"), (".csv.csv", b"c", "csv.csv")):
        path = keep_upload(name, content, folder)
        assert path == folder / at and path.read_bytes() == content, name
    assert diary.read_text() == "mine" and (folder / "a.csv").read_text() == "theirs"


def test_a_file_is_used_with_all_its_rows_and_presets_leave_it(tmp_path):
    (tmp_path / "tickets.csv").write_text("\n".join(["text,team", *ROWS]))
    page = Playground(tmp_path / "study", small())
    page.use_file(str(tmp_path / "tickets.csv"), "labels", Reading(label="team"))
    used = page.form.settings
    assert (used.data, used.tasks, used.reading.label, used.train_size, used.test_size) == (str(tmp_path / "tickets.csv"), ("labels",), "team", None, None)
    assert page.source.value == "my own file" and "tickets.csv" in page.about.value
    page.preset("six cells")
    assert page.form.settings == PRESETS["six cells"][1].replace(data=used.data, tasks=("labels",), reading=used.reading, train_size=None, test_size=None)
    assert len(page.look().nodes) > 6
    page.source.value = "sonnets"
    assert (page.form.settings.data, page.form.settings.tasks, page.form.settings.reading) == ("embedded", ("sonnet",), Reading())


@pytest.mark.parametrize("text", ["leave them out: --reading.unusable drop", "--tasks labels --reading.label team reads it", "too long (--reading.too-long drop) or cut (--reading.too-long truncate)",
                                  "use more (--sft.epochs 3), or --no-reading.end-of-text", "choose others with --reading.verbalizers"])
def test_messages_for_the_shell_name_fields_on_the_page(text):
    assert "--" not in in_page_words(text) and "“" in in_page_words(text)


# a recommendation

def test_a_recommendation_is_the_command_s(tmp_path, monkeypatch):
    from sftdpo.cli import parse
    begun = []
    monkeypatch.setattr("sftdpo.playground.live.begin_command", lambda folder, words: begun.append((folder, words)) or Process())
    page = Playground(tmp_path / "study", small())
    page.recommend(str(tmp_path / "my tickets.csv"), "labels", Reading(prompt="{text}\\n", label="team", unusable="drop"), 5)
    (folder, words), = begun
    command = parse(words)
    assert (command.data, command.minutes, command.task, command.out, command.reading) == (str(tmp_path / "my tickets.csv"), 5, "labels", folder, Reading(prompt="{text}\\n", label="team", unusable="drop"))
    assert folder == tmp_path / "recommend-my tickets" and isinstance(page.process, Recommending) and page.run_button.disabled
    page.recommend("other.csv", "labels", Reading(), 5)
    assert len(begun) == 1 and "stop it first" in page.told.value
    log_file(folder).write_text("tickets: labels, 300 rows\nsft full, learning rate 0.001, 5 epochs · 20 s of 5 min\n    95.0 %\n")
    page.tick(page.read_course())
    assert "95.0 %" in page.course.log.value and page.results.recommendation.value == ""
    folder.mkdir()
    (folder / "recommendation.txt").write_text(f"Train sft full.\nExpect 95.0 % {HOSTILE}.\n")
    page.tick(page.read_course())
    assert "Train sft full." in page.results.recommendation.value and "<img" not in page.results.recommendation.value
    page.process.begun.code = 0
    page.ended()
    assert "Finished." in page.told.value and page.process is None


def test_what_was_recommended_before_is_not_what_this_process_recommends(tmp_path, monkeypatch):
    # At 2313f6f5 the page showed it from the first second, and said "Finished." of a process that was stopped.
    monkeypatch.setattr("sftdpo.playground.live.begin_command", lambda folder, words: Process())
    page, folder = Playground(tmp_path / "study", small()), tmp_path / "recommend-tickets"
    folder.mkdir()
    (folder / "locks").mkdir()
    page.recommend("tickets.csv", "labels", Reading(), 5)
    (folder / "recommendation.txt").write_text("Train sft lora.\n")
    os.utime(folder / "recommendation.txt", (1, 1))
    log_file(folder).write_text("stopped; the same command goes on from here\n")
    page.tick(page.read_course())
    assert page.results.recommendation.value == ""
    page.process.begun.code = 1
    page.ended()
    assert "Stopped." in page.told.value


def test_a_field_that_is_wrong_loses_neither_the_file_nor_the_backbone(tmp_path, monkeypatch):
    # At 2313f6f5 a preset then trained on the embedded data, and a recommendation started from bard.
    begun = []
    monkeypatch.setattr("sftdpo.playground.live.begin_command", lambda folder, words: begun.append(words) or Process())
    (tmp_path / "tickets.csv").write_text("\n".join(["text,team", *ROWS]))
    page = Playground(tmp_path / "study", small())
    page.use_file(str(tmp_path / "tickets.csv"), "labels", Reading(label="team"))
    page.form.entries["backbone"].control.value, page.form.entries["sft.epochs"].control.value = "some/model", "two"
    assert page.form.settings is None
    page.recommend(str(tmp_path / "tickets.csv"), "labels", Reading(label="team"), 5)
    assert begun[0][begun[0].index("--backbone") + 1] == "some/model"
    page.process = None
    page.preset("six cells")
    assert (page.form.settings.data, page.form.settings.tasks, page.form.settings.reading.label) == (str(tmp_path / "tickets.csv"), ("labels",), "team")


def test_a_file_that_was_corrected_is_read_again(tmp_path):
    file = tmp_path / "tickets.csv"
    file.write_text("\n".join(["text,label", *ROWS]))
    page = Playground(tmp_path / "study", small())
    page.use_file(str(file), "labels", Reading())
    before, rows = page.inputs, len(page.inputs.loaded("labels", str(file), Reading(), 0, 0).train)
    page.read_again()
    assert page.inputs is before
    file.write_text("\n".join(["text,label", *ROWS[:40]]))
    page.read_again()
    assert len(page.inputs.loaded("labels", str(file), Reading(), 0, 0).train) < rows


def test_a_recommendation_does_not_take_a_folder_of_somebody_else(tmp_path):
    (tmp_path / "recommend-a").mkdir()
    (tmp_path / "recommend-a/diary").write_text("mine")
    page = Playground(tmp_path / "study", small())
    page.recommend("a.csv", "labels", Reading(), 5)
    assert page.process is None and "holds files that are no study" in page.told.value and not log_file(tmp_path / "recommend-a").exists()


def test_a_file_that_is_too_small_is_told_so(tmp_path):
    "The real process."
    (tmp_path / "few.csv").write_text("\n".join(["text,label", *ROWS[:12]]))
    page = Playground(tmp_path / "study", small())
    page.recommend(str(tmp_path / "few.csv"), "labels", Reading(), 1)
    assert page.process.begun.wait(PATIENCE) == 1, log_file(page.process.folder).read_text()
    page.tick(page.read_course())
    page.ended()
    assert "No recommendation. few has 12 rows" in page.results.recommendation.value and "Finished." in page.told.value


# a model is asked

def test_without_a_kept_model_the_page_says_how_to_keep_one(tmp_path):
    page = Playground(tmp_path / "study", small())
    page.show(page.read(page.home))
    ask = page.results.ask
    assert ask.some.layout.display == "none" and "<b>weights</b> to <b>best</b>" in ask.none.value and kept_models(tmp_path) == {}
    assert page.form.entries["weights"].control.options[1] == ("best", "best")


def test_an_answer_goes_with_its_model(monkeypatch):
    asked = []
    monkeypatch.setattr("sftdpo.page.ask.saved_task", lambda path: dict(reading=dict(prompt="{text}\\n"), columns=dict(prompt="{text}\\n")))
    monkeypatch.setattr("sftdpo.page.ask.prompt_parts", lambda known: ["text"])
    ask = Ask(lambda read, show, fail: asked.append(show))
    ask.show({"sft full": Path("one"), "sft lora": Path("two")})
    ask.typed["text"].value = "late parcel"
    ask.put()
    ask.model.value = "sft lora"
    assert ask.answer.value == "" and ask.typed["text"].value == "late parcel"
    asked[0](pd.DataFrame([dict(answer="no")]))  # the answer of the model before
    assert ask.answer.value == "" and not ask.button.disabled


def test_a_prompt_is_text_on_its_way_and_back(tmp_path):
    known = dict(reading=dict(encoding="latin-1", delimiter=";", columns=["a", "text"]))
    text = 'two "lines";\nå '
    path = one_row(known, {"text": text}, tmp_path)
    from sftdpo.reading.files import read_table
    assert read_table(path, ";", "latin-1", ("a", "text")).values("text") == [text]
    assert "<img" not in answer_html(pd.DataFrame([dict(answer=HOSTILE)])) + answer_html(pd.DataFrame([{"answer": HOSTILE, f"probability_{HOSTILE}": 1.0}]))


# in a browser

chromium, driver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
lacking = [name for name, there in (("Chromium: apt-get install chromium chromium-driver", chromium and driver), *((f"{name}: pip install {name}", importlib.util.find_spec(name)) for name in ("selenium", "jupyterlab", "voila"))) if not there]
in_a_browser = pytest.mark.skipif(bool(lacking), reason=f"needs {'; '.join(lacking)}")


def often_looked_at(repository, folder):
    "The page's notebook, in a folder of its own, where its results go too; it looks at a process more often."
    notebook = nbformat.read(repository / "nbs/study/playground.ipynb", as_version=4)
    page = next(cell for cell in notebook.cells if cell.source == 'Playground("runs/playground")')
    page.source = 'Playground("runs/playground", every=0.3)'
    folder.mkdir(parents=True)
    nbformat.write(notebook, folder / "playground.ipynb")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory, repository):
    "JupyterLab: its address."
    home = often_looked_at(repository, tmp_path_factory.mktemp("jupyter") / "lab")
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
        yield f"http://127.0.0.1:{port}"
    finally:
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
    found.command_executor.client_config.timeout = PATIENCE + 60  # Voilà sends the page's end when the notebook has run; Selenium itself would give up after two minutes
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
            time.sleep(0.5)
        self.browser.save_screenshot(str(self.shots / f"{self.name}-given-up.png"))
        raise AssertionError(f"never came: {why}; picture in {self.shots}")

    def shoot(self, name):
        "A picture, where somebody asked for them: a large one takes a second."
        self.number += 1
        if "SFTDPO_SHOTS" in os.environ: self.browser.save_screenshot(str(self.shots / f"{self.name}-{self.number}-{name}.png"))

    def all(self, xpath):
        "What of the page can be seen. One call: Selenium's own questions of each element take most of a walk's time."
        return self.browser.execute_script("""const found = document.evaluate(arguments[0], document, null, XPathResult.ORDERED_NODE_SNAPSHOT_TYPE, null);
            return [...Array(found.snapshotLength).keys()].map(number => found.snapshotItem(number)).filter(one => one.checkVisibility({visibilityProperty: true}))""",
            f"//*[contains(@class,'sftdpo-playground')]{xpath}")

    def one(self, xpath): return self.wait(lambda: self.all(xpath)[0], xpath)

    def words(self, xpath=""): return self.browser.execute_script("return arguments[0].innerText", self.one(xpath))

    def text(self, words): return words in self.words()

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
    "Voilà as `make playground` starts it: its port, its token, and the page that it gives to who has the token, with the cookie; and the folder of the notebook."
    pytest.importorskip("voila")
    home = tmp_path_factory.mktemp("voila")
    folder = often_looked_at(repository, home / "nbs/study")
    shutil.copytree(repository / "nbs/study/images", folder / "images")
    shutil.copy(repository / "voila.json", home)
    command = re.search(r"^playground:.*\n\t\$\(BIN\)/(voila .*)$", (repository / "Makefile").read_text(), re.MULTILINE)[1].split()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {name: str(home / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")} | {"PYTHONPATH": str(repository)}
    process = subprocess.Popen([sys.executable, "-m", *command, "--no-browser", f"--port={port}"], cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        address = next((line for line in process.stdout if f":{port}/" in line), "")
        token = (re.search(r"token=(\w+)", address) or [None, ""])[1]
        threading.Thread(target=process.stdout.read, daemon=True).start()
        status, headers, page = asked(port, f"/?token={token}", until=time.monotonic() + PATIENCE)
        cookies = "; ".join(re.findall(r"(username[^=;]*=[^;]+);", headers.get("Set-Cookie", "")))
        kernel = re.search(r'"kernelId": *"([\w-]+)"', page)
        yield port, token, cookies, kernel and kernel[1], folder
    finally:
        stop_study(folder / "runs/playground")
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
    port, token, cookies, kernel, _ = alone
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
    port, token, cookies, kernel, _ = alone
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


def boxes(browser):
    "Left, top, right and bottom of the page's two columns."
    return browser.execute_script("return [...document.querySelector('.sftdpo-columns').children].map(one => { const box = one.getBoundingClientRect(); return [box.left, box.top, box.right, box.bottom] })")


def overflowing(browser, width):
    "What reaches beyond the page, but for what scrolls in a box of its own."
    return browser.execute_script("""return [...document.querySelectorAll('.sftdpo-playground *')].filter(one => one.getBoundingClientRect().right > arguments[0] + 1
        && !one.closest('.sftdpo-table, .lm-TabBar, svg')).map(one => one.className + ': ' + one.textContent.slice(0, 40))""", width)


def contrast(browser, selector):
    "The contrast of an element's text with what lies behind it, its opacity included (WCAG 2)."
    colour, behind, opacity = browser.execute_script("""const one = document.querySelector(arguments[0]); let under = one;
        while (under.parentElement && getComputedStyle(under).backgroundColor.startsWith('rgba')) under = under.parentElement;
        return [getComputedStyle(one).color, getComputedStyle(under).backgroundColor, +getComputedStyle(one).opacity]""", selector)
    front, back = ([float(word) for word in re.findall(r"[\d.]+", text)[:3]] for text in (colour, behind))
    front = [opacity * one + (1 - opacity) * other for one, other in zip(front, back)]
    def light(colour): return sum(share * (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4) for share, one in zip((0.2126, 0.7152, 0.0722), (value / 255 for value in colour)))
    low, high = sorted((light(front), light(back)))
    return (high + 0.05) / (low + 0.05)


def begun_in(browser, tmp_path, name):
    "The page of a browser, and where its pictures go."
    shots = Path(os.environ.get("SFTDPO_SHOTS", tmp_path))
    shots.mkdir(parents=True, exist_ok=True)
    return Page(browser, shots, name)


def a_mistake_is_named(page):
    "Beside its field, where it can be read, and nothing can be run."
    page.button("Run")
    page.shoot("form")
    page.fill("train size", "many")
    page.wait(lambda: "train_size = 'many' cannot be used: give a whole number" in page.words("//*[contains(@class,'sftdpo-problem')]"), "a mistake that is named")
    page.wait(lambda: not page.button("Run").is_enabled(), "a Run that cannot be pressed")
    for selector in (".sftdpo-help span", ".sftdpo-problem", ".sftdpo-line", ".sftdpo-playground h3"): assert contrast(page.browser, selector) >= 4.5, selector
    page.shoot("mistake")


def an_estimate_comes(page, size):
    "Of a small study, and of one that is twice as large and small again."
    page.fill("train size", size)
    page.tick("lora")  # its card, on and off again
    page.wait(lambda: page.text("3 runs, 2 stages to train"), "an estimate of more runs")
    page.tick("lora")
    page.wait(lambda: not page.all("//*[contains(@class,'sftdpo-problem')]"), "a form without mistakes")
    page.wait(lambda: page.text("2 runs, 1 stage to train"), "an estimate")
    page.shoot("estimate")


def complaints(browser):
    "What the page's scripts complained of in the console."
    return [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE" and line["source"] != "network" and VOILAS_OWN not in line["message"]]


@in_a_browser
def test_in_jupyterlab(server, browser, tmp_path):
    "In JupyterLab's light colours, from a mistake in the form to an estimate."
    page = begun_in(browser, tmp_path, "lab")
    browser.get(f"{server}/doc/tree/playground.ipynb")
    page.wait(lambda: browser.execute_script("const app = window.jupyterapp, panel = app && app.shell.currentWidget; if (!panel || !panel.sessionContext || !panel.sessionContext.isReady || !panel.sessionContext.session?.kernel) return false; app.commands.execute('notebook:run-all-cells'); return true"), "a kernel")
    a_mistake_is_named(page)
    an_estimate_comes(page, "120")
    assert complaints(browser) == []


@in_a_browser
def test_in_voila(alone, browser, tmp_path):
    "By its link, in dark colours: on a phone, with a file of one's own, and to a kept model's answer, stopped and resumed on the way."
    (port, token, *_, home), page = alone, begun_in(browser, tmp_path, "voila")
    browser.get(f"http://localhost:{port}/?token={token}&theme=dark")
    page.button("Run")
    (left, _, middle, _), (right, *_) = boxes(browser)
    assert 0 <= left and middle <= right and overflowing(browser, 1280) == []  # the form beside what comes of it
    a_mistake_is_named(page)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(width=390, height=900, deviceScaleFactor=1, mobile=True))
    page.wait(lambda: boxes(browser)[1][1] >= boxes(browser)[0][3], "one column on a phone")
    assert overflowing(browser, 390) == []
    page.shoot("phone")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    page.fill("train size", "200")
    save_asks(page, tmp_path / "mine.yaml")
    a_file_is_used(page, tmp_path / "tickets.csv")
    page.press("question pairs")
    an_estimate_comes(page, "120")
    page.fold("Name, data and folds")
    page.fill("name", "in a browser")
    page.fill("test size", "32")
    page.fold("SFT stages")
    for label, text in (("batch size", "4"), ("epochs", "2"), ("evaluations", "1"), ("checkpoint steps", "5")): page.fill(label, text)
    page.wait(lambda: page.text("2 runs, 1 stage to train"), "an estimate")
    trains_stops_and_goes_on(page, home / "runs/playground")
    results_are_looked_at(page, home / "runs/playground")
    assert complaints(browser) == []


def save_asks(page, saved):
    "Before it replaces a file."
    saved.write_text("a diary")
    page.fill("YAML file", str(saved))
    page.press("Save")
    page.wait(lambda: page.text("is there already. Press Replace"), "a question")
    assert saved.read_text() == "a diary"
    page.press("Replace")
    page.wait(lambda: page.text(f"Saved: {saved}"), "the end of it")
    assert "train_size: 200" in saved.read_text() and page.button("Save")


def a_file_is_used(page, tickets):
    "After what cannot be used is left out."
    tickets.write_text("\n".join(["text,label", *ROWS, "nobody,"]))
    page.press("my own file")
    page.fill("or its path", f"{tickets}\n")
    page.wait(lambda: page.text("cannot be used"), "what stops the file")
    page.shoot("file")
    page.press("Leave out the rows that cannot be used")
    page.press("Use this file")
    page.wait(lambda: page.text(f"In use: {tickets} (labels)."), "a file in use")
    page.wait(lambda: page.text("2 runs, 1 stage to train"), "an estimate")


def trains_stops_and_goes_on(page, folder):
    "From the last checkpoint."
    page.press("Run")
    def step(): return int(page.words().split("running · step ")[1].split()[0])
    page.wait(lambda: step() >= 6, "six steps")
    page.shoot("training")
    assert page.field("epochs").get_attribute("value") == "2"
    page.press("Stop")
    page.wait(lambda: page.text("Resume goes on from the last checkpoint"), "a process that has stopped")
    page.wait(lambda: page.text("stopped · goes on from step"), "a stage that has stopped")
    page.shoot("stopped")
    assert working(folder) is None and list(folder.glob("stages/*/checkpoints/checkpoint-*/complete.json")) and not list(folder.glob("stages/*/stage.json"))
    page.press("Resume")
    page.wait(lambda: page.text("Finished."), "the end")
    page.wait(lambda: page.text("Nothing is left to do here"), "an estimate that knows of the end")
    assert not page.button("Finished").is_enabled()
    page.wait(lambda: page.all("//*[contains(@class,'sftdpo-table')]//td[normalize-space()='sft full']"), "the table of cells")


def results_are_looked_at(page, folder):
    "In every view, one after the other."
    pictures = page.all("//figure/img")
    assert pictures and all(page.browser.execute_script("return arguments[0].complete && arguments[0].naturalWidth > 100", one) for one in pictures)
    page.fold("SFT stages")
    page.shoot("cells")
    page.tab("Figures")
    page.wait(lambda: len(page.all("//figure/img")) > len(pictures), "figures")
    page.shoot("figures")
    page.tab("Predictions")
    page.wait(lambda: page.text("of 32 examples"), "predictions")
    page.shoot("predictions")
    page.tab("Try")
    page.press("Answer")
    page.wait(lambda: page.text("probability"), "an answer of the kept model")
    page.shoot("answer")
    page.tab("Command")
    page.wait(lambda: page.text(f"sftdpo compare --settings {folder}.page.yaml --out {folder}"), "the command")
    history = pd.read_csv(next(folder.glob("runs/*sft-full*/history.csv")))
    assert history["step"].max() == 60 and history["loss"].notna().sum() == 60
