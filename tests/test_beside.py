"""What a study tells beside its tasks' metrics, from the command line to the files: forgetting, distance, calibration, further sets."""
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from little import compare, small
from peft import AutoPeftModelForCausalLM
from scipy.optimize import minimize
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import sftdpo
import sftdpo.engine.runs
from sftdpo.claims import judge_claims
from sftdpo.cli import main
from sftdpo.data import load_task
from sftdpo.engine.store import read_examples, read_pairs, read_results
from sftdpo.model import save_policy
from sftdpo.tables import cells_table
from sftdpo.tasks import GENERAL_METRICS, metric_named

KL = [f"kl_{pair}" for pair in ("policy_base", "base_policy", "policy_reference", "reference_policy")]


def rows(first, last, word="day"):
    return "text,label\n" + "".join(f"the {word} number {i} was {'fine' if i % 2 else 'grey'},{'yes' if i % 3 else 'no'}\n" for i in range(first, last))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A tiny base model, a file of labelled texts, a second one that nobody trains on, and a text."
    home, tokenizer = tmp_path_factory.mktemp("beside"), tiny_tokenizer()
    save_policy(tiny_model("gpt2", tokenizer), tokenizer, home / "base")
    (home / "days.csv").write_text(rows(0, 240))
    (home / "nights.csv").write_text(rows(0, 30, "night"))
    (home / "text.txt").write_text("Of man's first disobedience, and the fruit of that forbidden tree. " * 40)
    return home


def words(place, *more):
    return ["--tasks", "labels", "--data", str(place / "days.csv"), "--backbone", str(place / "base"), "--sft.epochs", "1", "--dpo.epochs", "1",
            "--learning-rates.sft-full", "3e-3", "--learning-rates.dpo-full", "3e-3", *map(str, more)]


@pytest.fixture(scope="module")
def study(place):
    "A study of three recipes and two tunings whose models are kept, also judged on the second file."
    out = place / "study"
    main(["compare", *words(place, "--recipes", "sft", "sft-dpo", "dpo+sft", "--train-size", 64, "--weights", "all",
                            "--held-out-text", place / "text.txt", "--also-judge", f"nights={place / 'nights.csv'}", "--out", out)])
    return out


def told(study, recipe, tuning="-"):
    "The metrics of a run, and its folder."
    home = next(study.glob(f"runs/labels-{recipe}{'' if tuning == '-' else f'-{tuning}'}-seed0-*"))
    return json.loads((home / "metrics.json").read_text()), home


def model_of(home, tuning):
    kind = AutoPeftModelForCausalLM if tuning == "lora" else AutoModelForCausalLM
    return kind.from_pretrained(home / "policy").eval()


