"""A study's folder that came from somebody else, a disk that is full, a parent that is killed, runs that all fail: what is written where, and what is said."""
import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from little import leftover
from tiny import tiny_model

import sftdpo.engine.work
from sftdpo.claims import judge_claims
from sftdpo.cli import main
from sftdpo.engine.export import paraphrase_submission, sonnet_submission, write_pairs, write_predictions
from sftdpo.engine.folder import StudyFolder, with_digest, write_record
from sftdpo.engine.safe_files import held, write_json
from sftdpo.engine.store import read_examples, read_history, read_results
from sftdpo.page.live import begin_study, log_file, settings_file, working
from sftdpo.playground import Playground
from sftdpo.plots import against_time, costs_of, learning_curves, with_cells, with_stages
from sftdpo.reading.examples import Example
from sftdpo.tables import cells_table

ESCAPE = "\x1b]0;pwned\x07"
fork = multiprocessing.get_context("fork")  # a child that has its libraries


def words_of(data, backbone, folder):
    "The smallest comparison there is, as it is typed."
    stage = [word for kind in ("sft", "dpo") for word in (f"--{kind}.epochs", "1", f"--{kind}.batch-size", "8", f"--{kind}.precision", "fp32", f"--{kind}.evaluations", "1")]
    return ["compare", "--tasks", "labels", "--data", str(data), "--backbone", str(backbone), "--reading.prompt", "{text}\n", "--recipes", "sft", "--tunings", "full", *stage, "--out", str(folder)]


@pytest.fixture(scope="module")
def study(tokenizer, tmp_path_factory):
    "The command line of a study, and the folder that it made."
    from sftdpo.model import save_policy
    home = tmp_path_factory.mktemp("study")
    data = home / "tickets.csv"
    pd.DataFrame(dict(text=[f"{word} {i}" for i in range(30) for word in ("late", "fine")], label=["no", "yes"] * 30)).to_csv(data, index=False)
    words = words_of(data, save_policy(tiny_model("gpt2", tokenizer), tokenizer, home / "backbone"), home / "made")
    main(words)
    return words, home / "made"


@pytest.fixture
def foreign(study, tmp_path):
    "A copy of that folder, as somebody sent it, beside a file of our own."
    shutil.copytree(study[1], tmp_path / "study")
    (tmp_path / "diary").write_text("mine")
    return tmp_path / "study"


def ended(words, capsys):
    "The exit code of a command, and all that it said."
    capsys.readouterr()
    try: main([str(word) for word in words])
    except SystemExit as left: code = left.code if isinstance(left.code, int) else 1
    else: code = 0
    told = capsys.readouterr()
    return code, told.out + told.err


# a folder that came from somebody else

LINKS = ["locks/page.lock", "locks/page.lock.by", "report.tables/cells.parquet", "data/labels/data.json", "data/labels/data.txt", "begun_with.json", "results.csv", "locks/results.lock.by"]


@pytest.mark.parametrize("name", LINKS)
def test_a_link_in_a_study_is_named_and_not_followed(name, study, foreign, capsys):
    diary, link = foreign.with_name("diary"), foreign / name
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(diary)
    for words in (["report", foreign], [*study[0][:-1], foreign], ["plan", *study[0][1:-1], foreign]):
        code, told = ended(words, capsys)
        assert code == 2 and f"{link} is a link to {diary}" in told
    page = Playground(foreign)
    assert f"{link} is a link to" in page.told.value
    with pytest.raises(ValueError, match="is a link to"): page.read(foreign)
    assert diary.read_text() == "mine" and link.is_symlink()


@pytest.mark.parametrize("name", ["locks", "report.tables", "data"])
def test_a_folder_that_is_a_link_is_refused(name, study, foreign, capsys):
    outside = foreign.with_name("outside")
    outside.mkdir()
    shutil.rmtree(foreign / name, ignore_errors=True)
    (foreign / name).symlink_to(outside)
    for words in (["report", foreign], [*study[0][:-1], foreign]): assert ended(words, capsys)[0] == 2
    Playground(foreign)
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("table", ["results.csv", "planned_runs.csv"])
def test_a_run_name_does_not_lead_out_of_the_folder(table, foreign, capsys):
    home = foreign.with_name("secret")
    shutil.copytree(foreign / "runs" / StudyFolder(foreign).finished_runs()[0], home)
    write_json(home / "environment.json", {"software": {"password": "hunter2"}})
    name = next(name for name in StudyFolder(foreign).finished_runs() if "sft" in name)
    changed = (foreign / table).read_text().replace(name, "../../secret")
    if table == "planned_runs.csv": changed = with_digest("".join(changed.splitlines(keepends=True)[:-1]))  # who changes it can also sign it
    (foreign / table).write_text(changed)
    code, told = ended(["report", foreign], capsys)
    assert code == 2 and "'../../secret'" in told
    assert not (foreign / "report.html").exists() or "hunter2" not in (foreign / "report.html").read_text()


