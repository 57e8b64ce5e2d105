"Whatever ends a study, the same command goes on, and ends with what an undisturbed study ends with."
import errno
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import keep_results
import numpy as np
import pandas as pd
import pytest
import torch
from little import compare, little_inputs, plan, small, stage_tree, steady
from tiny import tiny_model

import sftdpo.study as study_module
from sftdpo.config import Execution, Search, SettingsError, Stage, Study, to_yaml
from sftdpo.engine.folder import StudyFolder, read_record, write_record
from sftdpo.engine.inputs import Inputs
from sftdpo.engine.safe_files import remove
from sftdpo.engine.store import read_results
from sftdpo.engine.timing import plan_in_lines, trials_in_words
from sftdpo.model import save_policy

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["sftdpo.study", "sftdpo.trainer", "little", "frozen"])


def finished_runs(folder): return StudyFolder(folder).finished_runs()


def dies_in(moment):
    "Let this process kill itself, with no chance to clean up, in the middle of something."
    import sftdpo.engine.runs
    import sftdpo.engine.store
    import sftdpo.trainer
    def die(*rest, **more): os.kill(os.getpid(), signal.SIGKILL)
    if moment == "checkpoint":
        from transformers import Trainer
        Trainer._save_rng_state = die                       # weights and optimizer are written, the rest is not
    if moment == "step":
        start = sftdpo.trainer.Watch.on_step_begin
        def dies(self, args, state, *rest, **more):
            if self.trainer.stage.kind == "dpo" and state.global_step == 1: die()
            start(self, args, state, *rest, **more)
        sftdpo.trainer.Watch.on_step_begin = dies
    if moment == "policy": sftdpo.engine.runs.save_policy = die
    if moment == "stage": sftdpo.engine.folder.write_record = die       # the policy is saved, the stage's record is not
    if moment == "run": pd.DataFrame.to_parquet = die         # in the middle of a run's folder
    if moment == "told":                                     # slow from here on, so that the signal comes in the midst of training
        waits = sftdpo.trainer.Watch.on_step_end
        def slowly(self, args, state, *rest, **more):
            found = waits(self, args, state, *rest, **more)
            time.sleep(2 * (state.global_step > 2))
            return found
        sftdpo.trainer.Watch.on_step_end = slowly
    if moment == "results": os.replace = lambda source, target: die() if str(target).endswith("results.csv") else os.rename(source, target)


def study_process(study, folder, log, moment):
    "What a child does: the study, and a line in the log for each stage that it finishes."
    import sftdpo.engine.work
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that a shell began in the background pass an ignored Ctrl-C on
    torch.set_num_threads(1)
    finish = sftdpo.engine.work.finish_stage
    def logged(home, *rest, **more):
        result = finish(home, *rest, **more)
        with open(log, "a") as file: file.write(home.path.name + "\n")
        return result
    sftdpo.engine.work.finish_stage = logged
    dies_in(moment)
    compare(study, folder, progress=False)


def start(study, folder, log, moment=None):
    child = processes.Process(target=study_process, args=(study, folder, log, moment))
    child.start()
    return child


def weights(folder):
    "A digest of every model that was kept."
    return {path.parent.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((folder / "runs").glob("*/policy/*.safetensors"))}