def plain_nll(model, tokenizer, text, length, number):
    "Mean loss of evenly spread windows of a text: plain transformers."
    ids = tokenizer(text, verbose=False).input_ids
    windows = np.array(ids[:len(ids) // length * length]).reshape(-1, length)
    windows = windows[[round((k + .5) * len(windows) / number - .5) for k in range(number)]]
    with torch.no_grad(): return np.mean([model(input_ids=torch.tensor([one]), labels=torch.tensor([one])).loss.item() for one in windows.tolist()])


@pytest.mark.parametrize("recipe, tuning", [("sft", "full"), ("sft-dpo", "lora"), ("dpo+sft", "full")])
def test_forgetting_against_a_plain_loop(place, study, recipe, tuning):
    "Point 1 of issue 16. At 72cf482 no run knows what it forgot."
    base, tokenizer = AutoModelForCausalLM.from_pretrained(place / "base").eval(), AutoTokenizer.from_pretrained(place / "base")
    metrics, home = told(study, recipe, tuning)
    text = (place / "text.txt").read_text()
    after, before = (plain_nll(model, tokenizer, text, 256, 1) for model in (model_of(home, tuning), base))
    assert metrics["held_out_text_nll"] == pytest.approx(after, abs=1e-4) and told(study, "base")[0]["held_out_text_nll"] == pytest.approx(before, abs=1e-4)
    assert metrics["forgetting"] == pytest.approx(after - before, abs=1e-4) and abs(after - before) > 1e-4
    assert "forgetting" not in told(study, "base")[0]


def plain_kl(first, second, tokenizer, prompts):
    "KL(first || second) at the last position of each prompt: plain transformers, in float64."
    with torch.no_grad():
        p, q = (torch.stack([model(input_ids=torch.tensor([tokenizer(one).input_ids])).logits[0, -1].double().log_softmax(-1) for one in prompts]) for model in (first, second))
    return (p.exp() * (p - q)).sum(-1).mean().item()


@pytest.mark.parametrize("recipe, tuning", [("sft", "full"), ("sft-dpo", "full"), ("sft-dpo", "lora"), ("dpo+sft", "lora")])
def test_distance_against_plain_models(place, study, recipe, tuning):
    "Point 2. From the base model and from the reference, both ways, equal for both tunings; at 72cf482 there is no such number."
    tokenizer, base = AutoTokenizer.from_pretrained(place / "base"), AutoModelForCausalLM.from_pretrained(place / "base").eval()
    metrics, home = told(study, recipe, tuning)
    judged = pd.read_parquet(home / "examples.parquet")
    policy, reference = model_of(home, tuning), model_of(told(study, "sft", tuning)[1], tuning) if recipe == "sft-dpo" else base
    chosen = sftdpo.data.subset([sftdpo.data.Example(one.id, one.prompt, "") for one in judged.itertuples()], len(judged), 0)
    budget, prompts = metrics["judging_tokens"] // 12, []
    for one in chosen:
        budget -= len(tokenizer(one.prompt).input_ids) + 1
        if prompts and budget < 0: break
        prompts.append(one.prompt)
    assert 1 < len(prompts) < len(judged)
    pairs = dict(zip(KL, [(policy, base), (base, policy), (policy, reference), (reference, policy)]))
    for name, (first, second) in pairs.items():
        assert metrics[name] == pytest.approx(plain_kl(first, second, tokenizer, prompts), abs=1e-4), name
    assert metrics["kl_policy_base"] > 1e-3 and metrics["kl_policy_base_low"] < metrics["kl_policy_base"]
    assert (metrics["kl_policy_reference"] == metrics["kl_policy_base"]) == (recipe != "sft-dpo")


def test_distance_of_texts_against_plain_models(backbone, tmp_path):
    "Point 2, for texts: each position of the true continuations, over the whole vocabulary."
    study = small(backbone, tasks=("sonnet",), recipes=("sft",), tunings=("full",), weights="all")
    results = compare(study, tmp_path / "out", progress=False)
    home = next((tmp_path / "out" / "runs").glob("sonnet-sft-*"))
    tokenizer, policy, base = AutoTokenizer.from_pretrained(backbone), model_of(home, "full"), AutoModelForCausalLM.from_pretrained(backbone).eval()
    judged = pd.read_parquet(home / "examples.parquet").drop_duplicates("id")
    order = sftdpo.data.subset([sftdpo.data.Example(one.id, one.prompt, one.true) for one in judged.itertuples()], 5, 0)
    metrics = results[results.run == home.name].set_index("metric").value
    expected, budget = [], metrics["judging_tokens"] // 12
    for one in order:
        prompt, rest = tokenizer(one.prompt).input_ids, [*tokenizer(one.completion).input_ids, tokenizer.eos_token_id]
        budget -= len(prompt) + len(rest)
        if expected and budget < 0: break
        with torch.no_grad(): p, q = (model(input_ids=torch.tensor([prompt + rest])).logits[0, len(prompt) - 1:-1].double().log_softmax(-1) for model in (policy, base))
        expected.append((p.exp() * (p - q)).sum(-1).mean().item())
    assert metrics["kl_policy_base"] == pytest.approx(np.mean(expected), abs=1e-4) and metrics["kl_policy_base"] > 1e-3
    assert 0 <= metrics["repeated_4grams"] <= 1


def test_temperature_is_fitted_on_validation_rows(place, study):
    "Point 3. Another optimizer on the same rows finds the same temperature; at 72cf482 no run tells it."
    metrics, home = told(study, "sft", "full")
    tokenizer, model = AutoTokenizer.from_pretrained(place / "base"), model_of(home, "full")
    run = sftdpo.config.Run(task="labels", data=str(place / "days.csv"), backbone=str(place / "base"), held_out_text=str(place / "text.txt"))
    inputs = sftdpo.engine.inputs.Inputs().of(run)
    beside = sftdpo.engine.beside.beside_of(inputs, 400)
    assert 1 < len(beside.validation) < len(inputs.data.validation) and {one.id for one in beside.validation} <= {one.id for one in inputs.data.validation}
    ids = torch.tensor([tokenizer(word).input_ids[0] for word in inputs.data.verbalizers])
    with torch.no_grad(): logits = torch.stack([model(input_ids=torch.tensor([tokenizer(one.prompt).input_ids])).logits[0, -1, ids] for one in beside.validation]).double().numpy()
    labels = [one.label for one in beside.validation]
    def loss(log_temperature):
        scaled = logits / np.exp(log_temperature)
        return (np.logaddexp.reduce(scaled, axis=1) - scaled[np.arange(len(labels)), labels]).mean()
    best = np.clip(np.exp(minimize(loss, [0.], method="Nelder-Mead", bounds=[np.log([.01, 100])]).x[0]), .01, 100)
    assert metrics["temperature"] == pytest.approx(best, rel=.02)
    for name in ("verbalizer_mass", "entropy", "calibration_error_low", "calibration_error_perfect", "calibration_error_scaled"): assert 0 <= metrics[name] <= 1


def test_judging_costs_at_most_a_quarter_more():
    "Where enough is judged; one window of the text is always read."
    for run in (sftdpo.config.Run(), sftdpo.config.Run(task="sonnet")):
        beside = sftdpo.engine.beside.beside_of(sftdpo.engine.inputs.Inputs().of(run), 4096)
        assert 0 < beside.extra <= beside.judging / 4


@pytest.mark.usefixtures("undrawn")
def test_dpo_with_sft_from_the_command_line(place, capsys):
    "Point 6. The weight is a setting; the chosen completions lose less than under DPO alone. At 72cf482 there is no recipe of that name."
    out = place / "term"
    asked = words(place, "--recipes", "dpo", "dpo+sft", "--tunings", "full", "--dpo-sft-weight", 5, "--train-size", 128)
    main(["plan", *asked, "--no-measure", "--out", str(out)])
    assert "3 runs, 2 stages of training" in capsys.readouterr().out
    main(["compare", *asked, "--out", str(out)])
    said = capsys.readouterr().out
    assert "labels: dpo+sft full, seed 0" in said and "\ndpo+sft full" in said
    weights = sorted(json.loads(path.read_text())["settings"].get("sft_weight", 0) for path in out.glob("stages/*/stage.json"))
    assert weights == [0, 5]
    pairs = read_pairs(out)
    change = pairs.groupby("recipe").chosen_change.mean()
    assert change["dpo+sft"] > change["dpo"]
    assert pairs.groupby("recipe").chosen_change.apply(lambda one: one.is_monotonic_increasing).all()
    assert pairs.prompt.str.startswith("the day number").all() and set(pairs.chosen) == {"yes", "no"} and (pairs.chosen != pairs.rejected).all()
    main(["report", str(out)])
    assert "dpo+sft" in (out / "report.html").read_text()


def test_dpo_with_sft_is_exploratory(study):
    "What C3 says of it changes nothing of what it says of the claim's own recipes."
    verdicts = [one for one in judge_claims(study, claims=["C3"]) if one.where]
    assert {one.where: one.exploratory for one in verdicts} == {"sft": False, "sft-dpo": False, "all recipes": False, "dpo+sft": True}


def test_default_recipes_stay():
    assert "dpo+sft" not in sftdpo.config.Study().recipes and metric_named("forgetting").better == "lower"


def test_a_further_set(place, study, capsys):
    "Point 8. Every metric, as rows of their own; the study's own tables do not change. At 72cf482 the option does not exist."
    raw = pd.read_csv(study / "results.csv")
    assert set(raw.split) == {"test", "train", "nights"}
    main(["evaluate", str(told(study, "sft", "full")[1] / "policy"), "--data", str(place / "nights.csv"), "--task", "labels"])
    alone = dict(re.findall(r"^(\S.*?)  +([\d.]+)", capsys.readouterr().out, re.MULTILINE))
    further = read_results(study, judged="nights")
    mine = further[(further.recipe == "sft") & (further.tuning == "full") & (further.split == "test")].set_index("metric").value
    for name, title in dict(nll="nats per right answer", entropy="entropy of the answer, nats").items(): assert mine[name] == pytest.approx(float(alone[title]), abs=1e-3), name
    for name in ("accuracy", "macro_f1", "calibration_error"): assert 100 * mine[name] == pytest.approx(float(alone[name.replace("_", " ").replace(" f", " F")]), abs=0.06), name
    assert mine["examples"] == 30 and mine["examples_in_training"] == 0 and "accuracy_change" in mine
    own = read_results(study)
    assert not (own.split == "nights").any() and own[own.metric == "examples"].value.eq(48).all()
    assert cells_table(further, "labels", read_examples(study, judged="nights")).index.tolist() == cells_table(own, "labels").index.tolist()
    found = judge_claims(study, judged="nights")
    assert found and all(one.exploratory for one in found)
    assert cells_table(own, "labels", metrics=GENERAL_METRICS).loc["sft full", "forgetting, nats per token"]


def test_further_sets_are_printed(place, study, capsys):
    main(["compare", *words(place, "--recipes", "sft", "sft-dpo", "dpo+sft", "--train-size", 64, "--weights", "all",
                            "--held-out-text", place / "text.txt", "--also-judge", f"nights={place / 'nights.csv'}", "--out", study)])
    said = capsys.readouterr().out
    assert "also judged on nights: 30 examples" in said and said.count("dpo+sft lora") >= 2


def test_a_further_set_that_is_trained_on_in_part_is_said_to_be(place, tmp_path, capsys):
    "Nothing said which of its rows the models had trained on, or which could not be used. At 62ea385b the note is missing."
    (tmp_path / "both.csv").write_text(rows(0, 240) + rows(0, 30, "night").partition("\n")[2] + "grey,perhaps\n")
    main(["compare", *words(place, "--recipes", "base", "--also-judge", f"both={tmp_path / 'both.csv'}", f"nights={place / 'nights.csv'}",
                            "--reading.unusable", "drop", "--out", tmp_path / "out")])
    said, trained = capsys.readouterr().out, len(load_task("labels", str(place / "days.csv")).train)
    assert f"--also-judge both: 270 rows, {trained} of them among the training rows too, 1 of 271 rows cannot be used and is left out" in said
    assert "--also-judge nights: 30 rows" in said and "nights: 30 rows, " not in said


@pytest.mark.parametrize("option, value, says", [
    ("--also-judge", "nights.csv", "--also-judge 'nights.csv' cannot be used: write NAME=PATH"),
    ("--also-judge", "nights=nowhere.csv", "--also-judge 'nights=nowhere.csv' cannot be used: there is no such file"),
    ("--held-out-text", "nowhere.txt", "--held-out-text 'nowhere.txt' cannot be used: there is no such file"),
    ("--dpo-sft-weight", "0", "--dpo-sft-weight 0.0 cannot be used: use a number above 0"),
])
def test_what_cannot_be_used_is_said_before_training(place, tmp_path, capsys, option, value, says):
    with pytest.raises(SystemExit) as stopped: main(["compare", *words(place, option, value, "--out", tmp_path / "out")])
    assert stopped.value.code == 2 and says in capsys.readouterr().err and not (tmp_path / "out").exists()


def measured(folder):
    results = read_results(folder)
    return results[results.metric.isin([*KL, "forgetting", "held_out_text_nll"])].sort_values(["run", "metric"], ignore_index=True)[["run", "metric", "value"]]


def test_distances_survive_a_stop(backbone, tmp_path, monkeypatch):
    "The reference of a later stage is known after the study was stopped between its training and its judging."
    study = small(backbone, tasks=("paraphrase",), recipes=("sft-dpo",), tunings=("lora",))
    compare(study, tmp_path / "undisturbed", progress=False)
    judge, calls = sftdpo.engine.runs.judge_run, []
    def stopped(*args, **more):
        calls.append(1)
        if len(calls) == 2: raise KeyboardInterrupt
        return judge(*args, **more)
    monkeypatch.setattr(sftdpo.engine.runs, "judge_run", stopped)
    with pytest.raises(KeyboardInterrupt): compare(study, tmp_path / "stopped", progress=False)
    compare(study, tmp_path / "stopped", progress=False)
    expected = measured(tmp_path / "undisturbed")
    assert set(expected.metric) == {*KL, "forgetting", "held_out_text_nll"}
    pd.testing.assert_frame_equal(measured(tmp_path / "stopped"), expected)
