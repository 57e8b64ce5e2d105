"Every fast path against the plain one: PEFT's own layers, all logits at once, a whole last block, kept activations."
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from test_trainer import DPO, SFT, answers, pair_rows, trained, tuned
from tiny import tiny_model
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    NanoChatConfig,
    NanoChatForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import sftdpo.batches
import sftdpo.trainer
from sftdpo.batches import Scorer, collate, score
from sftdpo.config import LoRA
from sftdpo.engine.fast_lora import SharedInput, fast_lora, lora_groups
from sftdpo.model import add_adapter, apply_tuning, save_policy
from sftdpo.reading.rows import Row
from sftdpo.trainer import sparse_embedding, stage_losses, train_stage

TWENTY = dict(epochs=4, batch_size=4, learning_rate=1e-3)  # 20 rows: 20 steps


@pytest.fixture
def plainly(monkeypatch):
    "A context in which nothing is fast."
    @contextmanager
    def plain():
        with monkeypatch.context() as patch:
            patch.setattr(sftdpo.trainer, "fast_lora", lambda model: nothing())
            patch.setattr(sftdpo.trainer, "sparse_embedding", lambda causal: nothing())
            patch.setattr(sftdpo.batches, "last_layers", lambda causal: [])
            patch.setattr(sftdpo.batches, "AT_ONCE", 2**40)
            yield
    @contextmanager
    def nothing(): yield
    return plain


@pytest.fixture
def chunks(monkeypatch):
    "Chunks of three places of the tiny vocabulary."
    monkeypatch.setattr(sftdpo.batches, "AT_ONCE", 3 * 400)


def vector(tensors): return torch.cat([tensor.flatten() for tensor in tensors])


def gradients(model, rows, stage, precision):
    "Losses of rows, and the gradient of their sum."
    policy = Scorer(model, precision).train()(**collate(rows))
    reference = policy.detach() - torch.linspace(-2, 2, policy.numel()).view_as(policy)  # margins that are not zero
    losses, _ = stage_losses(policy, reference, stage)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return losses.detach(), vector(torch.autograd.grad(losses.sum(), weights))


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("stage", [SFT, DPO], ids=["sft", "dpo"])
def test_twenty_steps_end_alike(stage, architecture, tuning, tokenizer, plainly, chunks):
    rows, stage = pair_rows(20), stage.replace(**TWENTY)
    rows = rows if stage.kind == "dpo" else answers(rows)
    with plainly():
        plain = tuned(architecture, tokenizer, tuning)
        start = vector(trained(plain).values())
        expected = train_stage(plain, rows, stage, progress=False)
    fast = tuned(architecture, tokenizer, tuning)
    found = train_stage(fast, rows, stage, progress=False)
    assert found.steps == 20
    for name in ("loss", "grad_norm"): assert found.history[name].tolist() == pytest.approx(expected.history[name].tolist(), rel=2e-3, abs=1e-5)
    one, other = vector(trained(plain).values()), vector(trained(fast).values())
    assert 0.01 * (one - start).norm() > (one - other).norm()


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("stage", [SFT, DPO], ids=["sft", "dpo"])
def test_losses_and_gradients(stage, architecture, tuning, tokenizer, plainly, chunks):
    rows = pair_rows(7) if stage.kind == "dpo" else answers(pair_rows(7))
    model = tuned(architecture, tokenizer, tuning)
    with plainly():
        losses, expected = gradients(model, rows, stage, "fp32")
        rough_losses, rough = gradients(model, rows, stage, "bf16")
    with fast_lora(model):
        fast_losses, fast = gradients(model, rows, stage, "fp32")
        fast_rough_losses, fast_rough = gradients(model, rows, stage, "bf16")
    torch.testing.assert_close(fast_losses, losses, rtol=1e-5, atol=1e-5)
    assert (fast - expected).norm() < 1e-5 * expected.norm()
    assert fast_rough.dtype == torch.float32
    assert (fast_rough - expected).norm() < 1.5 * (rough - expected).norm()  # bf16 strays no further than it does plainly
    assert (fast_rough_losses - losses).norm() < 1.5 * (rough_losses - losses).norm() + 0.01 * losses.norm()


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_fast_adapter_is_an_ordinary_one(architecture, tokenizer, tmp_path):
    "Saved, and loaded by PEFT alone, it gives the logits that it was trained to."
    base = save_policy(tiny_model(architecture, tokenizer), tokenizer, tmp_path / "base")
    model = add_adapter(AutoModelForCausalLM.from_pretrained(base), LoRA(rank=4), seed=0)
    names = set(model.state_dict())
    train_stage(model, answers(pair_rows(20)), SFT, progress=False)
    assert set(model.state_dict()) == names and not any("forward" in vars(layer) for layer in model.modules())
    save_policy(model, tokenizer, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        expected, untrained = loaded(input_ids=ids).logits, AutoModelForCausalLM.from_pretrained(base).eval()(input_ids=ids).logits
        with fast_lora(model): fast = model.eval()(input_ids=ids).logits
    torch.testing.assert_close(fast, expected, rtol=1e-4, atol=1e-4)
    assert (expected - untrained).abs().max() > 0.1


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_layers_with_one_input_are_computed_together(architecture, tokenizer):
    model = tuned(architecture, tokenizer, "lora")
    assert [len(group) for group in lora_groups(model)] == ([1, 1, 1, 1] if architecture == "gpt2" else [3, 1, 2, 1]) * 2


def test_what_is_not_plain_keeps_its_own_computation(tokenizer):
    model = apply_tuning(tiny_model("llama", tokenizer), "lora", LoRA(rank=4, dropout=0.1))
    assert lora_groups(model) == [] and lora_groups(tiny_model("llama", tokenizer)) == []
    model = tuned("llama", tokenizer, "lora")
    with model.disable_adapter(): assert lora_groups(model) == []
    assert lora_groups(tuned("llama", tokenizer, "lora").to(torch.bfloat16)) == []
    model.merge_adapter()
    assert lora_groups(model) == []


def test_a_bias_that_peft_trains_is_trained(tokenizer):
    # At 2313f6f5 the fast layers detached it: it was counted as trained and stayed as it was.
    model = get_peft_model(tiny_model("gpt2", tokenizer), LoraConfig(r=4, target_modules=["c_attn", "c_proj"], bias="lora_only", fan_in_fan_out=True))
    biases = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad and name.endswith("base_layer.bias")}
    train_stage(model, answers(pair_rows()), SFT, progress=False)
    assert biases and all((weight != biases[name]).any() for name, weight in model.named_parameters() if name in biases)


