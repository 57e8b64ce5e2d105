"A study, start to end, on tiny models: what is shared, what is written, what goes on after a stop."
import inspect
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from little import compare, little_inputs, plan, small, steady
from tiny import tiny_model
from transformers import AutoModelForCausalLM

import sftdpo.engine.inputs
import sftdpo.engine.runs
import sftdpo.engine.work
import sftdpo.study
from sftdpo.claims import judge_claims
from sftdpo.cli import main
from sftdpo.config import Reading, Run, SettingsError, Stage, WorkFailed
from sftdpo.engine.folder import StudyFolder
from sftdpo.engine.inputs import tokenizer_of
from sftdpo.engine.store import COLUMNS, read_results, variants_of
from sftdpo.model import save_policy
from sftdpo.report import write_report
from sftdpo.study import check_study_folder, evaluate_saved, grown, train_run
from sftdpo.tables import cells_table, print_tables
from sftdpo.verdicts.verdict import Margins, save_margins


def stage_keys(run): return little_inputs().of(run).keys
def run_name(run): return little_inputs().of(run).name


@pytest.fixture(scope="module")
def backbone(tmp_path_factory, tokenizer):
    "One for all tests here: none of them writes to it."
    return str(save_policy(tiny_model("gpt2", tokenizer, dropout=0.1), tokenizer, tmp_path_factory.mktemp("base") / "tiny backbone"))


@pytest.fixture(scope="module")
def done(backbone, tmp_path_factory):
    "The folder of the six cells on both tasks, their results, and which stages were trained: what other studies of the same runs are held against."
    trained, finish, folder = [], sftdpo.engine.work.finish_stage, tmp_path_factory.mktemp("done") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sftdpo.engine.work, "finish_stage", lambda folder, inputs, *rest, **more: trained.append((folder.path.name, inputs.run.cell)) or finish(folder, inputs, *rest, **more))
        results = compare(small(backbone), folder, progress=False)
    return folder, results, trained


def by_run(results):
    "Steady results in an order that does not depend on what else was asked."
    return steady(results).sort_values(["run", "metric"]).reset_index(drop=True)


def same_as_in(done, found):
    "The runs of a study are to the bit those that the six cells have."
    _, results, _ = done
    assert found.run.nunique() > 1
    pd.testing.assert_frame_equal(by_run(found), by_run(results[results.run.isin(found.run)]), check_exact=True)


def test_six_cells_on_both_tasks(backbone, done, monkeypatch, capsys):
    (folder, results, trained), study = done, small(backbone)
    # per task: SFT full, SFT LoRA, DPO full, DPO LoRA, and the two second stages: the SFT stages are shared
    assert len(trained) == 12 and len(set(key for key, _ in trained)) == 12
    assert list(results.columns) == COLUMNS
    assert not results.duplicated(["study", "run", "split", "metric"]).any()
    assert results.run.nunique() == 14
    pd.testing.assert_frame_equal(read_results(folder), results, check_dtype=False)
    assert not list((folder / "stages").glob("*/policy"))  # nobody needs the weights any more

    for run in study.runs():
        home = folder / "runs" / run_name(run)
        written = {path.name for path in home.iterdir()}
        assert {"settings.yaml", "environment.json", "metrics.json", "examples.parquet"} <= written
        assert ("history.csv" in written) == (run.recipe != "base")
        settings = yaml.safe_load((home / "settings.yaml").read_text())
        assert settings["recipe"] == run.recipe and (run.recipe == "base" or settings["sft"]["learning_rate"] == 1e-3)
        assert json.loads((home / "environment.json").read_text())["data"]["name"] == "little"
        assert len(pd.read_parquet(home / "examples.parquet")) == (20 if run.task == "paraphrase" else 10)
        if run.recipe == "sft-dpo":
            history = pd.read_csv(home / "history.csv")
            start = history[(history.kind == "dpo") & history.loss.notna()].loss.iloc[0]
            assert start == pytest.approx(0.6931, abs=1e-3)

    print_tables(results, folder)
    said = " ".join(capsys.readouterr().out.split())  # lines are wrapped
    assert "paraphrase · " in said and "data: little · 16 training examples, 20 judged · 1 seed" in said
    assert list(cells_table(results, "sonnet").index) == ["base", "sft full", "sft lora", "dpo full", "dpo lora", "sft-dpo full", "sft-dpo lora"]

    # the same command again trains nothing and changes nothing
    monkeypatch.setattr(sftdpo.engine.work, "finish_stage", lambda *rest, **more: pytest.fail("a stage was trained again"))
    pd.testing.assert_frame_equal(compare(study, folder, progress=False), results)


