"The benchmark: every engine does the same mathematics, files go on, and the bound is what a hand counts."
import contextlib
import json
import multiprocessing
import os
import threading
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from sftdpo import bench as bench_module
from sftdpo.batches import score
from sftdpo.bench import (
    WORKERS,
    Job,
    adapter_size,
    bench,
    configurations,
    least_work,
    measure_configuration,
    padded_log_probabilities,
    rounds_of,
    seen_pairs,
    speeds,
    take_turns,
    typical_rows,
)
from sftdpo.claims import judge_claims
from sftdpo.cli import main
from sftdpo.config import Benchmark, LoRA, Run, Sampling, Stage, resolve
from sftdpo.measures.sampling import padded_left
from sftdpo.reading.rows import Row

ENGINES = ("sftdpo", "trl", "trl-no-checkpointing", "trl-best", "plain")


class Listener:
    "Stands for the asking process: notes what an engine says, and lets it go on for some turns."
    def __init__(self, rounds): self.said, self.rounds = [], rounds

    def __call__(self, **facts):
        self.said.append(facts)
        return len(self.said) <= self.rounds


def ran(job, rounds):
    "What an engine said in its turns, and in the end."
    usual, listener = list(transformers.trainer.DEFAULT_CALLBACKS), Listener(rounds)
    try: end = WORKERS[job.what][job.engine](job, listener)
    finally: transformers.trainer.DEFAULT_CALLBACKS[:] = usual
    return listener.said[1:], end


def rows_of(kind):
    "Rows of several lengths; completions of one to three tokens."
    completions = [[[7 + i % 5, 9, 11][:1 + i % 3], [8, 10][:1 + i % 2]] for i in range(24)]
    return [Row(str(i), [20 + (3 * i + k) % 200 for k in range(4 + i % 7)], some[:2 if kind == "dpo" else 1]) for i, some in enumerate(completions)]


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_engines_have_the_same_losses(kind, tuning, backbone):
    stage = resolve(Stage(kind, batch_size=4, learning_rate=1e-3, epochs=1, schedule="constant", warmup=0, evaluations=0, precision="fp32"), Run())
    losses = {}
    for engine in ENGINES:
        turns, end = ran(Job("train", engine, backbone, rows_of(kind), 8, stage, tuning, LoRA(rank=4)), 3)
        losses[engine] = torch.tensor([turn["losses"] for turn in turns])
        assert losses[engine].shape == (3, 2) and end["settings"] and end["reference_seconds"] >= 0
        if engine == "plain": assert end["settings"]["optimizer"] == "AdamW, not fused"
        assert (end["reference_seconds"] > 0) == (kind == "dpo" and engine in ("sftdpo", "trl-best"))
        json.dumps(end)
    for engine in ENGINES[1:]: torch.testing.assert_close(losses[engine], losses["sftdpo"], atol=2e-4, rtol=0, msg=lambda said: f"{engine}: {said}")
    assert losses["sftdpo"].std() > 1e-3, "weights do not move, so equal losses would mean little"


def test_an_engine_stops_when_told(backbone):
    stage = resolve(Stage("sft", batch_size=4, learning_rate=1e-3, epochs=1, evaluations=0, precision="fp32"), Run())
    for engine in ("sftdpo", "plain"): assert len(ran(Job("train", engine, backbone, rows_of("sft"), 4, stage), 2)[0]) == 2


def test_padded_logits_say_the_same_as_scored_positions(tiny):
    model, _ = tiny
    rows = rows_of("dpo")
    found = torch.stack([padded_log_probabilities(model, [row.prompt for row in rows], [row.completions[k] for row in rows], "fp32") for k in (0, 1)], 1)
    torch.testing.assert_close(found.detach().double(), torch.tensor(score(model, rows, precision="fp32")), atol=1e-4, rtol=0)


def test_scoring_engines_agree(backbone):
    rows = [Row(row.id, row.prompt, [[5], [6]]) for row in rows_of("sft")]
    means = [ran(Job("score", engine, backbone, rows, len(rows), Stage("sft", batch_size=5, precision="fp32")), 1)[0][0]["mean"] for engine in ("sftdpo", "plain")]
    assert means[0] == pytest.approx(means[1], abs=1e-5)


def test_sampling_engines_draw_as_many_texts(backbone):
    sampling = Sampling(samples=3, max_new_tokens=5)
    for engine in WORKERS["sample"]:
        turns, _ = ran(Job("sample", engine, backbone, ["Shall I", "Thou art more"], 2, Stage("sft", precision="fp32"), sampling=sampling), 2)
        assert len(turns) == 2 and all(2 * 3 <= turn["tokens"] <= 2 * 3 * 5 for turn in turns)