def test_a_record_does_not_lead_out_of_the_folder(foreign):
    "What a run's record calls itself decides nothing: its folder's name does."
    home = foreign.with_name("secret")
    shutil.copytree(foreign / "runs" / StudyFolder(foreign).finished_runs()[0], home)
    for name in StudyFolder(foreign).finished_runs():
        path = foreign / "runs" / name / "sftdpo.json"
        write_record(path, {name: value for name, value in json.loads(path.read_text()).items() if name != "digest"} | {"run": "../../secret"})
    assert set(read_examples(foreign)["run"]) == set(StudyFolder(foreign).finished_runs())


def test_exports_replace_a_link_and_keep_rights(tmp_path):
    diary, table = tmp_path / "diary", pd.DataFrame(dict(id=["a"], prediction=[1]))
    diary.write_text("mine")
    pairs = [Example("1", "a prompt", " chosen", rejected=" other")]
    ways = {"t.csv": write_predictions, "t.tsv": write_predictions, "t.jsonl": write_predictions, "t.parquet": write_predictions, "para.csv": paraphrase_submission,
            "sonnets.txt": lambda table, path: sonnet_submission(["a\nb"], path), "pairs.csv": lambda table, path: write_pairs(pairs, path), "pairs.parquet": lambda table, path: write_pairs(pairs, path)}
    for name, write in ways.items():
        path = tmp_path / name
        path.symlink_to(diary)
        write(table, path)
        assert diary.read_text() == "mine" and not path.is_symlink() and path.stat().st_size, name
        path.chmod(0o600)
        write(table, path)
        assert path.stat().st_mode & 0o777 == 0o600, name


def test_what_the_page_writes_beside_the_folder_is_its_own(study, foreign, tmp_path, monkeypatch):
    monkeypatch.setattr("sftdpo.page.live.COMMAND", "pass")
    ours = foreign.with_name("study.yaml")
    ours.write_text("mine")
    for path in (log_file(foreign), settings_file(foreign)): path.symlink_to(tmp_path / "diary")
    begin_study(Playground(foreign).form.settings, foreign).wait(60)
    assert ours.read_text() == (tmp_path / "diary").read_text() == "mine"


# a parent that is killed

@pytest.mark.parametrize("route", ["forked", "told"])
def test_a_worker_ends_with_its_parent(route, study, tmp_path, monkeypatch):
    "The parent is killed as soon as its worker is begun, long before one that imports the libraries has them."
    monkeypatch.setattr(sftdpo.engine.work, "cores", lambda: dict(forked=2, told=4)[route])
    begin, start, told = subprocess.Popen, fork.Process.start, tmp_path / "worker"
    def begun(process):
        told.write_text(str(process.pid))
        os.kill(os.getpid(), signal.SIGKILL)
    class Begun(begin):
        def __init__(self, words, **how):
            super().__init__(words, **how)
            if "sftdpo.engine.work" in str(words): begun(self)
    def started(process):
        start(process)
        begun(process)
    def command():
        subprocess.Popen, fork.Process.start = Begun, started
        main([*study[0][:-1], str(tmp_path / "study"), "--workers", "2"])
    parent = fork.Process(target=command)
    parent.start()
    parent.join(200)
    worker = int(told.read_text())
    assert parent.exitcode == -signal.SIGKILL
    until = time.monotonic() + 120
    while time.monotonic() < until and Path(f"/proc/{worker}").exists() and "Z" not in Path(f"/proc/{worker}/stat").read_text(): time.sleep(0.2)
    assert StudyFolder(tmp_path / "study").finished_runs() == [] and not list(tmp_path.glob("study/stages/*")), "the worker went on without its parent"


# runs that all fail