def test_same_seed_same_bits_other_seed_not(backbone, done, tmp_path):
    study = small(backbone, tasks=("paraphrase",), recipes=("sft-dpo",))
    again = compare(study, tmp_path / "again", progress=False)
    same_as_in(done, again)
    other = compare(study.replace(seeds=(1,), tunings=("full",)), tmp_path / "other", progress=False)
    nll = lambda results: results[(results.recipe == "sft-dpo") & (results.tuning == "full") & (results.metric == "nll")].value.tolist()
    assert len(nll(again)) == 1 and nll(again) != nll(other)


def test_what_is_drawn_is_drawn_by_the_seed_and_baselines_see_the_rows_of_a_run(backbone, tmp_path, monkeypatch):
    "Drawn are the subset, the adapter's initial weights, the rejected answers of both kinds, and the samples that are judged."
    runs, seeds, seen = sftdpo.engine.runs, {}, []
    def watch(name):
        does = getattr(runs, name)
        def watched(*given, **named):
            asked = inspect.signature(does).bind(*given, **named).arguments
            seeds.setdefault(name, set()).add(asked["seed"])
            seen.append(frozenset(one.id for one in asked["training"])) if name == "baselines" else None
            return does(*given, **named)
        monkeypatch.setattr(runs, name, watched)
    drawn = ("apply_tuning", "evaluate", "make_pairs", "sample")
    for name in (*drawn, "baselines"): watch(name)
    compare(small(backbone, recipes=("dpo",), tunings=("lora",), seeds=(0, 1)), tmp_path / "out", progress=False)
    assert {name: seeds[name] for name in drawn} == dict.fromkeys(drawn, {0, 1})
    subsets = [frozenset(one.id for one in little_inputs().of(Run(backbone=backbone, train_size=16, seed=seed)).training) for seed in (0, 1)]
    assert subsets[0] != subsets[1] and set(subsets) <= set(seen)


def test_goes_on_after_a_stop(backbone, done, tmp_path, monkeypatch):
    study = small(backbone, tasks=("paraphrase",), tunings=("full",))
    judge, calls = sftdpo.engine.runs.judge_run, []
    def stopped(*args, **more):
        calls.append(1)
        if len(calls) == 3: raise KeyboardInterrupt
        return judge(*args, **more)
    monkeypatch.setattr(sftdpo.engine.runs, "judge_run", stopped)
    with pytest.raises(KeyboardInterrupt): compare(study, tmp_path / "stopped", progress=False)
    monkeypatch.setattr(sftdpo.engine.runs, "judge_run", judge)
    same_as_in(done, compare(study, tmp_path / "stopped", progress=False))


def test_goes_on_inside_a_stage(backbone, done, tmp_path, monkeypatch):
    "Stopped in the middle of SFT and again of DPO, with checkpoints: the results of an undisturbed study."
    from sftdpo.trainer import Watch
    study = small(backbone, tasks=("sonnet",), recipes=("sft-dpo",), tunings=("lora",)).replace(**{"sft.checkpoint_steps": 1, "dpo.checkpoint_steps": 1})
    begin, stops = Watch.on_step_begin, []
    def stopped(self, args, state, *rest, **more):
        begin(self, args, state, *rest, **more)
        if state.global_step == 1 and self.trainer.stage.kind not in stops:
            stops.append(self.trainer.stage.kind)
            raise KeyboardInterrupt
    monkeypatch.setattr(Watch, "on_step_begin", stopped)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt): compare(study, tmp_path / "stopped", progress=False)
    same_as_in(done, compare(study, tmp_path / "stopped", progress=False))
    assert stops == ["sft", "dpo"]