def check_equal(folder, expected, study):
    "Every run once, with the results and the weights of the undisturbed study, and nothing left lying about."
    assert finished_runs(folder) == finished_runs(expected) and len(finished_runs(folder)) == len({little_inputs().of(run).name for run in study.runs()})
    order = ["run", "metric"]
    found, wanted = (steady(read_results(place)).sort_values(order).reset_index(drop=True) for place in (folder, expected))
    assert not found.duplicated(order).any()
    pd.testing.assert_frame_equal(found, wanted, check_exact=True)
    assert weights(folder) == weights(expected) and len(weights(folder)) == len(finished_runs(folder)) - len(study.tasks)
    left = [path for path in folder.rglob("*") if path.name.endswith((".part", ".old")) or path.name.startswith("checkpoint")]
    assert not left and not list((folder / "failures").glob("*")) and not list((folder / "stages").glob("*/policy"))


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer):
    "A folder with the tiny GPT-2, for all tests here."
    return str(save_policy(tiny_model("gpt2", tokenizer, dropout=0.1), tokenizer, tmp_path_factory.mktemp("base") / "tiny backbone"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    "The folder of a study that nothing disturbed, and the seconds it took; each study is trained once."
    kept = {}
    def trained(study):
        name = to_yaml(study)
        if name not in kept:
            folder, began = tmp_path_factory.mktemp("undisturbed"), time.monotonic()
            compare(study, folder, progress=False)
            kept[name] = folder, time.monotonic() - began
        return kept[name]
    return trained


def checkpointed(backbone, **changes):
    return small(backbone, **changes).replace(weights="all", **{"sft.checkpoint_steps": 1, "dpo.checkpoint_steps": 1, "sft.epochs": 2, "dpo.epochs": 2})


@pytest.mark.slow
def test_killed_at_many_moments(base, undisturbed, tmp_path, by_chance=14):
    "At six moments that are named, and at some by chance; `test_accidents.py` has kills for every run of the tests."
    study = checkpointed(base, recipes=("sft", "dpo", "sft-dpo"))
    expected, seconds = undisturbed(study)
    longest = seconds / (2 * by_chance)                             # all kills by chance come in half the time that the study takes
    folder, log, chance, kills = tmp_path / "killed", tmp_path / "log", random.Random(0), Counter()
    while kills["by chance"] < by_chance:
        child = start(study, folder, log)
        child.join(chance.uniform(0.05, longest))
        if not child.is_alive(): break
        child.kill()
        child.join()
        kills["by chance"] += 1
    for moment in ("checkpoint", "step", "policy", "stage", "run", "results"):
        child = start(study, folder, log, moment)
        child.join(300)
        assert child.exitcode == -signal.SIGKILL, moment
        kills[moment] += 1
    child = start(study, folder, log)
    child.join(300)
    assert child.exitcode == 0 and sum(kills.values()) == 6 + by_chance, kills
    check_equal(folder, expected, study)


def test_killed_when_all_is_done_but_the_models(base, tmp_path, monkeypatch):
    "The next call deletes what no stage will start from, though it has nothing to train."
    study = small(base, tasks=("sonnet",), recipes=("sft-dpo",), tunings=("full",))
    monkeypatch.setattr("sftdpo.engine.work.give_up_policy", lambda *rest: None)
    compare(study, tmp_path / "out", progress=False)
    assert len(list((tmp_path / "out" / "stages").glob("*/policy"))) == 2
    monkeypatch.undo()
    compare(study, tmp_path / "out", progress=False)
    assert not list((tmp_path / "out" / "stages").glob("*/policy"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop(number, base, undisturbed, tmp_path):
    "SIGTERM and Ctrl-C end at once, and leave what can be gone on with."
    study = checkpointed(base, tasks=("sonnet",), recipes=("sft", "sft-dpo"))
    child = start(study, tmp_path / "out", tmp_path / "log", "told")
    while child.is_alive() and not list((tmp_path / "out").glob("stages/*/checkpoints/*/complete.json")): time.sleep(0.05)
    os.kill(child.pid, number)
    child.join(30)
    assert child.exitcode not in (0, None)
    compare(study, tmp_path / "out", progress=False)
    check_equal(tmp_path / "out", undisturbed(study)[0], study)


def test_two_processes_on_one_folder(base, undisturbed, tmp_path):
    study = checkpointed(base, tasks=("sonnet",), recipes=("sft", "sft-dpo"))
    children = [start(study, tmp_path / "out", tmp_path / "log") for _ in range(2)]
    for child in children: child.join(300)
    assert [child.exitcode for child in children] == [0, 0]
    trained = Counter((tmp_path / "log").read_text().split())
    assert set(trained) == {node.key for node in stage_tree(study) if node.stage} and set(trained.values()) == {1}
    check_equal(tmp_path / "out", undisturbed(study)[0], study)


def test_worker_processes(base, tmp_path, monkeypatch):
    "Real worker processes, which know nothing but what they are told, on a file of labels."
    data = tmp_path / "texts.csv"
    data.write_text("text,label\n" + "".join(f"text {i},{('no', 'yes')[i % 2]}\n" for i in range(60)))
    stage = dict(epochs=1, batch_size=4, evaluations=0, precision="fp32")
    study = Study("workers", tasks=("labels",), data=str(data), backbone=base, train_size=16, weights="all", recipes=("sft", "sft-dpo"), tunings=("lora",), sft=Stage("sft", **stage), dpo=Stage("dpo", **stage))
    study_module.compare(study, tmp_path / "alone", progress=False)
    monkeypatch.setattr("sftdpo.engine.work.cores", lambda: 2 * torch.get_num_threads())  # each worker has as many threads as this process
    study_module.compare(study, tmp_path / "shared", progress=False, execution=Execution(workers=2))
    check_equal(tmp_path / "shared", tmp_path / "alone", study)
    assert finished_runs(tmp_path / "shared") == finished_runs(tmp_path / "alone") and len(finished_runs(tmp_path / "alone")) == 3
    beside = ["forgetting", "held_out_text_nll", *(f"kl_{pair}" for pair in ("policy_base", "base_policy", "policy_reference", "reference_policy"))]
    found, wanted = (read_results(tmp_path / place)[["run", "metric", "value"]].sort_values(["run", "metric"]) for place in ("shared", "alone"))
    found, wanted = (table[table.metric.isin(beside)].reset_index(drop=True) for table in (found, wanted))
    assert set(wanted.metric) == set(beside)
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.fixture
def small_disk(tmp_path):
    "A file system of 8 MB."
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True).returncode: pytest.skip("a small file system cannot be mounted here: that needs root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk(backbone, small_disk, tmp_path):
    "The study ends with one line that says so, and goes on after space is made; it is filled more tightly each time."
    study = checkpointed(backbone, tasks=("sonnet",), recipes=("sft-dpo",))
    compare(study, tmp_path / "undisturbed", progress=False)
    folder, ballast, full = small_disk / "out", small_disk / "ballast", 0
    for free in (1000, 300_000, 700_000, 1_100_000, 1_500_000, 2_000_000):
        room = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        if room > free: ballast.write_bytes(bytes(room - free))
        try: compare(study, folder, progress=False)
        except OSError as error:
            assert error.errno == errno.ENOSPC and "make space and give the same command again" in str(error), error
            full += 1
        ballast.unlink(missing_ok=True)
    assert full >= 2
    compare(study, folder, progress=False)
    check_equal(folder, tmp_path / "undisturbed", study)


def test_a_failed_run_does_not_stop_the_others(backbone, tmp_path, capsys):
    study = small(backbone, tasks=("sonnet",), tunings=("full",), recipes=("sft", "dpo", "sft-dpo"), cells={"sft full sft.learning_rate": 1e30, "sft full sft.max_gradient_norm": 1e30})
    results = compare(study, tmp_path / "out")
    assert set(results.recipe) == {"base", "dpo", "sft-dpo"}
    said = capsys.readouterr().out
    assert "1 of 4 runs failed" in said and "--retry-failed" in said
    [told] = (tmp_path / "out" / "failures").iterdir()
    assert "FloatingPointError: The loss is not finite" in told.read_text() and "Traceback" in told.read_text()
    assert "failed" in [state.name for state in plan(study, tmp_path / "out", measure=False).states]
    before = told.stat().st_mtime_ns
    compare(study, tmp_path / "out", progress=False)
    assert told.stat().st_mtime_ns == before                                          # not tried again
    compare(study, tmp_path / "out", progress=False, execution=Execution(retry_failed=True))
    assert told.stat().st_mtime_ns != before


def test_a_failed_stage_fails_what_starts_from_it(backbone, tmp_path, monkeypatch):
    import sftdpo.engine.work
    finish = sftdpo.engine.work.finish_stage
    def fails(home, inputs, stage, *rest, **more):
        if stage.kind == "sft": raise MemoryError("no memory")
        return finish(home, inputs, stage, *rest, **more)
    monkeypatch.setattr(sftdpo.engine.work, "finish_stage", fails)
    study = small(backbone, tasks=("sonnet",), tunings=("full",))
    assert set(compare(study, tmp_path / "out", progress=False).recipe) == {"base", "dpo"}
    monkeypatch.setattr(sftdpo.engine.work, "finish_stage", finish)
    found = compare(study, tmp_path / "out", progress=False, execution=Execution(retry_failed=True))
    expected = compare(study, tmp_path / "undisturbed", progress=False)
    pd.testing.assert_frame_equal(steady(found), steady(expected), check_exact=True)


def test_a_search_tries_a_failed_stage_once_more_and_no_oftener(backbone, tmp_path, monkeypatch):
    "At fdeaf147 --retry-failed tried it again in each round of trials."
    import sftdpo.engine.work
    finish, tried = sftdpo.engine.work.finish_stage, []
    def fails(home, inputs, stage, *rest, **more):
        if stage.kind == "sft": tried.append(inputs.run.seed)
        if len(tried) > 4: raise MemoryError("no memory")  # the four trials of sft are done
        return finish(home, inputs, stage, *rest, **more)
    monkeypatch.setattr(sftdpo.engine.work, "finish_stage", fails)
    study = quick_one(backbone, recipes=("sft", "sft-dpo"), search=Search(trials=4, seeds=(7,), further=0))
    for times, retry in ((1, False), (1, False), (2, True)):
        with pytest.raises(SettingsError, match="every trial of this cell failed"):
            compare(study, tmp_path / "out", progress=False, execution=Execution(retry_failed=retry))
        assert len(tried) == 4 + times


def test_trying_failures_again_leaves_those_of_other_cells(backbone, tmp_path):
    "At 0fe45744 --retry-failed with a search forgot the failures of all cells, also of those that the command does not ask for."
    study, trials = quick_one(backbone, search=Search(trials=3, seeds=(7,), further=0)), StudyFolder(tmp_path / "out").trials
    compare(study, tmp_path / "out", progress=False)
    other = trials.failure("0123456789ab")
    other.parent.mkdir(exist_ok=True)
    other.write_text("of another cell")
    compare(study, tmp_path / "out", progress=False, execution=Execution(retry_failed=True))
    assert other.exists()


def quick_one(backbone, **changes):
    "A study of SFT with full fine-tuning on question pairs."
    return small(backbone, **dict(dict(tasks=("paraphrase",), recipes=("sft",), tunings=("full",)), **changes))


def trained_stages(monkeypatch):
    "A list that grows with every stage that is trained."
    import sftdpo.engine.runs
    train, trained = sftdpo.engine.runs.train, []
    monkeypatch.setattr(sftdpo.engine.runs, "train", lambda run, stage, *rest, **more: trained.append(stage.kind) or train(run, stage, *rest, **more))
    return trained


def test_a_failure_in_judging_costs_no_training(backbone, tmp_path, monkeypatch):
    "At 2313f6f5 the policy was removed, though it was whole, and so was that of a parent whose child had failed."
    import sftdpo.engine.runs
    trained, judge = trained_stages(monkeypatch), sftdpo.engine.runs.judge_all
    def fails(folder, inputs, *rest):
        if len(inputs.run.stages) == 2: raise MemoryError("while it is judged")
        return judge(folder, inputs, *rest)
    study = quick_one(backbone, recipes=("sft", "sft-dpo"))
    with monkeypatch.context() as broken:
        broken.setattr(sftdpo.engine.runs, "judge_all", fails)
        assert set(compare(study, tmp_path / "out", progress=False).recipe) == {"base", "sft"}
    assert set(compare(study, tmp_path / "out", progress=False, execution=Execution(retry_failed=True)).recipe) == {"base", "sft", "sft-dpo"}
    assert trained == ["sft", "dpo"] and not list((tmp_path / "out").glob("stages/*/policy"))


def test_what_was_trained_before_it_was_followed_still_serves_as_the_reference(backbone, tmp_path, monkeypatch):
    "At 2313f6f5 the distances from the reference were missing for good."
    import sftdpo.engine.work
    judge, trained = sftdpo.engine.work.finish_run, trained_stages(monkeypatch)
    def stops(folder, inputs, *rest):
        if inputs.run.stages: raise KeyboardInterrupt
        return judge(folder, inputs, *rest)
    with monkeypatch.context() as stopped:
        stopped.setattr(sftdpo.engine.work, "finish_run", stops)
        with pytest.raises(KeyboardInterrupt): compare(quick_one(backbone), tmp_path / "out", progress=False)
    grown = quick_one(backbone, recipes=("sft", "sft-dpo"))
    found, expected = compare(grown, tmp_path / "out", progress=False), compare(grown, tmp_path / "undisturbed", progress=False)
    pd.testing.assert_frame_equal(steady(found), steady(expected), check_exact=True)
    assert (found.metric == "kl_policy_reference").any() and trained == ["sft", "dpo"] * 2


@pytest.mark.parametrize("another", [False, True])
def test_a_second_stage_starts_from_the_backbone_where_it_is_now(another, backbone, tokenizer, tmp_path, monkeypatch):
    "At 8dc483e7 an adapter was put on whatever lay where the backbone was when it was trained; with nothing there, the stage failed."
    import sftdpo.engine.work
    finish, study = sftdpo.engine.work.finish_stage, quick_one(backbone, recipes=("sft-dpo",), tunings=("lora",))
    def stops(home, inputs, stage, *rest, **more):
        if stage.kind == "dpo": raise KeyboardInterrupt
        return finish(home, inputs, stage, *rest, **more)
    with monkeypatch.context() as stopped:
        stopped.setattr(sftdpo.engine.work, "finish_stage", stops)
        with pytest.raises(KeyboardInterrupt): compare(study, tmp_path / "out", progress=False)
    moved = shutil.copytree(backbone, tmp_path / "moved")
    expected = compare(study, tmp_path / "undisturbed", progress=False)
    remove(Path(backbone))
    if another:
        other = tiny_model("gpt2", tokenizer)
        other.lm_head.weight.data += torch.randn_like(other.lm_head.weight)
        save_policy(other, tokenizer, backbone)
    trained = trained_stages(monkeypatch)
    found = compare(study.replace(backbone=str(moved)), tmp_path / "out", progress=False)
    assert trained == ["dpo"]
    pd.testing.assert_frame_equal(*(steady(table.drop(columns="backbone")) for table in (found, expected)), check_exact=True)


def test_each_run_is_compared_with_the_base_model_as_it_is_judged_itself(backbone, tmp_path):
    "At 2313f6f5 all variants of judging were compared with the first one's base model."
    results = compare(quick_one(backbone, sweep={"test_size": ["8", "20"]}), tmp_path / "out", progress=False)
    table = results.pivot(index=["recipe", "run"], columns="metric", values="value").reset_index().set_index(["recipe", "examples"])
    for number in (8, 20): assert table.accuracy_change["sft", number] == pytest.approx(table.accuracy["sft", number] - table.accuracy["base", number])


def test_a_worker_trains_one_stage_at_most_before_the_base_model_is_judged(backbone, tmp_path):
    from sftdpo.engine.work import finish_node, take_node
    folder, ahead = StudyFolder(tmp_path / "out"), []
    base, *stages = stage_tree(quick_one(backbone, seeds=(0, 1, 2)))
    def finish(node):
        finish_node(folder, node, progress=False)
        if folder.early(node): ahead.append(node)
    assert [take_node(folder, list(stages), finish, ahead) for _ in range(2)] == [True, False]
    finish_node(folder, base)
    assert [take_node(folder, list(stages), finish, ahead) for _ in range(4)] == [True] * 3 + [False]
    assert all(map(folder.judged, stages)) and ahead == stages[:1]


def test_other_data_under_an_old_folder_is_refused(backbone, tmp_path):
    import dataclasses

    from little import short
    study = small(backbone, tasks=("sonnet",), recipes=("sft",), tunings=("full",))
    compare(study, tmp_path / "out", progress=False)
    report = next((tmp_path / "out" / "data").glob("*/data.json"))
    before = report.read_text()
    other = Inputs(lambda *rest: dataclasses.replace(short(*rest), train=short(*rest).train[1:]))
    with pytest.raises(ValueError, match="The data of the task sonnet is 'embedded' .*was begun with 'embedded'"): compare(study, tmp_path / "out", progress=False, inputs=other)
    assert report.read_text() == before, "at 8dc483e7 the report on the data was that of the refused ones"


@pytest.mark.parametrize("option", ["also_judge", "held_out_text"])
def test_other_files_that_judge_are_refused(option, backbone, tmp_path):
    "At 8dc483e7 all stages of the study were trained again."
    judging = tmp_path / "judging.csv"
    def write(words): judging.write_text("question1,question2,label\n" + "".join(f"What {i} {words}?,How {i}?,{i % 2}\n" for i in range(30)))
    write("now")
    study = quick_one(backbone, recipes=("base",), **{option: (f"more={judging}",) if option == "also_judge" else str(judging)})
    compare(study, tmp_path / "out", progress=False)
    write("later")
    with pytest.raises(ValueError, match=f"The {option}.* is .*judging.csv.* was begun with .*judging.csv.*Bring the old files back"): compare(study, tmp_path / "out", progress=False)


def test_more_trials_go_on_in_the_same_folder(backbone, tmp_path, monkeypatch):
    "At 8dc483e7 the remedy that a search itself names was refused."
    trained = trained_stages(monkeypatch)
    study = quick_one(backbone, search=Search(trials=3, seeds=(7,), further=0))
    compare(study, tmp_path / "out", progress=False)
    assert len(trained) == 4
    assert plan(study.replace(**{"search.trials": 4}), tmp_path / "out", measure=False).trials == 1
    compare(study.replace(**{"search.trials": 4}), tmp_path / "out", progress=False)
    assert 5 <= len(trained) <= 6, "the further trial, and the run if another rate is better"
    assert len(pd.read_csv(tmp_path / "out" / "search.csv")) == 4
    with pytest.raises(FileExistsError, match="search.trials was 4 and is 0"): compare(study.replace(**{"search.trials": 0, "search.further": 1}), tmp_path / "out", progress=False)


def test_more_search_seeds_go_on_in_the_same_folder(backbone, tmp_path, monkeypatch):
    "At 43576adc the remedy of a verdict, more seeds in the search, needed a new folder and all its trials again."
    trained, folder = trained_stages(monkeypatch), tmp_path / "out"
    study = quick_one(backbone, search=Search(trials=4, seeds=(7,), further=0))
    compare(study, folder, progress=False)
    first, made = pd.read_csv(folder / "search.csv"), len(trained)
    more = study.replace(**{"search.seeds": (7, 8, 9)})
    assert plan(more, folder, measure=False).trials == 8, "two further seeds of each trial"
    fewer = more.replace(**{"search.trials": 3})  # than there are
    assert trials_in_words(StudyFolder(folder), fewer, little_inputs()) == "search learning rates: 4 of about 12 runs done"
    compare(more, folder, progress=False)
    table = pd.read_csv(folder / "search.csv")
    assert 8 <= len(trained) - made <= 9, "these, and the run if another rate is better"
    assert table.learning_rate.tolist() == first.learning_rate.tolist(), "the trials stay, and the fourth is not another one"
    for old, new in zip(first.seed_scores.astype(str), table.seed_scores): assert new.split()[0] == old and len(new.split()) == 3
    assert table.score.to_numpy() == pytest.approx([np.mean([float(one) for one in line.split()]) for line in table.seed_scores])
    assert StudyFolder(folder).study().search.seeds == (7, 8, 9)
    made = len(trained)
    compare(study, folder, progress=False)
    assert len(trained) == made and pd.read_csv(folder / "search.csv").equals(table), "a command with fewer takes away nothing"
    with pytest.raises(SettingsError, match=r"search.seeds = \(7, 8, 9\).*\[8\] do both"): compare(study.replace(seeds=(8,)), folder, progress=False)
    with pytest.raises(SettingsError, match=r"\[0\] do both"): compare(study.replace(seeds=(3,), **{"search.seeds": (7, 8, 9, 0)}), folder, progress=False)  # a seed that has reported
    with pytest.raises(SettingsError, match="search.seeds = .*not others: name the old ones too; give another folder"): compare(study.replace(**{"search.seeds": (8, 9, 10)}), folder, progress=False)


def test_what_another_process_is_at_keeps_its_checkpoints(backbone, tmp_path):
    "At 8dc483e7 a command with fewer recipes deleted those of a stage that was trained again for others."
    study, folder = quick_one(backbone), StudyFolder(tmp_path / "out")
    compare(study, folder.path, progress=False)
    node = stage_tree(study)[1]
    mark = folder.stage(node.key).checkpoints / "checkpoint-7" / "weights"
    mark.parent.mkdir(parents=True), mark.write_text("of another process")
    with folder.held(node.key): compare(study, folder.path, progress=False)
    assert mark.exists()
    compare(study, folder.path, progress=False)
    assert not mark.exists()


def test_other_versions_under_an_old_folder_are_named(backbone, tmp_path, capsys):
    study = small(backbone, tasks=("sonnet",), recipes=("base",))
    compare(study, tmp_path / "out", progress=False)
    path = tmp_path / "out" / "begun_with.json"
    before = read_record(path)
    write_record(path, before | {"software": before["software"] | {"torch": "2.0.1"}})
    compare(study, tmp_path / "out")
    assert "begun with torch 2.0.1" in capsys.readouterr().out


def test_what_is_kept_of_a_study_goes_on(backbone, tmp_path, capsys, monkeypatch):
    "Small files of half a study are enough: what is missing is trained, its parents too, under the same keys, and nothing else."
    study = small(backbone, tasks=("paraphrase",), recipes=("sft", "sft-dpo"), tunings=("lora",), seeds=(0, 1), search=Search(trials=3, seeds=(7,), further=0))
    whole = compare(study, tmp_path / "whole", progress=False)
    kept = StudyFolder(tmp_path / "kept")
    keep_results.keep(tmp_path / "whole", kept.path)
    assert not list(kept.path.rglob("*.safetensors")) and not kept.stages.exists()
    for home in (kept, kept.trials):
        last = next(name for name in home.finished_runs() if "sft-dpo" in name)
        for path in (home.run(last).path, kept.results, kept.search): remove(path)
    left = plan(study, kept.path, measure=False)
    assert [str(state) for state in left.states].count("done, and trained again for what starts from it") == 1, "at f8ae2a52 a run that was judged was said to wait"
    assert "4 of 5 done" in "\n".join(plan_in_lines(left))
    with monkeypatch.context() as busy:
        busy.setattr(StudyFolder, "worker_at", lambda self, node: "process 7" * (node.depth == 1))
        under_way = plan(study, kept.path, measure=False)
        assert "running: process 7" in map(str, under_way.states)
        assert "4 of 5 done" in "\n".join(plan_in_lines(under_way)), "at fdeaf147 one that was trained again did not count while it ran"
    capsys.readouterr()
    again = compare(study, kept.path)
    told = capsys.readouterr().out
    assert told.count("is judged again") == 1 and "-base-" in told, "the base model, whose distributions are too large to keep"
    keys = {path.name for path in kept.stages.iterdir()}
    assert len(keys) == 2 and keys < {path.name for path in StudyFolder(tmp_path / "whole").stages.iterdir()}, "a pair of stages, nothing more"
    assert len(list(kept.trials.stages.iterdir())) == 2
    pd.testing.assert_frame_equal(steady(again), steady(whole), check_exact=False, rtol=1e-6)
    assert set(kept.finished_runs()) == set(StudyFolder(tmp_path / "whole").finished_runs())
    keep_results.keep(kept.path, tmp_path / "again")
    assert set(StudyFolder(tmp_path / "again").trials.finished_runs()) == set(kept.trials.finished_runs()), "trials that were kept once, without what they judged, are kept again"