def test_one_call_for_all_samples_from_the_prompts_own_distribution(backbone):
    "Prompts of unequal length, padded on the left in one call: the likeliest continuations are those of a call for each."
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model, tokenizer = AutoModelForCausalLM.from_pretrained(backbone).eval(), AutoTokenizer.from_pretrained(backbone)
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("Shall I", "Thou art more lovely and more temperate")]
    assert len(prompts[0]) < len(prompts[1])
    ids, mask = padded_left(prompts, tokenizer.eos_token_id)
    settings = dict(do_sample=False, max_new_tokens=6, pad_token_id=tokenizer.eos_token_id)
    together = model.generate(ids, attention_mask=mask, **settings)[:, ids.shape[1]:]
    for prompt, found in zip(prompts, together):
        alone = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), **settings)[0, len(prompt):]
        assert found[:len(alone)].tolist() == alone.tolist()
    sampling, sizes = Sampling(samples=3, max_new_tokens=5), []
    generate = transformers.GPT2LMHeadModel.generate
    def noted(self, ids, **options):
        sizes.append(len(ids))
        return generate(self, ids, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.GPT2LMHeadModel, "generate", noted)
        for engine in ("generate-batched", "generate", "generate-one"):
            ran(Job("sample", engine, backbone, ["Shall I", "Thou art more"], 2, Stage("sft", precision="fp32"), sampling=sampling), 1)
    assert sizes == [6] + [3, 3] + [1] * 6  # one call for all; one a prompt; one a sample


def test_the_likeliest_text_is_drawn_by_every_engine(backbone):
    "`--sampling.temperature 0` was given to `generate` as a temperature, which refuses it. At 62ea385b three engines fail."
    sampling = Sampling(samples=3, max_new_tokens=5, temperature=0)
    drawn = {engine: ran(Job("sample", engine, backbone, ["Shall I", "Thou art more"], 2, Stage("sft", precision="fp32"), sampling=sampling), 1)[0]
             for engine in WORKERS["sample"]}
    assert len({turns[0]["tokens"] for turns in drawn.values()}) == 1 and len(drawn) == 4


def test_the_bound_by_hand(tiny_llama):
    model, _ = tiny_llama  # 2 layers, width 64, 4 heads of 16, 2 for keys and values, 128 inside
    blocks = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128)
    row = Row("", [1, 2, 3], [[4, 5], [6]])  # 4 tokens are read; after the prompt and after 4 something is predicted
    assert seen_pairs(row) == 6 + 4
    job = Job("train", "machine", "", [row], 1, Stage("dpo", batch_size=1))
    found = least_work(model, [row], job)
    forward = 2 * blocks * 4 + 4 * 10 * 2 * 64 + 2 * model.config.vocab_size * 64 * 2
    assert found.pop("bytes") == 32 * model.num_parameters()
    assert sum(found.values()) == 4 * forward  # forward, twice that backward, and the reference

    lora = least_work(model, [row], replace(job, tuning="lora", lora=LoRA(rank=1)))
    adapter = 2 * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + 3 * (64 + 128))
    assert adapter_size(model, LoRA(rank=1)) == adapter and lora.pop("bytes") == 32 * adapter
    assert sum(lora.values()) == 3 * forward + 4 * 10 * 2 * 64 + 6 * adapter * 4  # attention has no weights to be spared
    assert adapter_size(model, LoRA(rank=1, targets=("q_proj", "v_proj"))) == 2 * ((64 + 64) + (64 + 32))
    scored = least_work(model, [row], replace(job, what="score"))
    assert scored.pop("bytes") == 0 and sum(scored.values()) == forward


def answer(seconds, reference=0.0):
    "An engine's record with a slow first round."
    return dict(start_up_seconds=3.0, scored_seconds=2 * reference, reference_seconds=reference, settings={}, reference_processor_seconds=reference / 2, turns=[dict(seconds=s, processor_seconds=s / 2, peak_memory_gb=1.0) for s in (9.0, *seconds)])


