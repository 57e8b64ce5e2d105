"What happens to folders apart from kills: other programs' files, other processes, full disks, interrupts, files that changed."
import dataclasses
import errno
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from little import compare, little_inputs, plan, small, stage_tree
from tiny import tiny_model

from sftdpo.cli import parse
from sftdpo.config import Reading, Run, Search, SettingsError, Study, to_yaml
from sftdpo.engine import folder as folder_module
from sftdpo.engine import runs as runs_module
from sftdpo.engine import safe_files, work
from sftdpo.engine.checkpoints import COMPLETE, own_record
from sftdpo.engine.folder import StudyFolder, write_record
from sftdpo.engine.names import check_saved_model, model_folder
from sftdpo.engine.runs import commit, keep_best, model_card, rows_to_watch, stage_rows
from sftdpo.engine.safe_files import remove_leftovers, to_disk, write_json
from sftdpo.engine.store import CELL, gather, with_searched_rates, write_planned_runs
from sftdpo.engine.timing import Timing, finished_trials, trial_cost, trials_in_words
from sftdpo.model import load_backbone, save_policy
from sftdpo.reading.check import check_file, reading_options, write_check
from sftdpo.report import describe_stage
from sftdpo.study import check_study_folder, claim_folder, claimed, train_run
from sftdpo.tasks import TASKS, format_metric


@pytest.fixture(scope="module")
def backbone(tokenizer, tmp_path_factory):
    "A tiny model in a folder."
    return str(save_policy(tiny_model("gpt2", tokenizer), tokenizer, tmp_path_factory.mktemp("backbone") / "tiny"))


@pytest.fixture(scope="module")
def searched(backbone, tmp_path_factory):
    "A study whose recipes were searched by two commands."
    folder = tmp_path_factory.mktemp("searched") / "study"
    study = small(backbone, tasks=("paraphrase",), tunings=("full",), recipes=("sft",), search=Search(trials=3, seeds=(7,), further=0))
    compare(study, folder, False)
    alone = StudyFolder(folder).search.read_text()
    compare(study.replace(recipes=("dpo",)), folder, False)
    return folder, study, alone


def test_a_second_search_keeps_what_the_first_one_chose(searched):
    folder, study, alone = searched
    both = StudyFolder(folder).search.read_text()
    assert all(line in both for line in alone.splitlines()[2:]), "the trials of the first recipe"
    found = with_searched_rates(study.replace(recipes=("sft", "dpo")), folder)
    assert {name.split(" ")[1] for name in found.cells} == {"sft", "dpo"}


def test_first_stages_keep_their_rates_in_any_order(tmp_path):
    "A later command with fewer recipes writes its trials last. At 62ea385b the rate of `sft-dpo`'s first stage is lost."
    StudyFolder(tmp_path).search.write_text("task,recipe,tuning,trial,learning_rate,beta,score,metric,chosen,at_edge\n"
                                            "paraphrase,sft-dpo,full,1,0.0001,0.1,0.9,accuracy,True,False\nparaphrase,sft,full,1,0.002,,0.8,accuracy,True,False\n")
    found = with_searched_rates(Study(tasks=("paraphrase",), recipes=("sft", "sft-dpo"), tunings=("full",), search=Search(trials=3)), tmp_path)
    assert found.cells["paraphrase sft-dpo full sft.learning_rate"] == 0.002


def test_finished_trials_are_not_counted_as_to_come(searched, tmp_path):
    folder, study, _ = searched
    assert finished_trials(StudyFolder(folder)) == {("paraphrase", "sft", "full"): 3, ("paraphrase", "dpo", "full"): 3}
    begun = tmp_path / "begun"
    shutil.copytree(folder, begun)
    StudyFolder(begun).search.unlink()
    shutil.rmtree(next((begun / "search" / "runs").glob("*-dpo-*")))
    both, inputs = study.replace(recipes=("sft", "dpo")), little_inputs()
    assert trial_cost(both, Timing(), inputs)[0] == 6
    assert trial_cost(both, Timing(), inputs, finished=finished_trials(StudyFolder(begun)))[0] == 1
    for path in (begun / "search" / "runs").glob("*/settings.yaml"): path.unlink()  # as trials are kept
    assert trials_in_words(StudyFolder(begun), both, inputs) == "search learning rates: 5 of about 6 runs done"