def test_a_sweep_writes_each_run_once(backbone, tmp_path):
    "A value that a run does not use makes no run of its own; the table keeps the others apart."
    study = small(backbone, tasks=("paraphrase",), recipes=("sft", "dpo"), tunings=("full",), sweep={"dpo.beta": [0.05, 0.2]})
    results = compare(study, tmp_path / "out", progress=False)
    assert results.run.nunique() == 4 and not results.duplicated(["run", "metric"]).any()
    cells = list(cells_table(results, "paraphrase").index)
    assert cells[:2] == ["base", "sft full"] and len(set(cells)) == 4


def test_what_will_fail_is_said_before_training(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(sftdpo.engine.work, "finish_node", lambda *rest: pytest.fail("something was trained"))
    with pytest.raises(ValueError, match="has 60 examples there"): compare(small(backbone, train_size=10_000), tmp_path / "size")
    with pytest.raises(ValueError, match="nope"): compare(small(backbone, lora={"targets": ["nope"]}), tmp_path / "targets")


def test_a_folder_keeps_what_an_earlier_study_of_its_name_found(backbone, tmp_path):
    compare(small(backbone, tasks=("paraphrase",), recipes=("sft",), tunings=("full",)), tmp_path / "out", progress=False)
    results = compare(small(backbone, tasks=("paraphrase",), recipes=("dpo",), tunings=("full",)), tmp_path / "out", progress=False)
    assert set(results.recipe) == {"base", "sft", "dpo"} and not results.duplicated(["run", "metric"]).any()


def test_sharing_equals_not_sharing(backbone, done, tmp_path):
    "A second stage that starts from a stored policy ends as one that trained its first stage itself."
    same_as_in(done, compare(small(backbone, tasks=("sonnet",), recipes=("sft-dpo",)), tmp_path / "alone", progress=False))


def test_a_backbones_dropout_is_not_in_the_comparison(tokenizer, tmp_path):
    "GPT-2 brings 0.1. At 72cf482 SFT stages kept it, and DPO had none: other results than the same weights without it."
    tables, rows = [], tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"{word} {i},{label}\n" for i in range(20) for word, label in (("late", "no"), ("fine", "yes"))))
    for dropout in (0.0, 0.1):
        backbone = save_policy(tiny_model("gpt2", tokenizer, dropout=dropout), tokenizer, tmp_path / "backbones" / str(dropout))
        main(["compare", "--tasks", "labels", "--data", str(rows), "--backbone", str(backbone), "--reading.prompt", "{text}\n", "--recipes", "sft", "sft-dpo", "--tunings", "full",
              *(word for kind in ("sft", "dpo") for word in (f"--{kind}.epochs", "1", f"--{kind}.batch-size", "8", f"--{kind}.learning-rate", "1e-3", f"--{kind}.precision", "fp32")), "--out", str(tmp_path / str(dropout))])
        tables.append(steady(read_results(tmp_path / str(dropout))))
    pd.testing.assert_series_equal(*(table.value for table in tables), check_exact=True)


def test_trl_engine_runs_the_study(backbone, tmp_path):
    "At cad44a56 DPO with LoRA was trained to its end and could not be saved, as TRL had left an adapter of its own in the model."
    study = small(backbone, tasks=("sonnet",), recipes=("sft-dpo",))
    results = compare(study.replace(**{"sft.engine": "trl", "dpo.engine": "trl"}), tmp_path / "trl", progress=False)
    assert results.attrs["failed"] == [] and set(results[(results.recipe == "sft-dpo") & (results.metric == "chrf")].tuning) == {"full", "lora"}
    assert results[(results.recipe == "sft-dpo") & (results.metric == "chrf")].value.notna().all()


def test_identity_of_stages(backbone, tokenizer, tmp_path):
    run = Run(task="sonnet", backbone=backbone, train_size=16, recipe="sft-dpo")
    other = str(save_policy(tiny_model("gpt2", tokenizer, seed=1), tokenizer, tmp_path / "other backbone"))
    copy = str(shutil.copytree(backbone, tmp_path / "the same weights elsewhere"))
    key = stage_keys(run)
    assert stage_keys(run.replace(**{"dpo.rejected": "swap"}))[0] == key[0]
    for change in ({"dpo.rejected": "swap"}, {"dpo.beta": 0.2}, {"sampling.temperature": 0.5}):
        assert stage_keys(run.replace(**change))[1] != key[1], change
    for change in ({"seed": 1}, {"train_size": 8}, {"sft.learning_rate": 1e-3}, {"tuning": "lora"}, {"shuffle_labels": False, "backbone": other}):
        assert stage_keys(run.replace(**change))[0] != key[0], change
    for change in ({"lora.rank": 2}, {"dpo.micro_batch_size": 1}, {"sft.evaluations": 0}, {"test_size": 3}, {"backbone": copy}):
        assert stage_keys(run.replace(**change)) == key, change