def test_speeds_by_hand():
    machine = dict(start_up_seconds=1.0, turns=[dict(seconds=1.0, operations_per_second=100.0, bytes_per_second=10.0)] * 4)
    work = dict(tokens=[80] * 4, counted=[dict(forward=50, bytes=5)] * 4)
    result = dict(what="train", examples=8, rows=32, engines=dict(sftdpo=answer([1.0, 2.0, 3.0], reference=4.0) | work, plain=answer([4.0, 6.0, 16.0]) | work, machine=machine))
    rounds = rounds_of({"one": result})
    assert rounds[rounds.engine == "sftdpo"].seconds.tolist() == [2, 3, 4]  # a quarter of the reference pass in each
    assert rounds_of({"one": result}, "processor_seconds").seconds.tolist() == (rounds.seconds / 2).tolist()
    table = speeds({"one": result}).loc["one"]
    assert table.loc["sftdpo", "share_of_bound"] == pytest.approx(1 / 3)  # the bound is half a second of operations and half of bytes
    assert table.loc["plain", ["examples_per_second", "tokens_per_second"]].tolist() == pytest.approx([8 / 6, 80 / 6])
    assert table.loc["plain", ["times_ours", "times_ours_low", "times_ours_high"]].tolist() == pytest.approx([26 / 9, 10 / 5, 20 / 6])  # 26 of 9; without the last, 10 of 5
    assert table.loc["plain", "start_up_seconds"] == 3 and table.loc["sftdpo", "start_up_seconds"] == 3 - 2 * 4  # scoring is no start-up


def test_few_steps_are_like_an_epochs():
    rows = [Row(str(i), [0] * (1 + i * 37 % 97), [[1]]) for i in range(1000)]
    some = typical_rows(rows, 8, 6, seed=0)
    steps = [[len(row.prompt) for row in some[k:k + 8]] for k in range(0, 48, 8)]
    assert sum(8 * max(step) for step in steps) < 1.1 * sum(map(sum, steps)), "more padding than in batches of like length"
    assert len(typical_rows(rows[:5], 8, 2, seed=0)) == 16, "too few rows come again"


def test_who_shuffles_meets_the_same_rows():
    job = Job("train", "trl", "bard", rows_of("sft"), 8, Stage("sft", batch_size=4, precision="fp32"))
    ours, theirs = job.in_order, replace(job, shuffled=True).in_order
    assert ours[:8] == theirs[:8] and ours != theirs and {row.id for row in ours} == {row.id for row in theirs}


def test_configurations():
    assert len(configurations(Benchmark(what=("train",)))) == 2 * 2 * 2 * 2
    assert list(configurations(Benchmark(what=("score", "sample")))) == ["score paraphrase", "sample sonnet"]


def test_a_file_is_written_after_each_configuration_and_goes_on(tmp_path, monkeypatch):
    done = []

    def stopped(benchmark, configuration):
        if len(done) == 2: raise KeyboardInterrupt
        done.append(configuration["kind"] + configuration["tuning"])
        return dict(settings=bench_module.shared_settings(benchmark))

    monkeypatch.setattr(bench_module, "measure_configuration", stopped)
    settings, file = Benchmark(what=("train",), tasks=("sonnet",), batch_sizes=(8,)), tmp_path / "in" / "speed.json"
    with pytest.raises(KeyboardInterrupt): bench(settings, file)
    assert len(json.loads(file.read_text())) == 2
    del done[:2]
    monkeypatch.setattr(bench_module, "measure_configuration", lambda benchmark, configuration: done.append(configuration["kind"] + configuration["tuning"]) or stopped(benchmark, configuration))
    assert len(bench(settings, file)) == 4 and set(done) == {"dpofull", "dpolora"}
    with pytest.raises(ValueError, match="other settings .rounds."): bench(settings.replace(rounds=7), file)


class Inside(threading.Thread):
    "Stands for an engine's process: a thread is there at once, and has an end of the pipe of its own."
    def __init__(self, target, args, daemon):
        super().__init__(target=target, args=(Connection(os.dup(args[0].fileno())), *args[1:]), daemon=daemon)

    def terminate(self): pass
    def join(self): super().join(60)


def here(monkeypatch):
    "Engines run in threads of this process, and a machine's pace is not measured."
    monkeypatch.setattr(bench_module.multiprocessing, "get_context", lambda how: SimpleNamespace(Pipe=multiprocessing.Pipe, Process=Inside))
    monkeypatch.setattr(bench_module, "silence", contextlib.nullcontext)  # what is printed is the whole process's
    monkeypatch.setattr(bench_module, "product_paces", lambda *rest: {"8×8": 1e9})
    monkeypatch.setattr(bench_module, "bandwidth", lambda: 1e9)
    monkeypatch.setitem(WORKERS["train"], "sftdpo", WORKERS["train"]["plain"])  # what halts a Trainer between turns halts every Trainer of its process