def test_trials_after_an_earlier_rate_of_the_first_stage_do_not_count(searched, tmp_path):
    "Such trials are made again. At 2b109078 they counted as done, and `plan` said too few."
    folder, study = tmp_path / "study", searched[1].replace(recipes=("sft-dpo",))
    shutil.copytree(searched[0], folder)
    compare(study, folder, False)
    assert plan(study, folder, measure=False).trials == 0
    table = pd.read_csv(StudyFolder(folder).search)
    of_sft = table[table["recipe"] == "sft"]
    table.loc[of_sft.index, "chosen"] = of_sft["trial"] == of_sft.loc[~of_sft["chosen"], "trial"].iloc[0]  # another one
    table.to_csv(StudyFolder(folder).search, index=False)
    assert plan(study, folder, measure=False).trials == 3


def test_a_search_that_ends_leaves_what_another_one_is_writing(searched, tmp_path, monkeypatch):
    "At 2b109078 it deleted the weights of a trial that another command was closing: the trial failed, and its rate counted as the worst."
    folder, study = StudyFolder(tmp_path / "study"), searched[1]
    shutil.copytree(searched[0], folder.path)
    digest, begun = folder_module.digest_of, []
    def meanwhile(path):
        if not begun and path.parent.name == "policy":
            begun.append(path)
            compare(study, folder, False)  # has nothing left to try
        return digest(path)
    monkeypatch.setattr(folder_module, "digest_of", meanwhile)
    compare(study.replace(recipes=("sft-sft",)), folder, False)
    assert begun and not folder.failed()


def test_a_damaged_table_of_trials_is_made_again(searched, tmp_path, capsys):
    "At 2313f6f5 the command that was said to mend it ended at it, each time."
    folder, study, _ = searched
    shutil.copytree(folder, tmp_path / "study")
    table = StudyFolder(tmp_path / "study").search
    table.write_text(table.read_text()[:-20])
    compare(study.replace(recipes=("sft", "dpo")), tmp_path / "study")
    assert "its last line is cut" in capsys.readouterr().out and table.read_text() == StudyFolder(folder).search.read_text()


def test_a_search_where_nothing_is_trained_is_none(searched, tmp_path):
    assert set(compare(searched[1].replace(recipes=("base",)), tmp_path / "study", False).recipe) == {"base"}


def test_a_validation_row_that_makes_no_pair_is_not_watched(backbone, tokenizer):
    "At 2313f6f5 every DPO run on a small file of texts failed, as its single validation row has no other text to be swapped with."
    study = small(backbone, tasks=("sonnet",), recipes=("dpo",), tunings=("full",))
    one = little_inputs().of(study.runs()[-1])
    stage, one = one.run.stages[0].replace(rejected="swap"), dataclasses.replace(one, data=dataclasses.replace(one.data, validation=one.data.validation[:1]))
    model, read = load_backbone(backbone)
    assert rows_to_watch(one, stage, model, read) == [] and len(stage_rows(one, stage, model, read, one.data.train)) == 20