def test_folders_are_not_mixed_up(backbone, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="holds files that are no study"): compare(small(backbone), tmp_path / "mine")
    save_margins(tmp_path / "set beforehand", Margins(accuracy=0.02))
    check_study_folder(tmp_path / "set beforehand", small(backbone))  # margins may be there before the study
    compare(small(backbone, recipes=("base",)), tmp_path / "out", progress=False)
    with pytest.raises(FileExistsError, match="holds the study 'a small study'"): compare(small(backbone).replace(name="another"), tmp_path / "out")
    with pytest.raises(SettingsError, match="weights = 'all' cannot be used"): compare(small(backbone, recipes=("base",), weights="all"), tmp_path / "out")


def test_the_control_has_shuffled_labels(backbone, tmp_path):
    run, inputs = Run(backbone=backbone, train_size=40), little_inputs()
    plain, shuffled = inputs.of(run).training, inputs.of(run.replace(shuffle_labels=True)).training
    assert [e.id for e in plain] == [e.id for e in shuffled] and [e.label for e in plain] != [e.label for e in shuffled]
    assert sorted(e.label for e in plain) == sorted(e.label for e in shuffled)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_trained_model_is_kept_in_the_standard_formats(backbone, tuning, tmp_path):
    from peft import AutoPeftModelForCausalLM
    stage = dict(epochs=1, batch_size=8, learning_rate=1e-3)
    run = Run(backbone=backbone, task="paraphrase", train_size=16, tuning=tuning, sft=Stage("sft", **stage))
    metrics = train_run(run, tmp_path / "out", inputs=little_inputs())
    loader = AutoModelForCausalLM if tuning == "full" else AutoPeftModelForCausalLM
    model = loader.from_pretrained(tmp_path / "out" / "model").eval()
    assert 0 <= metrics["accuracy"] <= 1
    assert evaluate_saved(str(tmp_path / "out"), run, inputs=little_inputs()).metrics["nll"] == pytest.approx(metrics["nll"])
    with torch.no_grad(): assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()
    other = run.replace(backbone="bard", test_size=4)  # a judge who says nothing of the backbone: the model's own tokenizer reads
    assert len(evaluate_saved(str(tmp_path / "out"), other, inputs=little_inputs()).examples) == 4


def test_answers_are_those_of_the_judged_models_tokenizer(backbone, tokenizer, tmp_path):
    assert len(tokenizer_of("bard")[0]("positive")["input_ids"]) > 1
    tokenizer.add_tokens(["positive", "negative"])
    model = tiny_model("gpt2", tokenizer)
    save_policy(model, tokenizer, tmp_path / "judged")
    (tmp_path / "moods.csv").write_text("text,label\n" + "".join(f"Day {i} was {mood}.,{mood}\n" for i in range(20) for mood in ("positive", "negative")))
    assert 0 <= evaluate_saved(str(tmp_path / "judged"), Run(task="labels", data=str(tmp_path / "moods.csv"))).metrics["accuracy"] <= 1


def test_one_run_is_tried_again_after_a_failure(backbone, tmp_path, monkeypatch):
    run = Run(backbone=backbone, train_size=16, sft=Stage("sft", epochs=1, batch_size=8, learning_rate=1e-3))
    with monkeypatch.context() as broken:
        broken.setattr(sftdpo.engine.work, "finish_stage", lambda *rest, **more: 1 / 0)
        with pytest.raises(WorkFailed, match="ZeroDivisionError.*\n.*the same command tries again"): train_run(run, tmp_path / "out", progress=False, inputs=little_inputs())
    assert train_run(run, tmp_path / "out", progress=False, inputs=little_inputs())["examples"] == 20
    with pytest.raises(SettingsError, match="judged on the test rows"): train_run(run.replace(judge="validation"), tmp_path / "other")