def test_processes_take_turns_and_an_engine_that_fails_is_named(backbone, monkeypatch):
    stage = resolve(Stage("sft", batch_size=4, learning_rate=1e-3, epochs=1, schedule="constant", warmup=0, evaluations=0, precision="fp32"), Run())
    jobs = [Job("train", engine, backbone, rows_of("sft"), 8, stage) for engine in ("plain", "machine")]
    found = take_turns(jobs, rounds=1, minutes=9)
    assert {engine: len(said["turns"]) for engine, said in found.items()} == dict(plain=2, machine=2)
    assert found["plain"]["turns"][0]["losses"] == pytest.approx(ran(jobs[0], 1)[0][0]["losses"], abs=1e-4)
    assert all(turn["operations_per_second"] > 0 and turn["bytes_per_second"] > 0 for turn in found["machine"]["turns"])
    here(monkeypatch)
    with pytest.raises(ChildProcessError, match="'plain' has failed: FileNotFoundError"): take_turns([replace(jobs[0], backbone="no/where/at/all")], 1, 9)


def test_what_is_measured_says_what_it_was(monkeypatch):
    settings = Benchmark(batch_sizes=(4,), rounds=2, steps=2, prompts=16, texts=3)
    for name, configuration in configurations(settings).items():
        if configuration.get("tuning") == dict(sonnet="full", paraphrase="lora")[configuration["task"]]: continue  # rows do not depend on the tuning
        asked = []
        monkeypatch.setattr(bench_module, "take_turns", lambda jobs, rounds, minutes: asked.extend(jobs) or {job.engine: dict(answer([1.0, 1.0])) for job in jobs if job.engine != "machine"})
        result = measure_configuration(settings, configuration)
        assert {job.engine for job in asked} == set(WORKERS[result["what"]]), name
        assert len({id(job.rows) for job in asked}) == 1 and result["environment"]["processor"] and result["settings"]["rounds"] == 2
        assert result["examples"] == dict(train=8, score=16, sample=3 * 8)[result["what"]]
        if result["what"] == "train":
            ours, trl = result["engines"]["sftdpo"], result["engines"]["trl"]
            assert result["rows"] == 24 and len(ours["tokens"]) == len(ours["counted"]) == 3
            assert ours["tokens"][0] == trl["tokens"][0] and sum(ours["tokens"]) == sum(trl["tokens"]), "TRL's default shuffles what follows the warm-up"
        json.dumps(result)
        assert (speeds({name: result}).rounds == 2).all()


# the time of LoRA and of full fine-tuning, as a benchmark has it

def test_tunings_take_turns(backbone, monkeypatch):
    settings = Benchmark(what=("tunings",), tasks=("paraphrase",), kinds=("dpo",), batch_sizes=(4,), engines=("sftdpo", "plain"), rounds=2, backbone=backbone)
    (name, configuration), = configurations(settings).items()
    assert name == "tunings paraphrase dpo 4"
    jobs = bench_module.jobs_of(settings, configuration)
    assert [job.name for job in jobs] == ["sftdpo full", "sftdpo lora", "plain full", "plain lora", "machine"]
    assert [job.tuning for job in jobs] == ["full", "lora", "full", "lora", "full"] and len({id(job.rows) for job in jobs}) == 1
    asked = []
    here(monkeypatch)
    ask = bench_module.Engine.ask
    monkeypatch.setattr(bench_module.Engine, "ask", lambda engine, going=None: (asked.append(engine.name) if going else None, ask(engine, going))[1])
    result = measure_configuration(settings.replace(engines=("sftdpo",)), configuration)
    assert asked == ["machine", "sftdpo lora", "sftdpo full", "sftdpo full", "sftdpo lora", "machine", "machine", "sftdpo lora", "sftdpo full"], "in each round the one after the other"
    table = speeds({name: result}).loc[name]
    assert list(table.index) == ["sftdpo full", "sftdpo lora"] and table.loc["sftdpo full", "times_ours"] == 1


def benched(seconds, load=1.0, workers=1, tuning="full and lora", kind="sft", task="paraphrase", backbone="bard", size=8):
    "A benchmark file's content: seconds of each round, by tuning, of the engine sftdpo."
    engines = {f"sftdpo {one}" if tuning == "full and lora" else "sftdpo": answer(some) for one, some in seconds.items()}
    return {f"{tuning} {task} {kind} {size}": dict(what="train", task=task, kind=kind, tuning=tuning, batch_size=size, examples=8, rows=32, engines=engines | dict(machine=answer([1.0] * 5)),
                                                  settings=dict(backbone=backbone), environment=dict(processor="A processor", threads=2, workers=workers, load=load))}