def test_files_of_the_desktop_do_not_matter(searched, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(searched[0], folder)
    for home in (folder, folder / "stages", folder / "search" / "stages", folder / "runs", next((folder / "runs").iterdir())):
        home.mkdir(exist_ok=True)
        (home / ".DS_Store").write_bytes(b"\0")
    (next(one for one in (folder / "runs").iterdir() if one.is_dir()) / "further").mkdir()
    (next(one for one in (folder / "runs").iterdir() if one.is_dir()) / "further" / ".DS_Store").write_bytes(b"\0")
    assert len(gather(folder))
    compare(searched[1].replace(recipes=("dpo", "sft")), folder, False)


def test_a_folder_at_home(backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    compare(small(backbone, tasks=("paraphrase",), tunings=("full",), recipes=("sft",)), "~/mine", False)
    assert (tmp_path / "home" / "mine" / "results.csv").exists() and not (tmp_path / "~").exists()


def test_a_saved_model_of_a_study_is_found(backbone, tmp_path):
    folder = StudyFolder(tmp_path / "best")
    compare(small(backbone, tasks=("paraphrase",), tunings=("full",), recipes=("sft",), weights="best"), folder, False)
    name, = (name for name in folder.finished_runs() if "-sft-" in name)
    assert model_folder(str(folder.run(name))) == folder.run(name).policy
    check_saved_model(str(folder.run(name)))
    with pytest.raises(FileNotFoundError, match=f"name one of its models, such as {folder.run(name)}"): check_saved_model(str(folder))


def test_a_planned_folder_can_be_used(backbone, tmp_path):
    study = small(backbone, tasks=("paraphrase",), tunings=("full",), recipes=("sft",))
    for name, files in (("planned", ["calibration.json"]), ("finder", [".DS_Store"])):
        (tmp_path / name).mkdir()
        for file in files: (tmp_path / name / file).write_text("{}")
        check_study_folder(tmp_path / name, study)
    (tmp_path / "other").mkdir()
    plan(study, tmp_path / "other", measure=False)
    assert not list((tmp_path / "other").iterdir())
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds files that are no study"): check_study_folder(tmp_path / "other", study)


def test_folds_are_refused_where_one_model_is_trained(backbone, tmp_path):
    with pytest.raises(SettingsError, match="run.folds = 5 cannot be used: one model is trained on all training rows"):
        train_run(Run(backbone=backbone, folds=5, fold=2), tmp_path / "one", False, little_inputs())
    assert not (tmp_path / "one").exists()


def test_an_interrupt_before_training_frees_the_folder(backbone, tmp_path):
    folder = StudyFolder(tmp_path / "study")
    with pytest.raises(KeyboardInterrupt), claimed(folder, small(backbone)):
        (folder.path / "data").mkdir()
        raise KeyboardInterrupt
    assert not folder.begun and not folder.data.exists()
    claim_folder(folder, small(backbone, train_size=8))  # other settings


def test_leftovers_that_another_process_tidies_up(tmp_path, monkeypatch):
    part = tmp_path / f".mine.{'0' * 8}-1-{'1' * 8}-x.part"
    part.write_text("")
    def gone(path):
        path.unlink()
        return path.lstat()
    monkeypatch.setattr(safe_files, "is_leftover", gone)
    remove_leftovers(tmp_path)
    assert not part.exists()


def test_files_of_ones_own_are_not_leftovers(tmp_path):
    for name in (".notes.old", ".draft.part"): (tmp_path / name).write_text("mine")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".draft.part", ".notes.old"]


def test_a_disk_that_does_not_know_fsync_of_folders(tmp_path, monkeypatch):
    def refuse(handle): raise OSError(errno.EINVAL, "Invalid argument")
    monkeypatch.setattr(os, "fsync", refuse)
    to_disk(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError): to_disk(tmp_path / "file")


def test_the_commit_is_ours(tmp_path, monkeypatch):
    "A package that lies in somebody else's repository has no commit."
    package = tmp_path / ".venv" / "sftdpo"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / ".gitignore").write_text(".venv\n")
    for words in (["init", "-q"], ["add", ".gitignore"], ["commit", "-qm", "theirs"]): subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(runs_module.sftdpo, "__file__", str(package / "__init__.py"))
    assert commit.__wrapped__() is None
    subprocess.run([*git, "add", "-f", str(package / "__init__.py")], check=True)
    subprocess.run([*git, "commit", "-qm", "ours"], check=True)
    assert commit.__wrapped__()