@pytest.mark.parametrize("cap", [None, 15.0])
def test_a_cap_on_logits_is_never_overlooked(cap, tokenizer):
    # At 2313f6f5 the fast route was taken where logits were too small at the start for the cap to show.
    config = NanoChatConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48, max_position_embeddings=256,
                            vocab_size=len(tokenizer), final_logit_softcapping=cap)
    assert Scorer(NanoChatForCausalLM._from_config(config, attn_implementation="sdpa"), "fp32").fast == (cap is None)


def test_layers_are_given_back_after_an_error(tokenizer):
    model = tuned("llama", tokenizer, "lora")
    with pytest.raises(KeyError), fast_lora(model): raise KeyError
    assert not any("forward" in vars(layer) for layer in model.modules())


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_recomputed_activations_change_nothing(architecture, tuning, tokenizer):
    def result(**settings):
        model = tuned(architecture, tokenizer, tuning)
        train_stage(model, answers(pair_rows(20)), SFT.replace(**TWENTY, **settings), progress=False)
        assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        return trained(model)
    expected = result()
    start = vector(trained(tuned(architecture, tokenizer, tuning)).values())
    found = result(gradient_checkpointing=True)
    assert (vector(found.values()) - vector(expected.values())).norm() < 0.01 * (vector(expected.values()) - start).norm()


def test_a_tied_embedding_has_a_gradient_of_the_tokens_that_were_read(tokenizer, monkeypatch):
    model, seen = tiny_model("gpt2", tokenizer).train(), []
    scorer, batch = Scorer(model, "fp32"), collate(pair_rows(4))
    embed = torch.nn.functional.embedding
    monkeypatch.setattr(torch.nn.functional, "embedding", lambda ids, weight, *rest: seen.append(rest[-1]) or embed(ids, weight, *rest))
    def gradient():
        model.zero_grad()
        scorer(**batch).sum().backward()
        return model.transformer.wte.weight.grad.clone()
    dense = gradient()
    with sparse_embedding(model): rows = gradient()
    assert True in seen and not rows.is_sparse and not model.transformer.wte.sparse
    torch.testing.assert_close(rows, dense)