def test_controls_have_the_steps_of_dpo():
    run = Run(sft=Stage("sft", epochs=1, batch_size=16), dpo=Stage("dpo", epochs=3, batch_size=8))
    second = run.replace(recipe="sft-sft").stages[1]
    assert (second.kind, second.epochs, second.batch_size) == ("sft", 3, 8)
    assert [stage.epochs for stage in run.replace(recipe="sft-long").stages] == [4]


def test_another_backbone_does_not_enter_a_folder(backbone, tokenizer, tmp_path):
    "Two models in one cell would be averaged; the same files under another path are the same model."
    study, other = small(backbone, tasks=("sonnet",), recipes=("sft",), tunings=("full",)), tmp_path / "other"
    compare(study, tmp_path / "out", progress=False)
    save_policy(tiny_model("llama", tokenizer), tokenizer, other)
    with pytest.raises(ValueError, match=f"The backbone is '{other}'.*was begun with '{backbone}'.*give another folder"):
        compare(study.replace(backbone=str(other)), tmp_path / "out", progress=False)
    assert yaml.safe_load((tmp_path / "out" / "study.yaml").read_text())["backbone"] == str(backbone), "what was refused has changed nothing"
    shutil.copytree(backbone, tmp_path / "copy")
    assert compare(study.replace(backbone=str(tmp_path / "copy")), tmp_path / "out", progress=False).run.nunique() == 2


def test_a_backbone_that_changed_is_noticed(backbone, tokenizer, tmp_path):
    shutil.copytree(backbone, tmp_path / "mine")
    study = small(str(tmp_path / "mine"), tasks=("sonnet",), recipes=("sft",), tunings=("full",))
    compare(study, tmp_path / "out", progress=False)
    save_policy(tiny_model("gpt2", tokenizer, seed=5), tokenizer, tmp_path / "mine")
    with pytest.raises(ValueError, match="The backbone is .* was begun with"): compare(study, tmp_path / "out", progress=False)


def test_a_study_says_all_that_was_asked_of_it(backbone, tmp_path):
    first = small(backbone, tasks=("paraphrase",), recipes=("sft",), tunings=("full",))
    compare(first, tmp_path / "out", progress=False)
    assert grown(tmp_path / "out", first.replace(recipes=("dpo",))).recipes == ("sft", "dpo")
    compare(first.replace(recipes=("dpo",), seeds=(1,)), tmp_path / "out", progress=False)
    kept = yaml.safe_load((tmp_path / "out" / "study.yaml").read_text())
    assert kept["recipes"] == ["sft", "dpo"] and kept["seeds"] == [0, 1]


@pytest.mark.usefixtures("undrawn")
def test_what_is_superseded_leaves_the_table(backbone, tmp_path, capsys):
    "Runs of values that a sweep no longer has stay on the disk and out of every cell."
    study, out = small(backbone, tasks=("paraphrase",), tunings=("full",), recipes=("sft", "dpo")), tmp_path / "out"
    compare(study.replace(sweep={"dpo.beta": [0.05, 0.2]}), out, progress=False)
    assert compare(study.replace(sweep={"dpo.beta": [0.05]}), out, progress=False).run.nunique() == 4, "values of one setting add up"
    assert StudyFolder(out).study().sweep == {"dpo.beta": [0.05, 0.2]}
    now = compare(study, out)
    assert "note: 2 runs that were planned with other swept settings leave the table" in capsys.readouterr().out
    assert now.run.nunique() == 3 < len(StudyFolder(out).finished_runs()) and set(now.run) == set(read_results(out).run)
    assert write_report(out).exists() and judge_claims(out)


def test_each_of_several_data_files_has_its_report(backbone, tmp_path, capsys):
    "At 6d2b5f9 the report on the second file was written over that on the first, and nothing was said of it."
    for name, rows in (("first", 40), ("second", 60)):
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "".join(f"word {i % 5} {i},{'ab'[i % 2]}\n" for i in range(rows)))
    sweep = {"data": [str(tmp_path / f"{name}.csv") for name in ("first", "second")]}
    asked = small(backbone, tasks=("labels",), data=sweep["data"][0], recipes=("sft",), tunings=("full",), sweep=sweep)
    sftdpo.study.compare(asked, tmp_path / "out")
    said = capsys.readouterr().out
    assert "first: labels, 40 rows" in said and "second: labels, 60 rows" in said
    assert len(list((tmp_path / "out" / "data").glob("*/*.json"))) == 2


