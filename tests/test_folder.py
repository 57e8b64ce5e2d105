"One identity of a stage, one place for each file, and no damaged file believed."
import ast
import multiprocessing
import re
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest
from little import compare, little_inputs, plan, small, stage_tree, steady
from test_checkpoints import flip
from tiny import tiny_model

import sftdpo
from sftdpo.config import Search, Study
from sftdpo.engine.folder import STATES, Damaged, StudyFolder, read_record
from sftdpo.engine.inputs import Inputs
from sftdpo.engine.store import read_history, read_results
from sftdpo.model import save_policy
from sftdpo.page.live import progress_of
from sftdpo.report import up_to_date, write_report


def test_each_file_of_a_study_is_named_in_one_module():
    package = Path(sftdpo.__file__).parent
    source = ast.parse((package / "engine/folder.py").read_text())
    names = {word for node in ast.walk(source) if isinstance(node, ast.Constant) and isinstance(node.value, str) for word in re.findall(r"^[a-z_]+\.(?:json|jsonl|yaml|csv|npz|parquet|html)$", node.value)}
    assert {"study.yaml", "results.csv", "planned_runs.csv", "search.csv", "calibration.json", "metrics.json", "sftdpo.json", "stage.json", "examples.parquet", "history.csv",
            "environment.json", "begun_with.json", "settings.yaml", "data.json", "progress.jsonl", "reference.npz", "complete.json"} <= names
    shared = {"sftdpo.json": {"model", "safe_files"},                       # the record of any folder that this package wrote, a saved model among them
              "study.yaml": {"playground"}}                                # what the page proposes as a name for a file of settings
    for module in package.rglob("*.py"):
        if module.stem in ("folder", "_modidx"): continue
        tree = ast.parse(module.read_text())
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        literals = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs and " " not in node.value]
        found = {name for name in names for text in literals if re.search(rf"(^|[/*]){re.escape(name)}$", text)}
        assert not {name for name in found if module.stem not in shared.get(name, ())}, module.stem


def test_a_collection_reads_each_file_once_and_a_new_one_reads_it_anew(backbone):
    calls = []
    def load(*asked): return calls.append(asked) or little_inputs().loaded(*asked)
    first = Inputs(load)
    stage_tree(small(backbone, seeds=(0, 1, 2)), first)
    assert len(calls) == 2                                                  # two tasks
    stage_tree(small(backbone), first), stage_tree(small(backbone), Inputs(load))
    assert len(calls) == 4


@pytest.fixture(scope="module")
def study(tokenizer, tmp_path_factory):
    "Two cells of a tiny model with dropout."
    backbone = save_policy(tiny_model("gpt2", tokenizer, dropout=0.1), tokenizer, tmp_path_factory.mktemp("backbone") / "tiny")
    return small(str(backbone), tasks=("sonnet",), tunings=("full",), recipes=("sft", "sft-dpo"))


@pytest.fixture(scope="module")
def whole(study, tmp_path_factory):
    "The folder of the finished study, which stays as it is, and its results."
    folder = tmp_path_factory.mktemp("whole") / "out"
    return folder, steady(compare(study, folder, progress=False))


@pytest.fixture
def finished(whole, tmp_path):
    "A copy of the finished study, and its results."
    return StudyFolder(shutil.copytree(whole[0], tmp_path / "out")), whole[1]


@pytest.fixture(scope="module")
def half(study, tmp_path_factory):
    "The folder of the study when the SFT stage is there and DPO has yet to start from it; it stays as it is."
    import sftdpo.engine.work
    finish, folder = sftdpo.engine.work.finish_stage, tmp_path_factory.mktemp("half") / "out"
    def stopped(home, inputs, stage, *rest, **more):
        if stage.kind == "dpo": raise KeyboardInterrupt
        return finish(home, inputs, stage, *rest, **more)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sftdpo.engine.work, "finish_stage", stopped)
        compare(study, folder, progress=False)
    return folder


def test_one_vocabulary_for_the_state_of_a_node(study, finished):
    folder, nodes = finished[0], stage_tree(study.replace(seeds=(0, 1)))
    words = [folder.state(node).name for node in nodes]
    assert set(words) == {"done", "waiting"} and set(words) <= set(STATES)
    assert list(progress_of(folder, nodes).state) == words == [state.name for state in plan(study.replace(seeds=(0, 1)), folder, measure=False).states]


