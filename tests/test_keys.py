"""Names of runs and keys of stages: where one moves, every stored stage and run of that kind is orphaned.

The keys are kept in `golden_keys.json`, beside this file. A new case is added below; then `python tests/test_keys.py` writes the file anew.
It writes cases that are new, and keeps every key that is there: it stops, and names them, where a key has moved. A key may move only where
the same settings now train something else. Then delete its line in the file, run it again, and say in the commit why the key moved.
"""
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from sftdpo.config import LoRA, Run, Sampling, Search, Stage, Study
from sftdpo.engine.inputs import Inputs

FILE = Path(__file__).with_name("golden_keys.json")
FP32 = dict(sft=Stage("sft", precision="fp32"), dpo=Stage("dpo", precision="fp32"))
DEEP = dict(second_sft_rate=1e-5, sft=Stage("sft", precision="fp32", epochs=3), dpo=Stage("dpo", precision="fp32", batch_size=4))

STAGES = {  # keys of stages alone, on data and a backbone of made-up fingerprints
    "sft-dpo": Run(recipe="sft-dpo"),
    "sft-dpo lora": Run(recipe="sft-dpo", tuning="lora"),
    "sonnets": Run(task="sonnet", recipe="sft-dpo", seed=3),
    "sft-sft": Run(recipe="sft-sft"),
    "sft-long lora": Run(recipe="sft-long", tuning="lora"),
    "ipo": Run(task="sonnet", recipe="dpo", dpo=Stage("dpo", beta=0.3, loss="ipo", learning_rate=1e-5, epochs=2, batch_size=4)),
    "smoothed lora": Run(recipe="dpo", tuning="lora", lora=LoRA(rank=4), dpo=Stage("dpo", label_smoothing=0.1)),
    "dropout": Run(sft=Stage("sft", dropout=0.1), dpo=Stage("dpo", dropout=0.1)),
    "dpo+sft": Run(recipe="dpo+sft", dpo_sft_weight=0.5),
    "split": Run(recipe="sft-dpo", split=0.25),
    "favourite": Run(task="labels", data="rows.csv", recipe="dpo", dpo=Stage("dpo", wrong_label="favourite")),
    "trl": Run(recipe="dpo", dpo=Stage("dpo", engine="trl", schedule="cosine", weight_decay=0.1))}
CELLS = ([f"paraphrase {recipe} {tuning}" for recipe in ("sft", "dpo", "sft-dpo", "sft-sft", "sft-long") for tuning in ("full", "lora")]
         + [f"sonnet {recipe} {tuning}" for recipe in ("sft", "dpo", "sft-dpo", "sft-sft", "sft-long") for tuning in ("full", "lora")]
         + [f"{task} {recipe} full" for task in ("labels", "completions", "preferences") for recipe in ("sft", "dpo", "sft-dpo", "sft-sft", "sft-long")]
         + [f"{task} base full" for task in ("paraphrase", "sonnet", "labels", "completions", "preferences")])
STUDY = Study("a sample study", tasks=("sonnet",), train_size=64, recipes=("sft", "dpo", "dpo+sft", "sft-dpo", "sft-sft"), seeds=(0, 1), folds=5,
              sampling=Sampling(samples=8), search=Search(trials=4), **FP32)


def keys_of(run, own_dropout=False):
    "The stage keys of a run on data and a backbone of made-up fingerprints; the backbone with or without dropout of its own."
    inputs = Inputs(precision="fp32")
    inputs.dropout = lambda backbone: own_dropout
    return list(inputs.stage_keys(run, SimpleNamespace(fingerprint="golden data", train=[None] * 100), "golden backbone"))


def runs_of(folder):
    "A run of each cell, on embedded data and on small files written into a folder; those of some further settings, and of a sample study."
    (folder / "labels.csv").write_text("text,label\n" + "".join(f"row {i} here,{'yes' if i % 3 else 'no'}\n" for i in range(60)))
    (folder / "completions.csv").write_text("prompt,completion\n" + "".join(f"say {i},it is {i * 7}\n" for i in range(60)))
    (folder / "preferences.csv").write_text("prompt,chosen,rejected\n" + "".join(f"say {i},it is {i * 7},it was {i}\n" for i in range(60)))
    found = {}
    for name in CELLS:
        task, recipe, tuning = name.split()
        data = "embedded" if task in ("paraphrase", "sonnet") else str(folder / f"{task}.csv")
        found[name] = Run(task=task, data=data, recipe=recipe, tuning=tuning, seed=1, train_size=30, **FP32)
    found |= {"second rate": Run(recipe="sft-sft", train_size=30, **DEEP), "long": Run(recipe="sft-long", train_size=30, **DEEP)}
    for run in STUDY.runs():
        if run.fold in (1, 5): found[f"study: {run.cell}, fold {run.fold}, seed {run.seed}"] = run
    return found