def test_another_machine_goes_on_in_the_precision_of_the_first(backbone, tmp_path, monkeypatch):
    "A precision that is left to the machine is settled when the study begins; one that is asked for must be that one."
    stage = Stage("sft", epochs=1, batch_size=8, learning_rate=1e-3)
    study = small(backbone, tasks=("paraphrase",), recipes=("sft",), tunings=("full",), sft=stage)
    before = compare(study, tmp_path / "out", progress=False)
    here = StudyFolder(tmp_path / "out").study().sft.precision
    there = {"fp32": "bf16", "bf16": "fp32"}[here]
    monkeypatch.setattr(sftdpo.batches, "best_precision", lambda device="cpu": there)
    monkeypatch.setattr(sftdpo.engine.work, "finish_stage", lambda *words, **more: pytest.fail("trained again"))
    pd.testing.assert_frame_equal(compare(study, tmp_path / "out", progress=False), before)
    assert {state.name for state in plan(study, tmp_path / "out", measure=False).states} == {"done"}
    with pytest.raises(SettingsError, match="sft.precision"): compare(study.replace(sft=stage.replace(precision=there)), tmp_path / "out", progress=False)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("sweep, cells", [
    ({"dpo.epochs": [1, 2]}, {"sft full", "sft-sft full, dpo.epochs 1", "sft-sft full, dpo.epochs 2", "sft-dpo full, dpo.epochs 1", "sft-dpo full, dpo.epochs 2"}),
    ({"test_size": [5, 10]}, {f"{recipe} full, test_size {size}" for recipe in ("sft", "sft-sft", "sft-dpo") for size in (5, 10)})])
def test_a_sweep_that_reaches_further_than_one_cell(backbone, tmp_path, sweep, cells, capsys):
    "Controls take DPO's depth, and every judged size has its own base backbone: tables, verdicts and report hold."
    study = small(backbone, tasks=("paraphrase",), recipes=("sft", "sft-dpo", "sft-sft"), tunings=("full",), sweep=sweep)
    results = compare(study, tmp_path / "out", progress=False)
    table = cells_table(results, "paraphrase", variants=variants_of(tmp_path / "out"))
    assert {cell for cell in table.index if "base" not in cell} == cells
    print_tables(results, tmp_path / "out")
    places = {one.where for one in judge_claims(tmp_path / "out", claims=["C1"])}
    assert places == {f"full, {name} = {value}" for name, values in sweep.items() for value in values} and write_report(tmp_path / "out").exists()


def test_rates_are_not_picked_for_a_sweep(backbone):
    with pytest.raises(SettingsError, match="unfair to the other values of a sweep"): small(backbone, search=dict(trials=4), sweep={"dpo.beta": [0.1, 0.3]})


def test_rates_for_several_sizes_are_searched_at_one_of_them(backbone):
    with pytest.raises(SettingsError, match="search.train_size = None cannot be used: the study has several sizes"): small(backbone, search=dict(trials=4), sweep={"train_size": [8, 16]})
    study = small(backbone, search=dict(trials=4, train_size=8), sweep={"train_size": [8, 16]})
    assert {run.train_size for run in study.runs() if run.recipe != "base"} == {8, 16}


def test_a_command_that_was_corrected_finds_its_folder_free(tmp_path, backbone, capsys):
    "At 4ab63658 the remedy of an error (leave unusable rows out, ask for fewer rows) was refused, as the folder had been begun without it."
    rows = "".join(f"a {i},x\nb {i},y\n" for i in range(40))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows + ",x\n")
    words = ["compare", "--tasks", "labels", "--data", str(tmp_path / "rows.csv"), "--backbone", str(backbone), "--recipes", "sft", "--tunings", "full", "--sft.epochs", "1", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit): main(words)
    assert "--reading.unusable drop" in (told := capsys.readouterr().err)
    named = tmp_path / "out" / "data" / "labels" / "unusable.csv"
    assert named.name in told and len(pd.read_csv(named)) == 1, "at 8dc483e7 the list was deleted as soon as it was named"
    words += ["--reading.unusable", "drop"]
    with pytest.raises(SystemExit): main([*words, "--train-size", "5000"])
    assert "ask for at most" in capsys.readouterr().err
    main([*words, "--train-size", "30"])
    with pytest.raises(SystemExit): main([*words, "--train-size", "20"])
    assert "was begun with 30" in capsys.readouterr().err, "what was trained is never mixed with other settings"
    with pytest.raises(SystemExit): main(words)
    assert "train-size was 30 and is not given" in capsys.readouterr().err, "at 8dc483e7 it was called --train-size None"
    with pytest.raises(SystemExit): main([*words, "--train-size", "20", "--reading.label", "label"])
    assert "train-size was 30 and is 20; reading.label was not given and is label" in capsys.readouterr().err, "all that differs is told"