def test_runs_that_all_fail_are_a_sentence(study, tmp_path, monkeypatch, capsys):
    def fails(*rest, **more): raise ValueError(f"the loss is no number {ESCAPE}")
    monkeypatch.setattr("sftdpo.engine.work.finish_node", fails)
    code, told = ended([*study[0][:-1], tmp_path / "study"], capsys)
    assert code == 1 and "2 of 2 runs failed" in told and "the loss is no number" in told and "No run is finished" in told and "Traceback" not in told and ESCAPE not in told
    assert len(read_results(tmp_path / "study")) == 0
    assert ended(["report", tmp_path / "study"], capsys)[0] == 0 and "the loss is no number" in (tmp_path / "study/report.html").read_text()
    assert judge_claims(tmp_path / "study") == []
    results, examples, history = (read(tmp_path / "study") for read in (read_results, read_examples, read_history))
    assert cells_table(results, "labels", examples).empty and with_stages(history).empty
    for picture in (learning_curves(with_stages(history)), against_time(costs_of(with_cells(results)), "accuracy")): assert picture.svg()
    page = Playground(tmp_path / "study")
    page.show(page.read(page.home))
    assert "No run is finished yet" in page.results.views["Cells"].value and "the loss is no number" in page.results.views["Cells"].value


# locks

def test_who_is_waited_for_is_said_before_the_wait_is_over(tmp_path, monkeypatch):
    import sftdpo.engine.safe_files as safe_files
    took, told, waits = safe_files.take_lock, [], []
    monkeypatch.setattr(safe_files, "take_lock", lambda lock, seconds: waits.append((seconds, len(told))) or took(lock, seconds))
    with held(tmp_path / "study.lock"):
        with held(tmp_path / "study.lock", wait=1, say=told.append) as mine: assert not mine
    assert re.search(rf"study\.lock, held by process {os.getpid()} on \S+, since \d{{4}}-", *told)
    assert waits[-2:] == [(0.5, 0), (0.5, 1)], "half a second in silence, and the rest after it was said"


def test_a_command_says_whom_it_waits_for(study, foreign, tmp_path):
    (tmp_path / "said").touch()
    def command():
        with open(tmp_path / "said", "w", buffering=1) as sys.stderr: main([*study[0][:-1], str(foreign)])
    other, until = fork.Process(target=command), time.monotonic() + 120
    with held(foreign / "locks/study.lock"):
        other.start()
        while time.monotonic() < until and other.is_alive() and "waiting for" not in (tmp_path / "said").read_text(): time.sleep(0.1)
        other.kill()
        other.join()
    assert f"held by process {os.getpid()} on" in (tmp_path / "said").read_text()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_file_system_without_locks_is_named(code, tmp_path, monkeypatch):
    def missing(*rest): raise OSError(code, os.strerror(code))
    monkeypatch.setattr("fcntl.flock", missing)
    with pytest.raises(OSError, match="this file system has no locks.*another disk.*locks"), held(tmp_path / "locks" / "study.lock"): pass


# disk and leftovers

@pytest.mark.parametrize("name", ["pred.csv", "pred.tsv", "pred.jsonl", "pred.parquet", "para.csv"])
def test_an_export_on_a_full_disk_names_its_path_and_leaves_the_old_one(name, tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True).returncode: pytest.skip("a small file system cannot be mounted here")
    try:
        (tmp_path / name).write_text("old")
        table = pd.DataFrame(dict(id=[os.urandom(32).hex() for _ in range(40_000)], prediction=1))
        with pytest.raises(OSError, match=f"the disk is full; .*{re.escape(str(tmp_path / name))}"): (paraphrase_submission if name == "para.csv" else write_predictions)(table, tmp_path / name)
        assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "old"
    finally: subprocess.run(["umount", "--lazy", tmp_path], check=True)


def test_leftovers_of_killed_processes_do_not_stay(study, foreign, capsys):
    parts = [leftover(name) for name in ("planned_runs.csv", "results.csv", "study.yaml", "search.csv")]
    for name in (*parts, "locks/page.lock.by", "locks/study.lock.by", f"data/labels/{leftover('data.json')}"):
        (foreign / name).write_text("process 1 on nowhere")
    (foreign / "locks/page.lock").touch()
    assert ended([*study[0][:-1], foreign], capsys)[0] == 0
    assert [str(path.relative_to(foreign)) for path in foreign.rglob("*") if path.name.endswith((".part", ".by"))] == []
    assert working(foreign) is None


# a terminal

def test_no_escape_reaches_the_terminal(study, tmp_path, capsys):
    data, backbone = tmp_path / f"a{ESCAPE}.csv", study[0][6]
    data.write_text(f"te{ESCAPE}xt,label\n" + "a,no\nb,yes\n" * 20)
    for words in (["data", "check", data, "--backbone", backbone], ["compare", "--tasks", "labels", "--data", data, "--backbone", backbone, "--out", tmp_path / "out"],
                  ["data", "check", tmp_path / f"no{ESCAPE}file.csv"], ["generate", backbone, "--prompt", f"a {ESCAPE} b", "--sampling.max-new-tokens", "3"]):
        code, told = ended(words, capsys)
        assert "pwned" in told and not set(told) & {"\x1b", "\x07"}, words