def damage(path, how):
    match how:
        case "empty": path.write_bytes(b"")
        case "cut": path.write_bytes(path.read_bytes()[:-max(3, path.stat().st_size // 3)])
        case "flipped": flip(path)


RECORDS = (("metrics.json", "sftdpo.json"), ("history.csv", "settings.yaml"), ("environment.json", "examples.parquet"))  # of the trained run, of the base model's


@pytest.mark.parametrize("how", ["empty", "cut", "flipped"])
def test_a_damaged_record_of_a_run_is_named_and_made_again(how, study, finished, capsys):
    folder, expected = finished
    base, *_, trained = folder.finished_runs()
    for names in RECORDS:
        for run, name in zip((trained, base), names): damage(folder.run(run).path / name, how)
        found = compare(study, folder)
        said = capsys.readouterr().out
        for run, name in zip((trained, base), names): assert f"{run}/{name} is damaged" in said, name
        pd.testing.assert_frame_equal(steady(found), expected, check_exact=True)


@pytest.mark.usefixtures("undrawn")
def test_reading_a_damaged_record_names_file_and_remedy(study, finished):
    folder, _ = finished
    run = folder.run(next(name for name in folder.finished_runs() if "sft-dpo" in name))
    damage(run.history, "cut")
    with pytest.raises(Damaged, match=r"history.csv is damaged .*the command that made it makes it again"): read_history(folder)
    damage(run.metrics, "empty")
    folder.results.unlink()
    with pytest.raises(Damaged, match=r"metrics.json is damaged"): write_report(folder)
    compare(study, folder, progress=False)
    assert len(read_history(folder)) and write_report(folder).exists()      # the remedy works


@pytest.mark.parametrize("how", ["empty", "cut", "flipped"])
@pytest.mark.parametrize("what", ["record", "history", "policy"])
def test_a_damaged_stage_is_named_and_trained_again(what, how, study, whole, half, tmp_path, capsys):
    "The SFT stage is there, DPO has yet to start from it."
    folder = StudyFolder(shutil.copytree(half, tmp_path / "out"))
    [stage] = [folder.stage(home.name) for home in folder.stages.iterdir() if folder.stage(home.name).trained]
    damage({"record": stage.record, "history": stage.history, "policy": stage.policy / "model.safetensors"}[what], how)
    capsys.readouterr()
    found = compare(study, folder)
    said = capsys.readouterr().out
    assert {"record": "stage.json", "history": "history.csv", "policy": "model.safetensors"}[what] + " is damaged" in said and "trained again" in said
    pd.testing.assert_frame_equal(steady(found), whole[1], check_exact=True)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("how", ["empty", "cut"])
def test_damaged_files_of_the_study_are_named_with_a_remedy_that_works(how, study, finished, capsys):
    folder, expected = finished
    for path in (folder.settings, folder.begun_with):
        damage(path, how)
        with pytest.raises(Damaged, match=f"{path.name} is damaged .*delete it, and the same `sftdpo compare` command"): compare(study, folder, progress=False)
        path.unlink()
        pd.testing.assert_frame_equal(steady(compare(study, folder, progress=False)), expected, check_exact=True)
    damage(folder.planned, how)
    with pytest.raises(Damaged, match="planned_runs.csv is damaged .*makes it again"): write_report(folder)
    pd.testing.assert_frame_equal(steady(compare(study, folder)), expected, check_exact=True)
    assert "planned_runs.csv is damaged" in capsys.readouterr().out and write_report(folder).exists()


def test_a_search_that_keeps_small_files_only_goes_on_without_its_settings(backbone, tmp_path):
    "As stored trials are: no locks, no stages."
    study = small(backbone, tasks=("paraphrase",), recipes=("sft",), tunings=("full",), search=Search(trials=3, seeds=(900,), further=0))
    compare(study, tmp_path / "whole", progress=False)
    trials = StudyFolder(tmp_path / "whole").trials
    for path in (trials.locks, trials.stages): shutil.rmtree(path, ignore_errors=True)
    first = {name: trials.run(name).metrics.read_bytes() for name in trials.finished_runs()}
    for path in (trials.settings, StudyFolder(tmp_path / "whole").search): path.unlink()
    compare(study, tmp_path / "whole", progress=False)
    assert len(first) == 4 and {name: trials.run(name).metrics.read_bytes() for name in first} == first


def test_a_table_that_is_cut_within_its_last_number_is_not_believed(study, finished):
    folder, _ = finished
    whole = folder.results.read_bytes()
    for end in (-3, whole[:-1].rindex(b"\n") + 1 - len(whole), -len(whole)):            # within a number, at the end of a line, empty
        folder.results.write_bytes(whole[:end])
        if end != whole[:-1].rindex(b"\n") + 1 - len(whole):
            with pytest.raises(Damaged, match="results.csv is damaged"): read_results(folder)
        up_to_date(folder)                                                              # what a report begins with
        assert folder.results.read_bytes() == whole


def begin(study, folder, mine, others):
    "Claim a folder; the moment between the look and the claim is drawn out until all have looked."
    import sftdpo.study
    check, seen = sftdpo.study.check_study_folder, []
    def slowly(*rest):
        check(*rest)
        if seen: return
        seen.append(mine.touch())
        until = time.monotonic() + 300
        while time.monotonic() < until and not all(path.exists() for path in others): time.sleep(0.02)
    sftdpo.study.check_study_folder = slowly
    try: sftdpo.study.claim_folder(folder, study)
    except Exception as error: raise SystemExit(bool(mine.with_suffix(".said").write_text(str(error)))) from error


def test_of_two_studies_that_are_begun_together_one_is_refused(tmp_path):
    files, fork = [tmp_path / "one.looked", tmp_path / "two.looked"], multiprocessing.get_context("fork")
    both = [fork.Process(target=begin, args=(Study("the same name", train_size=size), tmp_path / "out", file, files)) for file, size in zip(files, (8, 16))]
    for process in both: process.start()
    for process in both: process.join()
    assert sorted(process.exitcode for process in both) == [0, 1] and all(file.exists() for file in files)
    [said] = tmp_path.glob("*.said")
    assert "was begun with" in said.read_text()


def test_a_failed_run_tells_why(study, tmp_path):
    broken = study.replace(cells={"sft full sft.learning_rate": 1e30, "sft full sft.max_gradient_norm": 1e30}, recipes=("sft",))
    compare(broken, tmp_path / "out", progress=False)
    folder, nodes = StudyFolder(tmp_path / "out"), stage_tree(broken)
    assert "FloatingPointError" in folder.state(nodes[1]).why and folder.closed(nodes[1]) and read_record(folder.begun_with)