def test_other_models_to_keep_are_refused_for_the_right_reason(backbone, tmp_path):
    "At c71f3681 results that are the same were said not to stand in one table."
    study = small(backbone, weights="best")
    StudyFolder(tmp_path).write_study(study)
    with pytest.raises(SettingsError, match="was begun with 'best', and which models of its finished runs are kept is settled"):
        check_study_folder(tmp_path, study.replace(weights="all"))


def test_seeds_of_one_cell_have_as_many_steps(backbone, tmp_path):
    "At cad44a56 a folder that was begun with 2 steps took a second seed of 3, and both stood in one cell."
    study = small(backbone, tasks=("sonnet",), recipes=("sft",), tunings=("lora",)).replace(**{"sft.epochs": None, "sft.steps": 2})
    compare(study, tmp_path / "out", progress=False)
    with pytest.raises(SettingsError, match=r"sft.steps.*was begun with 2"): compare(study.replace(**{"seeds": (1,), "sft.steps": 3}), tmp_path / "out", progress=False)
    check_study_folder(tmp_path / "out", study)
    # where epochs are given, steps say nothing
    (tmp_path / "epochs").mkdir()
    StudyFolder(tmp_path / "epochs").write_study(study.replace(**{"sft.epochs": 1}))
    check_study_folder(tmp_path / "epochs", study.replace(**{"sft.epochs": 1, "sft.steps": 3}))


def write_labelled(name, labels, rows):
    "A file of labelled rows."
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("text,label\n" + "".join(f"{name} {i} is {labels[i % len(labels)]},{labels[i % len(labels)]}\n" for i in range(rows)))


def test_a_saved_model_is_judged_by_the_file_that_judged_in_training(backbone, tmp_path, monkeypatch, capsys):
    "At eb47e42f `sftdpo evaluate` judged it on all rows of the other file, those that it was trained on among them."
    monkeypatch.chdir(tmp_path)
    write_labelled("all.csv", ("bill", "crash", "refund"), 60)
    write_labelled("last.csv", ("crash", "refund"), 14)
    main(["train", "--task", "labels", "--data", "all.csv", "--reading.test", "last.csv", "--backbone", backbone, "--sft.epochs", "1", "--out", "one"])
    results = read_results("one")
    trained = results[(results.recipe == "sft") & (results.metric == "accuracy")].value.item()
    capsys.readouterr()
    main(["evaluate", "one"])
    told = capsys.readouterr().out
    assert "judged: 14 examples of all" in told and f"{100 * trained:.1f} %" in told


def test_a_saved_model_keeps_its_answers_beside_other_labels(backbone, tmp_path, monkeypatch):
    "At eb47e42f A stood for the first label of a folder that judged, whatever it had stood for in training."
    monkeypatch.chdir(tmp_path)
    write_labelled("all.csv", ("bill", "crash", "refund"), 60)
    for part in ("train", "test"): write_labelled(f"new/{part}.csv", ("crash", "refund"), 24)
    main(["train", "--task", "labels", "--data", "all.csv", "--backbone", backbone, "--sft.epochs", "1", "--out", "one"])
    def judged(data, **reading): return evaluate_saved("one", Run(task="labels", data=data, reading=Reading(**reading)))
    alone = judged("new/test.csv")
    for found in (judged("new"), judged("new/train.csv", test="new/test.csv")):
        assert found.metrics["nll"] == pytest.approx(alone.metrics["nll"]) and list(found.examples.label) == list(alone.examples.label)
