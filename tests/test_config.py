"Settings: what is refused, what is read back, and what makes two stages one."
import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftdpo.config import (
    Benchmark,
    Execution,
    LoRA,
    Reading,
    Run,
    Sampling,
    Search,
    SettingsError,
    Stage,
    Study,
    from_dict,
    from_yaml,
    identity,
    relevant,
    to_dict,
    to_yaml,
)
from sftdpo.engine.options import helps


@pytest.mark.parametrize("make, words", [
    (lambda: LoRA(rank=0), ["lora.rank = 0", "16"]),
    (lambda: LoRA(dropout=1.0), ["lora.dropout = 1.0"]),
    (lambda: Stage(learning_rate=-1e-5), ["sft.learning_rate = -1e-05", "above 0"]),
    (lambda: Stage(learning_rate="fast"), ["sft.learning_rate = 'fast'", "a number"]),
    (lambda: Stage(learning_rate=float("nan")), ["sft.learning_rate = nan"]),
    (lambda: Stage(epochs=1.5), ["sft.epochs = 1.5", "whole number"]),
    (lambda: Stage(epochs=True), ["sft.epochs = True"]),
    (lambda: Stage(batch_size=8, micro_batch_size=3), ["sft.micro_batch_size = 3", "divisor of the batch size 8"]),
    (lambda: Stage(label_smoothing=0.5), ["sft.label_smoothing = 0.5"]),
    (lambda: Stage("dpo", loss="sigmoidal"), ["dpo.loss = 'sigmoidal'", "did you mean 'sigmoid'?", "'hinge', 'ipo'"]),
    (lambda: Stage("dpo", sft_weight=-1), ["dpo.sft_weight = -1.0", "0 or a positive number"]),
    (lambda: Run(sft=Stage("sft", dropout=0.1)), ["sft.dropout = 0.1", "dpo.dropout is 0.0", "give both the same"]),
    (lambda: Stage("ppo"), ["stage.kind = 'ppo'", "'sft', 'dpo'"]),
    (lambda: Run(recipe="sft_dpo"), ["did you mean 'sft-dpo'?"]),
    (lambda: Run(seed=-1), ["run.seed = -1"]),
    (lambda: Run(train_size=0), ["run.train_size = 0", "leave it out for all"]),
    (lambda: Run(task="sonnet", dpo=Stage("dpo", rejected="flip")), ["sample, swap, shuffle, corrupt"]),
    (lambda: Run(task="sonnet", shuffle_labels=True), ["no labels"]),
    (lambda: Study(name="../escape"), ["study.name"]),
    (lambda: Study(name=".."), ["study.name"]),
    (lambda: Study(tasks=()), ["study.tasks", "at least one"]),
    (lambda: Study(seeds=(1, 1)), ["study.seeds", "none twice"]),
    (lambda: Study(tasks=("paraphrase", "sonnet"), data="pairs.tsv"), ["one path serves one task"]),
    (lambda: Study(sweep={"dpo.bta": [0.1]}), ["did you mean 'beta'?"]),
    (lambda: Study(sweep={"seed": [0, 1]}, folds=2), ["study.sweep = 'seed'", "list several as seeds instead"]),
    (lambda: Study(sweep={"tuning": ["full", "lora"]}), ["study.sweep = 'tuning'", "tunings instead"]),
    (lambda: Study(folds=-1), ["study.folds = -1", "use 0, or at least 2"]),
    (lambda: Search(seeds=(900, 900)), ["search.seeds", "none twice"]),
    (lambda: Search(trials=3, betas=(0.0,)), ["search.betas", "above 0"]),
    (lambda: Search(further=-5), ["search.further = -5"]),
    (lambda: Search(train_size=-5), ["search.train_size = -5"]),
    (lambda: Study(sweep={"dpo.beta": "["}), ["study.sweep", "values with commas between them"]),
    (lambda: from_yaml(Study, "recipies: [sft]"), ["did you mean 'recipes'?"]),
    (lambda: from_yaml(Study, "dpo: {beta: [1]}"), ["dpo.beta = [1]"]),
    (lambda: from_yaml(Study, "- a\n- list"), ["a mapping of field names"]),
    (lambda: from_yaml(Study, "a: [unclosed"), ["not YAML"]),
])
def test_refused_with_the_remedy(make, words):
    with pytest.raises(SettingsError) as caught: make()
    for word in words: assert word in str(caught.value)


@pytest.mark.parametrize("settings", [LoRA(rank=4, targets=("q_proj",)), Stage("dpo", learning_rate=1e-5), Run(recipe="sft-sft"),
                                      Study("a name with ünïcode", seeds=(1, 2), sweep={"dpo.beta": [0.1, 0.2]})])
def test_read_back_equal(settings):
    assert from_dict(type(settings), to_dict(settings)) == settings
    assert from_yaml(type(settings), to_yaml(settings)) == settings


def test_yaml_may_be_empty_or_partial():
    assert from_yaml(Study, "") == Study()
    assert from_yaml(Study, "dpo:\n  learning_rate: 1e-5").dpo == Stage("dpo", learning_rate=1e-5)