@pytest.fixture
def study(repository, tmp_path):
    "A copy of a stored study on question pairs, alone in a folder."
    import shutil
    return Path(shutil.copytree(repository / "nbs/study/results/smollm2-paraphrase", tmp_path / "studies" / "one"))


def on_time(study, **how): return judge_claims(study, claims=["C4"], **how)


def verdicts(found): return {one.part.partition(" by")[0]: one.verdict for one in found}


def write(path, *contents):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({name: value for content in contents for name, value in content.items()}))
    return path


def test_the_remedy_for_wide_ranges_is_one_that_works(tmp_path, capsys, monkeypatch):
    "At c71f3681 the same command with more --rounds was advised, and refused."
    measured, asked = [], lambda rounds, out: main(["bench", "--what", "sample", "--rounds", str(rounds), "--out", str(tmp_path / out)])
    monkeypatch.setattr(bench_module, "print_speeds", lambda results: None)
    def measure(benchmark, configuration):
        measured.append(benchmark.rounds)
        return dict(settings=bench_module.shared_settings(benchmark))
    monkeypatch.setattr(bench_module, "measure_configuration", measure)
    asked(1, "speed.json")
    assert "with more --rounds, and another --out, narrows" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit): asked(2, "speed.json")
    asked(2, "other.json")
    assert measured == [1, 2]


SMOL = dict(backbone="smollm2-135m")
FASTER, SAME = dict(full=[10.0, 20.0, 10.0, 14.0], lora=[7.0, 14.1, 7.0, 9.9]), dict(full=[10.0, 20.0, 10.0, 14.0], lora=[10.05, 20.1, 10.0, 14.1])


@pytest.mark.parametrize("place", ["speed.json", "speed/any.json", "../speed.json", "../speed/any.json"])
def test_a_benchmark_beside_the_study_decides_on_time(study, place):
    before = on_time(study)
    write(study / place, benched(FASTER, **SMOL), benched(FASTER, kind="dpo", **SMOL))
    found = on_time(study)
    assert verdicts(found) == {"does not reduce": "refuted", "reduces": "supported"}
    assert all("took turns" in one.notes[0] and "batches of 8, bench" in one.where for one in found)
    names = dict(found[0].effects)
    assert found[0].effects[0][1].mean == pytest.approx(names["LoRA / full, sft"].mean) and found[0].effects[0][1].seeds == 4
    assert any("of the study's own runs" in name for name in names) or not before[0].effects


def test_a_given_file_decides_in_place_of_those_beside_the_study(study, tmp_path):
    write(study / "speed.json", benched(FASTER, **SMOL))
    other = write(tmp_path / "elsewhere.json", benched(SAME, **SMOL))
    assert verdicts(on_time(study, speed=[other])) == {"does not reduce": "supported", "reduces": "refuted"}


@pytest.mark.parametrize("how", [dict(load=3.0), dict(workers=2)])
def test_a_benchmark_that_shared_the_machine_decides_nothing(study, how):
    write(study / "speed.json", benched(FASTER, **SMOL, **how))
    found = on_time(study)
    assert set(verdicts(found).values()) == {"not asked"} and all("shared" in one.why for one in found)


def test_a_benchmark_without_a_record_of_load_decides_nothing(study):
    write(study / "speed.json", benched(FASTER, load=None, **SMOL))
    assert set(verdicts(on_time(study)).values()) == {"undecided"}


@pytest.mark.parametrize("content", [benched(FASTER), benched(FASTER, task="sonnet", **SMOL)])
def test_of_another_backbone_or_task_it_says_nothing(study, content):
    before = on_time(study)
    write(study / "speed.json", content)
    assert on_time(study) == before


def test_tunings_timed_one_after_the_other_decide_nothing(study):
    before = on_time(study)
    write(study / "speed.json", benched(dict(x=[10.0, 20.0]), tuning="full", **SMOL), benched(dict(x=[5.0, 10.0]), tuning="lora", **SMOL))
    found = on_time(study)
    assert verdicts(found) == verdicts(before) and all("--what tunings" in one.notes[-1] for one in found)


def test_a_file_that_is_none_is_named(study):
    before = on_time(study)
    (study / "speed.json").write_text('{"tunings para')
    found = on_time(study)
    assert verdicts(found) == verdicts(before) and all("speed.json is no file of `sftdpo bench`" in one.notes[-1] for one in found)


def test_one_round_is_not_enough(study):
    write(study / "speed.json", benched(dict(full=[10.0], lora=[5.0]), **SMOL))
    (found,) = on_time(study)
    assert found.verdict == "not asked" and "--rounds 5" in found.why