def test_a_read_error_does_not_cost_a_checkpoint(tmp_path, monkeypatch):
    home = tmp_path / "checkpoint-4"
    home.mkdir()
    assert own_record(home, "key") is None  # its writer was stopped
    def fail(*rest): raise OSError(errno.EIO, "Input/output error")
    with monkeypatch.context() as patch:
        patch.setattr("sftdpo.engine.checkpoints.read_record", fail)
        with pytest.raises(OSError, match="Input/output"): own_record(home, "key")
    write_record(home / COMPLETE, {})
    with pytest.warns(UserWarning, match="it names no files"): assert own_record(home, "key") is None


def test_the_best_model_of_a_cell_where_one_was_not_measured(tmp_path):
    folder = StudyFolder(tmp_path)
    for name, value in (("paraphrase-sft-full-seed0", None), ("paraphrase-sft-full-seed1", 0.5)):
        home = folder.run(name)
        home.policy.mkdir(parents=True)
        write_json(home.metrics, dict(accuracy=value))
    keep_best(folder, Run(), "accuracy")
    assert [home.name for home in folder.runs.iterdir() if (home / "policy").exists()] == ["paraphrase-sft-full-seed1"]


def test_a_model_that_left_the_study_goes_before_one_that_is_in_it(tmp_path):
    "At 2313f6f5 the study could end with a model that is in none of its tables."
    folder = StudyFolder(tmp_path)
    for name, value in (("paraphrase-sft-full-seed0", 0.9), ("paraphrase-sft-full-seed1", 0.5)):
        home = folder.run(name)
        home.policy.mkdir(parents=True)
        write_json(home.metrics, dict(accuracy=value))
    write_planned_runs(folder, pd.DataFrame([dict(dict.fromkeys(CELL, "0"), run="paraphrase-sft-full-seed1")]))
    keep_best(folder, Run(), "accuracy")
    assert [home.name for home in folder.runs.iterdir() if (home / "policy").exists()] == ["paraphrase-sft-full-seed1"]


def test_a_card_names_a_base_model_of_the_hub_only():
    inputs = little_inputs().of(Run())
    heads = {name: model_card(SimpleNamespace(run=inputs.run.replace(backbone=name), data=inputs.data, train_size=1, judged=[]), {}).split("---")[1] for name in ("bard", "./mine", "gpt2@main", "someone/tiny")}
    assert [head.split("\n")[1] for head in heads.values()] == ["library_name: transformers"] * 2 + ["base_model: gpt2", "base_model: someone/tiny"]


