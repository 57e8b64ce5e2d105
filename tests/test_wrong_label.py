"Which of several wrong labels DPO rejects: one by chance, or the base model's likeliest."
import pytest

import sftdpo.engine.runs
from sftdpo.config import Run, SettingsError, Stage, Study
from sftdpo.data import load_task
from sftdpo.engine.inputs import Inputs
from sftdpo.evaluate import predict
from sftdpo.model import load_backbone
from sftdpo.report import describe_stage
from sftdpo.study import compare
from sftdpo.verdicts.conditions import conditions_of
from sftdpo.verdicts.matching import PARALLEL


@pytest.fixture
def file(tmp_path):
    "Made-up texts of three classes, 90 rows."
    lines = [f"{('red', 'blue', 'green')[i % 3]} thing number {i},{'abc'[i % 3]}" for i in range(90)]
    (tmp_path / "three.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    return str(tmp_path / "three.csv")


def rejected_of(study, folder, monkeypatch):
    "For each DPO stage, the rejected answer of each row that it trains on."
    seen, train = [], sftdpo.engine.runs.train
    def noted(run, stage, model, tokenizer, rows, *rest, **more):
        if stage.kind == "dpo": seen.append({row.id: tokenizer.decode(row.completions[1]) for row in rows})
        return train(run, stage, model, tokenizer, rows, *rest, **more)
    with monkeypatch.context() as patched:
        patched.setattr(sftdpo.engine.runs, "train", noted)
        compare(study, folder, progress=False, inputs=Inputs())
    return seen


def three(file, backbone, **dpo):
    stage = dict(epochs=1, batch_size=16, learning_rate=1e-2, precision="fp32", evaluations=0)
    return Study("three", tasks=("labels",), data=file, backbone=backbone, recipes=("dpo", "sft-dpo"), tunings=("full",), sft=Stage("sft", **stage), dpo=Stage("dpo", **stage, **dpo))


def test_the_favourite_is_the_base_models_in_every_recipe(file, backbone, tmp_path, monkeypatch):
    alone, after = rejected_of(three(file, backbone, wrong_label="favourite"), tmp_path / "favourite", monkeypatch)
    assert alone == after, "after SFT the pairs are those of DPO alone"
    data, (model, tokenizer) = load_task("labels", file), load_backbone(backbone)
    table = predict(model, tokenizer, data, data.train, "fp32").set_index("id")
    for example in data.train:
        line = table.loc[example.id]
        likeliest = max((word for word in "abc" if word != example.completion), key=lambda word: line[f"probability_{word}"])
        assert alone[example.id] == likeliest
    by_chance, _ = rejected_of(three(file, backbone), tmp_path / "chance", monkeypatch)
    assert by_chance != alone and all(by_chance[e.id] != e.completion for e in data.train)
    assert len({by_chance[e.id] for e in data.train if e.completion == "a"}) == 2


def test_it_is_part_of_a_dpo_stage_alone(file, backbone):
    inputs = Inputs()
    plain, other = (inputs.of(Run(task="labels", data=file, backbone=backbone, recipe="sft-dpo", dpo=Stage("dpo", wrong_label=way))) for way in ("chance", "favourite"))
    assert plain.keys[0] == other.keys[0] and plain.keys[1] != other.keys[1]


def test_it_is_refused_where_there_is_one_wrong_label(file, backbone, tmp_path):
    with pytest.raises(SettingsError, match="run.dpo.wrong_label"): Run(dpo=Stage("dpo", wrong_label="favourite"))
    with pytest.raises(SettingsError, match="made by flip"): Run(task="labels", data=file, dpo=Stage("dpo", wrong_label="favourite", rejected="swap"))
    (tmp_path / "two.csv").write_text("text,label\n" + "".join(f"row {i},{'ab'[i % 2]}\n" for i in range(60)))
    with pytest.raises(SettingsError, match="two has 2 labels.* leave it out"): compare(three(str(tmp_path / "two.csv"), backbone, wrong_label="favourite"), tmp_path / "study", progress=False)


def test_it_is_stated():
    stage = dict(learning_rate=1e-4, rejected="flip", wrong_label="favourite")
    assert "wrong label favourite" in describe_stage(stage, "dpo") and "wrong label" not in describe_stage(stage | dict(wrong_label="chance"), "dpo")
    pairs = conditions_of(dict(recipe="dpo", dpo=stage), {})["rejected"]
    assert pairs == "flip (favourite)" and "likeliest wrong" in PARALLEL[pairs]
    assert conditions_of(dict(recipe="dpo", dpo=dict(rejected="flip")), {})["rejected"] == "flip", "results of earlier versions"