def found_now():
    "Every key, as this version makes it."
    inputs = Inputs(precision="fp32")
    def line(run): return " ".join([inputs.of(run).name.rsplit("-", 1)[1], *inputs.of(run).keys])
    with tempfile.TemporaryDirectory() as folder: runs = {name: line(run) for name, run in runs_of(Path(folder)).items()}
    return {"stages": {name: " ".join(keys_of(run)) for name, run in STAGES.items()}, "runs": runs}


def moved(known, now):
    "What has another key than it had."
    return {f"{kind}: {name}": f"{key} is now {now[kind].get(name, 'no case any more')}" for kind, keys in known.items() for name, key in keys.items() if now[kind].get(name) != key}


def test_no_key_has_moved():
    known, now = json.loads(FILE.read_text()), found_now()
    assert moved(known, now) == {}, "see the head of this file"
    assert {kind: set(keys) for kind, keys in known.items()} == {kind: set(keys) for kind, keys in now.items()}, "a case is new: run python tests/test_keys.py"


@pytest.mark.parametrize("change", [{"sft.steps": 10}, {"dpo.micro_batch_size": 4}, {"dpo.gradient_checkpointing": True}, {"sft.evaluations": 0},
                                    {"dpo.checkpoint_steps": 7}, {"test_size": 5}, {"held_out_text": "embedded"}, {"dpo.wrong_label": "chance"}, {"split": None}])
def test_neutral_settings_move_no_stage(change):
    run = STAGES["sft-dpo"]
    assert keys_of(run.replace(**change)) == keys_of(run)


@pytest.mark.parametrize("change, which", [({"dpo.beta": 0.2}, 1), ({"sft.learning_rate": 1e-4}, 0), ({"seed": 1}, 0), ({"train_size": 50}, 0), ({"dpo.sft_weight": 1.0}, 1), ({"split": 0.5}, 0)])
def test_settings_that_matter_move_a_stage_and_those_after_it(change, which):
    before, after = keys_of(STAGES["sft-dpo"]), keys_of(STAGES["sft-dpo"].replace(**change))
    assert [one == other for one, other in zip(before, after)] == [k < which for k in range(2)]


def test_keys_move_where_the_meaning_of_dropout_changed():
    "A backbone with dropout kept it in SFT: 'as the backbone has it' is now 0, which had a key of its own."
    run = Run(sft=Stage("sft", learning_rate=7e-4))
    assert keys_of(run, own_dropout=True) == ["7bef42f9b629"] != keys_of(run)
    dpo = Run(recipe="dpo")
    assert keys_of(dpo, own_dropout=True) == keys_of(dpo), "DPO ran without dropout before"
    assert keys_of(dpo.replace(**{"lora.dropout": 0.1, "tuning": "lora"})) != keys_of(dpo.replace(tuning="lora")), "an adapter's dropout now holds in DPO too"


def test_the_weight_of_the_sft_term_is_part_of_a_dpo_stage_only():
    weighted = Run(recipe="sft-dpo", dpo=Stage("dpo", sft_weight=1))
    plain = keys_of(STAGES["sft-dpo"])
    assert keys_of(weighted)[0] == plain[0] and keys_of(weighted)[1] != plain[1]
    assert keys_of(weighted.replace(**{"dpo.sft_weight": 0.5}))[1] != keys_of(weighted)[1]


if __name__ == "__main__":
    known, now = json.loads(FILE.read_text()) if FILE.exists() else {}, found_now()
    if lost := moved(known, now): sys.exit("\n".join(["These keys have moved, and nothing is written:", *map(": ".join, lost.items())]))
    FILE.write_text(json.dumps(now, indent=1) + "\n")
    print(f"{FILE.name}: {sum(map(len, now.values()))} cases")
