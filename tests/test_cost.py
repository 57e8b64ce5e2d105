"What a plan counts: training, drawing, judging with what is measured beside it, disk."
import pytest
from little import compare, little_inputs, plan, small, stage_tree

import sftdpo.engine.timing as timing_module
from sftdpo.config import Run, Search
from sftdpo.engine.folder import StudyFolder, read_record
from sftdpo.engine.runs import cost_group, drawing_group
from sftdpo.engine.safe_files import read_json
from sftdpo.engine.timing import Timing, calibrate, distribution_bytes, known_times, peak_disk, trial_cost, work_of_node


@pytest.fixture
def clock(monkeypatch):
    "A clock that adds a second at each look, and a judging of the task that takes two seconds an example."
    seconds = iter(range(10**6))
    monkeypatch.setattr(timing_module, "perf_counter", lambda: float(next(seconds)))
    judge = timing_module.judge_run
    def judged(inputs, *rest, **more):
        metrics, table = judge(inputs, *rest, **more)
        return metrics | {"evaluation_seconds": 2.0 * len(inputs.judged)}, table
    monkeypatch.setattr(timing_module, "judge_run", judged)


def further(tmp_path):
    "A file of 30 question pairs."
    (tmp_path / "more.csv").write_text("question1,question2,label\n" + "".join(f"What {i}?,How {i}?,{i % 2}\n" for i in range(30)))
    return f"more={tmp_path / 'more.csv'}"


def times_of(study):
    timing, inputs = Timing(), little_inputs()
    calibrate([node for node in stage_tree(study, inputs) if not node.stage], timing, lambda words: None)
    return timing


def test_the_calibration_counts_what_is_judged_beside_the_task(backbone, tmp_path, clock):
    study = small(backbone, tasks=("paraphrase",))
    run = study.runs()[0]
    test, trial = (cost_group(run.replace(judge=judge), None) for judge in ("test", "validation"))
    plain = times_of(study)
    assert set(plain.calibrated) == {test, trial} and plain.calibrated[trial] == 2.0
    assert plain.calibrated[test] > 2.0, "forgetting, distances and the temperature take time too"
    more = study.replace(also_judge=(further(tmp_path),))
    other = cost_group(more.runs()[0], None)
    assert other != test, "runs that are judged on a further set are a cost group of their own"
    judged = len(little_inputs().of(run).judged)
    assert times_of(more).calibrated[other] == pytest.approx(plain.calibrated[test] + 2.0 * 30 / judged)


def test_trials_are_judged_on_their_task_alone(backbone, clock):
    study = small(backbone, tasks=("paraphrase",), recipes=("sft",), tunings=("full",), search=Search(trials=3, seeds=(900,)))
    timing = times_of(study)
    run = study.runs()[1]
    timing.calibrated[cost_group(run, run.stages[0])] = 0.0
    rows = len(little_inputs().of(run.replace(judge="validation")).judged)
    assert trial_cost(study, timing, little_inputs()) == (3, 3 * 2.0 * rows)


def test_trials_of_first_stages_count_and_those_that_are_done_do_not(backbone, tmp_path):
    "At 6d2b5f9 half of the trials of `sft-dpo` were not planned, and none once there was any search."
    study = small(backbone, tasks=("paraphrase",), recipes=("sft-dpo",), tunings=("full",), search=Search(trials=3, seeds=(900,), further=0))
    assert trial_cost(study, Timing(), little_inputs())[0] == 6
    first = study.replace(recipes=("sft",))
    compare(first, tmp_path / "study", progress=False)
    assert plan(first, tmp_path / "study", measure=False).trials == 0 and plan(study, tmp_path / "study", measure=False).trials == 3


def test_times_that_are_read_again_count_once(backbone, tmp_path, monkeypatch):
    study = small(backbone, tasks=("paraphrase",), recipes=("sft",), tunings=("full",))
    compare(study, tmp_path / "study", progress=False)
    monkeypatch.chdir(tmp_path)
    timing = known_times(StudyFolder("study")).read(StudyFolder(tmp_path / "study"))
    assert timing.measured == Timing().read(StudyFolder("study")).measured, "neither by another path nor twice"


def test_what_a_finished_run_took_includes_all_judging(backbone, tmp_path):
    study = small(backbone, tasks=("paraphrase",), recipes=("sft-dpo",), tunings=("full",), also_judge=(further(tmp_path),))
    compare(study, tmp_path / "study", progress=False)
    folder = StudyFolder(tmp_path / "study")
    for name in folder.finished_runs():
        metrics = read_json(folder.run(name).metrics)
        assert metrics["evaluation_seconds"] > metrics["judging_extra_seconds"] > 0
    nodes = [node for node in stage_tree(study) if node.stage]
    first, second = (read_record(folder.stage(node.key).record) for node in nodes)
    assert first["distribution_seconds"] > second["distribution_seconds"] >= 0, "the first stage's distributions are kept for the second"
    known, group = known_times(folder), first["cost_group"]
    assert known.measured[group] == [(first["seconds"] + first["distribution_seconds"]) / (first["rows"] * first["epochs"])]


def test_the_disk_at_the_peak_counts_stored_distributions(backbone, tmp_path):
    inputs = little_inputs()
    study = small(backbone, tasks=("sonnet",), recipes=("sft-dpo",), tunings=("lora",))
    nodes = stage_tree(study, inputs)
    stored = distribution_bytes(nodes[0].inputs, inputs.vocabulary(backbone))
    adapter = inputs.bytes(backbone, "lora", study.lora)
    assert stored > 1000 and peak_disk(nodes, inputs) == 2 * stored + 8 * adapter, "those of the base model, and of the stage that DPO starts from"
    compare(study, tmp_path / "study", progress=False)
    folder = StudyFolder(tmp_path / "study")
    written = folder.run(nodes[0].key).distributions.stat().st_size
    assert stored < written < stored + 1000
    assert distribution_bytes(inputs.of(Run(**{"task": "sonnet", "backbone": backbone, "judge": "validation"})), 400) == 0
    assert "distributions" in str(plan(study, tmp_path / "other", measure=False))


def test_rejected_texts_are_drawn_once_for_however_many_epochs(backbone, tmp_path):
    deep = dict(kind="dpo", rejected="sample", batch_size=16)
    study = small(backbone, tasks=("sonnet",), recipes=("sft-dpo",), tunings=("full",), dpo=dict(deep, epochs=30))
    node = stage_tree(study, little_inputs())[-1]
    drawing, rows = drawing_group(node.run, node.stage), node.inputs.stage_size(node.key)
    assert drawing.endswith("after sft")
    assert work_of_node(node)[drawing] == rows and work_of_node(node)[cost_group(node.run, node.stage)] == 30 * rows
    compare(study.replace(dpo=dict(deep, epochs=1)), tmp_path / "study", progress=False)
    record = read_record(StudyFolder(tmp_path / "study").stage(stage_tree(study.replace(dpo=dict(deep, epochs=1)))[-1].key).record)
    known = known_times(StudyFolder(tmp_path / "study"))
    assert known.measured[drawing] == [record["pairs_seconds"] / record["rows"]]
    assert known.measured[record["cost_group"]] == [pytest.approx((record["seconds"] - record["pairs_seconds"] + record["distribution_seconds"])
                                                                  / record["rows"])]