@pytest.mark.parametrize("text, words", [
    ("tasks: [labels]\nseeds: [1]\ntasks: [sonnet]\n", "line 3 names 'tasks' again, after line 1: keep one of them"),
    ("dpo:\n  beta: 0.1\n  beta: 0.2\n", "line 3 names 'beta' again, after line 2"),
    ("tasks: [labels\nseeds: 1\n", "this is not YAML: line 2, column 6: expected"),
])
def test_yaml_that_means_something_else_is_refused(text, words):
    "YAML alone would take the last of two, without a word."
    with pytest.raises(SettingsError, match=re.escape(words)): from_yaml(Study, text)


def test_every_field_is_explained():
    for kind in (LoRA, Sampling, Reading, Stage, Run, Search, Study, Execution, Benchmark):
        found = helps(kind)
        assert set(found) == {field.name for field in dataclasses.fields(kind)}
        for name, text in found.items(): assert text, f"{kind.__name__}.{name} has no explanation"


@given(st.dictionaries(st.text(), st.one_of(st.integers(), st.floats(allow_nan=False), st.text(), st.lists(st.integers()))), st.randoms())
def test_identity_ignores_the_order_of_fields(values, random):
    items = list(values.items())
    random.shuffle(items)
    assert identity(values) == identity(dict(items))


def test_identity_is_stable():
    "The same on every machine and in every session: a changed value would orphan stored stages."
    assert identity({"beta": 0.1, "kind": "dpo"}) == "712627b59f89"


def test_identity_ignores_what_cannot_matter():
    def key(tuning="full", lora=LoRA(), **changes): return identity(relevant(Run(tuning=tuning, lora=lora).stages[0].replace(**changes), tuning, lora))
    assert key(lora=LoRA(rank=4)) == key()                                        # a rank in a full run
    assert key("lora", LoRA(rank=4)) != key("lora")
    assert key(beta=0.5) == key(label_smoothing=0.1) == key(rejected="swap") == key()  # DPO's settings in an SFT stage
    assert key(micro_batch_size=1) == key(checkpoint_steps=5) == key(evaluations=9) == key()
    assert key(dropout=0.2) != key() != key(learning_rate=1e-4)
    dpo = Run(recipe="dpo").stages[0]
    assert identity(relevant(dpo.replace(dropout=0.3), "full", LoRA())) != identity(relevant(dpo, "full", LoRA()))  # all stages honour it
    assert identity(relevant(dpo.replace(beta=0.3), "full", LoRA())) != identity(relevant(dpo, "full", LoRA()))


def test_backbones_with_dropout_are_told_apart(tokenizer, tmp_path):
    from tiny import tiny_model

    from sftdpo.engine.inputs import has_dropout
    from sftdpo.model import save_policy
    assert not has_dropout("bard")
    for dropout in (0.0, 0.1): assert has_dropout(str(save_policy(tiny_model("gpt2", tokenizer, dropout=dropout), tokenizer, tmp_path / f"{dropout}"))) == (dropout > 0)


def test_settings_of_earlier_versions_are_read():
    assert from_yaml(Study, "sft: {dropout: null}\ndpo: {dropout: null}") == Study()


def test_losses_are_known_without_torch():
    import subprocess
    import sys
    code = "import sys; from sftdpo.config import Stage; Stage('dpo', loss='ipo'); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_runs_of_a_study():
    study = Study(tasks=("paraphrase", "sonnet"), seeds=(0, 1), recipes=("sft", "dpo", "sft-dpo", "sft-sft"))
    runs = study.runs()
    assert len(runs) == 2 + 2 * 4 * 2 * 2 and len(set(map(repr, runs))) == len(runs)
    assert [run.recipe for run in runs[:2]] == ["base", "base"]
    rates = {(run.recipe, run.tuning): [stage.learning_rate for stage in run.stages] for run in Study(learning_rates={"sft_full": 1, "dpo_lora": 2}).runs()}
    assert rates["sft-dpo", "full"][0] == 1 and rates["sft-dpo", "lora"][1] == 2 and rates["sft", "lora"][0] != 1


def test_base_models_are_swept_too():
    "Several untrained models, or ways to draw: at cb0b3cb1 only the first is judged."
    study = Study(tasks=("sonnet",), recipes=("base",), sweep={"backbone": ["bard", "smollm2-135m"], "sampling.temperature": [0.5, 1.0]})
    assert len(Study(recipes=("base",), sweep={"train_size": [50, 100]}).runs()) == 1, "the size of the training set is no matter"
    with pytest.raises(SettingsError, match="sweep sampling.temperature -1"): Study(tasks=("sonnet",), recipes=("base",), sweep={"sampling.temperature": [-1]}).runs()
    assert [(run.backbone, run.sampling.temperature) for run in study.runs()] == [("bard", 0.5), ("bard", 1.0), ("smollm2-135m", 0.5), ("smollm2-135m", 1.0)]


def test_words_that_yaml_reads_as_something_else():
    with pytest.raises(SettingsError, match="put its words in quotes"): from_yaml(Study, "reading: {verbalizers: {0: no, 1: yes}}")
    assert from_yaml(Study, "reading: {verbalizers: {0: 'no', 1: 'yes'}}").reading.verbalizers == {"0": "no", "1": "yes"}
