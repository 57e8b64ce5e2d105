"One budget of examples for two stages: disjoint rows, a shared first stage, and the same end after a stop."
import pytest
from little import compare, little_inputs, plan, small, stage_tree, steady

import sftdpo.engine.runs
from sftdpo.config import Run, SettingsError, Study
from sftdpo.engine.folder import StudyFolder, read_record
from sftdpo.engine.inputs import training_parts
from sftdpo.report import planned
from sftdpo.tables import metric_notes
from sftdpo.verdicts.conditions import conditions_of


def paired(backbone, **changes):
    "SFT alone, and SFT then DPO, on 16 question pairs."
    return small(backbone, **dict(dict(tasks=("paraphrase",), recipes=("sft", "sft-dpo", "sft-sft"), tunings=("full",), split=0.25), **changes))


def trained_on(monkeypatch):
    "A list that fills with the ids of the rows of each stage that is trained."
    seen, train = [], sftdpo.engine.runs.train
    def noted(run, stage, model, tokenizer, rows, *rest, **more):
        seen.append((stage.kind, [row.id for row in rows]))
        return train(run, stage, model, tokenizer, rows, *rest, **more)
    monkeypatch.setattr(sftdpo.engine.runs, "train", noted)
    return seen


def test_two_stages_train_on_disjoint_rows_that_are_the_budget(backbone, tmp_path, monkeypatch):
    seen = trained_on(monkeypatch)
    results = compare(paired(backbone), tmp_path / "study", progress=False)
    sizes = {(kind, len(ids)): set(ids) for kind, ids in seen}
    assert set(sizes) == {("sft", 16), ("sft", 4), ("dpo", 12), ("sft", 12)}, "sft-dpo and sft-sft share their first stage"
    assert len(seen) == 4
    assert not sizes["sft", 4] & sizes["dpo", 12] and sizes["sft", 4] | sizes["dpo", 12] == sizes["sft", 16]
    assert sizes["sft", 12] == sizes["dpo", 12], "the control's second stage has the rows of DPO"
    assert set(results.loc[results.recipe != "base", "train_size"]) == {16}, "each run's budget stands in the table"
    assert any("25 % of their training examples first" in note for note in metric_notes(tmp_path / "study", results, results.iloc[:0]))


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_first_stage_is_that_of_a_smaller_run(backbone, shuffled):
    inputs = little_inputs()
    one, small_one = (inputs.of(Run(backbone=backbone, shuffle_labels=shuffled, **more)) for more in (dict(recipe="sft-dpo", train_size=16, split=0.25), dict(recipe="sft", train_size=4)))
    assert one.keys[0] == small_one.keys[0] and one.training_of(one.keys[0]) == small_one.training
    whole = inputs.of(one.run.replace(split=None))
    assert whole.keys[0] != one.keys[0] and whole.keys[1] != one.keys[1]
    first, second = training_parts(one.run, one.data)
    assert len({example.id for example in first + second}) == 16 and one.training_of(one.keys[1]) == second
    other = inputs.of(one.run.replace(split=0.5))
    assert other.keys[1] != one.keys[1], "the rows of the second stage are part of its key"


def test_recipes_of_one_stage_do_not_know_of_it(backbone):
    inputs = little_inputs()
    for recipe in ("sft", "dpo", "sft-long", "dpo+sft"):
        run = Run(backbone=backbone, recipe=recipe, train_size=16)
        assert inputs.of(run).name == inputs.of(run.replace(split=0.5)).name
    assert planned(Study(recipes=("sft",), tunings=("full",), sweep={"split": [0.25, 0.5]})) == 2


@pytest.mark.parametrize("moment", ["before the second stage", "within the second stage"])
def test_a_stopped_study_ends_as_an_undisturbed_one(backbone, tmp_path, monkeypatch, moment):
    study = paired(backbone, recipes=("sft-dpo",)).replace(**{"dpo.checkpoint_steps": 1})
    expected = steady(compare(study, tmp_path / "whole", progress=False))
    train = sftdpo.engine.runs.train
    def stopped(run, stage, *rest, **more):
        if stage.kind == "dpo" and moment.startswith("before"): raise KeyboardInterrupt
        return train(run, stage, *rest, **more)
    monkeypatch.setattr(sftdpo.engine.runs, "train", stopped)
    if moment.startswith("within"):
        from sftdpo.trainer import Watch
        begin = Watch.on_step_begin
        def dies(self, args, state, *rest, **more):
            if self.trainer.stage.kind == "dpo" and state.global_step == 1: raise KeyboardInterrupt
            begin(self, args, state, *rest, **more)
        monkeypatch.setattr(Watch, "on_step_begin", dies)
    with pytest.raises(KeyboardInterrupt): compare(study, tmp_path / "stopped", progress=False)
    monkeypatch.undo()
    seen = trained_on(monkeypatch)
    found = steady(compare(study, tmp_path / "stopped", progress=False))
    assert [kind for kind, _ in seen] == ["dpo"] and found.equals(expected)
    records = [read_record(StudyFolder(tmp_path / "stopped").stage(key).record) for key in stage_keys(study)]
    assert [record["rows"] for record in records] == [4, 12]


def stage_keys(study): return [node.key for node in stage_tree(study) if node.stage]


def test_the_plan_counts_each_stages_rows(backbone, tmp_path):
    from sftdpo.engine.timing import work_of_node
    study = paired(backbone, recipes=("sft-dpo",))
    work = [next(iter(work_of_node(node).values())) for node in stage_tree(study) if node.stage]
    assert work == [4, 12]
    assert "4 examples, 1 epoch, 1 step" in str(plan(study, tmp_path / "new", measure=False))


def test_depth_is_that_of_the_budget():
    "One epoch of each part is one epoch of the whole: sft alone is as deep as sft-dpo."
    def depth(**settings): return conditions_of(dict(sft=dict(epochs=1), dpo=dict(epochs=1), **settings), {})["epochs"]
    assert depth(recipe="sft-dpo") == depth(recipe="sft-sft") == 2 and depth(recipe="sft") == depth(recipe="sft", split=0.25) == 1
    assert depth(recipe="sft-dpo", split=0.25) == depth(recipe="sft-sft", split=0.25) == 1 and depth(recipe="sft-long", split=0.25) == 2


def test_a_share_that_leaves_nothing_is_refused(backbone, tmp_path):
    with pytest.raises(SettingsError, match="run.split = 1.0 cannot be used: use a share between 0 and 1"): Run(split=1)
    with pytest.raises(SettingsError, match="there is 1 training example"): compare(paired(backbone, train_size=1), tmp_path / "study", progress=False)