def test_the_list_of_unusable_rows_goes_with_them(tmp_path):
    data = tmp_path / "mine.csv"
    def written(rows):
        data.write_text("text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(40)) + rows)
        return [path.name for path in write_check(check_file("labels", data, Reading()), tmp_path / "kept")]
    assert "unusable.csv" in written("only one field\n")
    assert "unusable.csv" not in written("") and not (tmp_path / "kept" / "unusable.csv").exists()


def test_a_name_that_is_not_utf8_is_refused_at_once(tmp_path):
    with pytest.raises(SettingsError, match="it is not UTF-8; rename the file or folder"): to_yaml(Study(data="caf\udce9.csv"))


@pytest.mark.skipif(not work.forkable(2), reason="workers are not forked here")
def test_a_full_disk_among_workers_is_told_as_one(backbone, tmp_path, monkeypatch, capfd):
    def fail(*rest, **more): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(work, "finish_stage", fail)
    folder, study = StudyFolder(tmp_path / "study"), small(backbone, tasks=("paraphrase",), tunings=("full",), recipes=("sft", "dpo"))
    claim_folder(folder, study)
    with pytest.raises(OSError, match="the disk is full") as error: work.share_work(folder, stage_tree(study), "none", 2)
    assert error.value.errno == errno.ENOSPC and "Traceback" not in capfd.readouterr().err
    assert not folder.failures.exists() or not list(folder.failures.iterdir())


@pytest.mark.parametrize("then", ["gone", "half gone", "back"])
def test_a_parent_that_another_command_gave_up_is_trained_again(then, backbone, tmp_path, monkeypatch, capsys):
    "A command with fewer recipes may delete the weights from which another is about to start. At 2b109078 the run failed unless they were gone at once."
    study = small(backbone, tasks=("paraphrase",), tunings=("full",), recipes=("sft-dpo",))
    load, once = work.load_policy, []
    def gone_once(path, backbone):
        if not once and Path(path).exists():
            once.append(shutil.copytree(path, tmp_path / "copy"))
            if then == "gone": shutil.rmtree(path)
            else: (Path(path) / "model.safetensors").unlink()
            try: return load(path, backbone)
            finally:
                shutil.rmtree(path, ignore_errors=True)
                if then == "back": shutil.copytree(once[0], path)  # a third command trained it again
        return load(path, backbone)
    monkeypatch.setattr(work, "load_policy", gone_once)
    results = compare(study, tmp_path / "study")
    assert once and set(results.recipe) == {"base", "sft-dpo"} and "damaged" not in capsys.readouterr().out


@pytest.mark.parametrize("moment", ["train", "judge_run"])
def test_a_parent_that_a_third_command_trains_again_does_not_fail_a_run(moment, backbone, tmp_path, monkeypatch):
    "At 2b109078 the run of `sft-dpo` failed: the record of its first stage was not there."
    study, folder, begun = small(backbone, tasks=("paraphrase",), tunings=("full",), recipes=("sft-dpo",)), StudyFolder(tmp_path / "study"), []
    compare(study.replace(recipes=("sft",)), folder, False)  # nothing keeps its weights
    step, train = getattr(runs_module, moment), runs_module.train
    def stopped(*rest): raise KeyboardInterrupt
    def meanwhile(*rest, **more):
        run = getattr(rest[0], "run", rest[0])
        if not begun and run.recipe == "sft-dpo" and (moment != "train" or rest[1].kind == "dpo"):
            begun.append(run)
            compare(study.replace(recipes=("sft",)), folder, False)  # gives up the weights of the first stage
            runs_module.train = stopped
            with pytest.raises(KeyboardInterrupt): compare(study.replace(recipes=("sft-sft",)), folder, False)
            runs_module.train = meanwhile if moment == "train" else train
        return step(*rest, **more)
    monkeypatch.setattr(runs_module, moment, meanwhile)
    results = compare(study, folder, False)
    assert begun and not results.attrs["failed"] and set(results.recipe) == {"base", "sft", "sft-dpo"}
    assert "kl_policy_reference" in set(results.metric[results.recipe == "sft-dpo"]), "nor does it lose the distance from its first stage"


def test_a_stage_is_described_with_all_that_sets_it_apart():
    stage = dict(learning_rate=1e-4, rejected="flip")
    usual = describe_stage(stage | dict(sft_weight=0.0, dropout=0.0, max_gradient_norm=1.0), "dpo")
    assert usual == describe_stage(stage, "dpo")
    told = describe_stage(stage | dict(sft_weight=1.0, dropout=0.1, max_gradient_norm=0.5), "dpo")
    assert set(told.split(", ")) - set(usual.split(", ")) == {"sft weight 1", "dropout 0.1", "max gradient norm 0.5"}


def test_a_column_whose_name_looks_like_an_option_can_be_named():
    for reading in (Reading(label="--cat"), Reading(prompt="{text}\n", label="team", unusable="drop"),
                    Reading(verbalizers={"0": "no", "1": "it is"}, columns=("a", "b c"), end_of_text=False)):
        assert parse(["compare", "--tasks", "labels", "--data", "x y.csv", *reading_options(reading)]).study.reading == reading


def test_a_negative_zero_is_a_plain_one():
    accuracy = TASKS["paraphrase"].primary
    assert [format_metric(-0.0001, accuracy), format_metric(-0.0001, accuracy, signed=True)] == ["0.0 %", "+0.0 %"]