def test_recomputing_happens(tokenizer):
    "Each block runs forward twice a step."
    counts = {}
    for recompute in (False, True):
        model = tuned("llama", tokenizer, "full")
        seen = []
        model.model.layers[0].input_layernorm.register_forward_hook(lambda layer, *_: seen.append(1) if layer.training else None)
        train_stage(model, answers(pair_rows(8)), SFT.replace(epochs=1, gradient_checkpointing=recompute), progress=False)
        counts[recompute] = len(seen)
    assert counts == {False: 1, True: 2}


@pytest.mark.parametrize("config, kind", [(Qwen2Config, Qwen2ForCausalLM), (MistralConfig, MistralForCausalLM)])
def test_the_last_block_of_other_types(config, kind, tokenizer, plainly):
    torch.manual_seed(0)
    model = kind(config(vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                        num_key_value_heads=1, initializer_range=0.3)).eval()
    rows = pair_rows(9)
    assert len(sftdpo.batches.last_layers(model)) == 2
    with plainly(): expected = score(model, rows, precision="fp32")
    np.testing.assert_allclose(score(model, rows, precision="fp32"), expected, rtol=1e-5)


def test_the_last_block_works_at_scored_places_only(tokenizer):
    model = tuned("llama", tokenizer, "full")
    seen, scorer = [], Scorer(model, "fp32")
    model.model.layers[1].mlp.down_proj.register_forward_hook(lambda layer, inputs, output: seen.append(tuple(output.shape)))
    score(scorer, [Row("a", [1] * 30, [[5], [6]]), Row("b", [2] * 30, [[7], [8]])])
    assert seen == [(2, 64)]


@pytest.mark.parametrize("slow", [torch.float32, torch.bfloat16])
def test_the_precision_is_that_of_the_faster_products(slow, monkeypatch, request):
    "Processors that have bf16 products may compute them slowly: they are timed."
    request.addfinalizer(sftdpo.batches.bf16_is_faster.cache_clear)
    sftdpo.batches.bf16_is_faster.cache_clear()
    multiply = torch.mm
    monkeypatch.setattr(torch, "mm", lambda left, right: time.sleep(.01 * (left.dtype == slow)) or multiply(left[:1], right))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    for device in ("cpu", torch.device("cpu")): assert sftdpo.batches.best_precision(device) == ("bf16" if slow == torch.float32 else "fp32")
    monkeypatch.setattr(torch, "mm", multiply)
    assert sftdpo.batches.best_precision() == ("bf16" if slow == torch.float32 else "fp32"), "one process has one answer"


def test_emulated_bf16_is_not_taken(monkeypatch):
    monkeypatch.setattr(sftdpo.batches, "bf16_is_faster", lambda: True)
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"): monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert sftdpo.batches.best_precision() == "fp32"


def test_a_pass_that_runs_out_of_memory_leaves_nothing_waiting(tokenizer, monkeypatch):
    "At cad44a56 what one of two layers with the same input had computed stayed, with the graph of all blocks before it, and half the rows did not fit either."
    model, calls, waiting, groups = tuned("llama", tokenizer, "lora"), [], [], []
    block = model.get_base_model().model.layers[-1].mlp
    act, halve, made = block.act_fn, sftdpo.trainer.halve, SharedInput.__init__
    class FailsOnce(torch.nn.Module):
        def forward(self, values):
            calls.extend([len(values)] * torch.is_grad_enabled())
            if len(calls) == 1 and torch.is_grad_enabled(): raise torch.OutOfMemoryError("CUDA out of memory.")
            return act(values)
    block.act_fn = FailsOnce()
    monkeypatch.setattr(SharedInput, "__init__", lambda self, layers: groups.append(self) or made(self, layers))
    monkeypatch.setattr(sftdpo.trainer, "halve", lambda size, where: waiting.append(sum(len(one.waiting) for one in groups)) or halve(size, where))
    with pytest.warns(UserWarning, match="going on with 4"): train_stage(model, answers(pair_rows()), SFT.replace(evaluations=0), progress=False)
    assert groups and waiting == [0]
