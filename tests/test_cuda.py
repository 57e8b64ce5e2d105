"An NVIDIA GPU computes, trains and draws as the processor does; skipped where there is none."
import numpy as np
import pytest
from test_evaluate import prompts
from test_trainer import DPO, SFT, answers, pair_rows, tuned

from sftdpo.batches import best_precision, score
from sftdpo.config import Sampling
from sftdpo.measures.sampling import generate_ids
from sftdpo.trainer import train_stage

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_scores(architecture, tuning, tokenizer):
    rows, model = pair_rows(), tuned(architecture, tokenizer, tuning)
    on_cpu = score(model, rows, precision="fp32")
    model.cuda()
    np.testing.assert_allclose(score(model, rows, precision="fp32"), on_cpu, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(score(model, rows, precision="bf16"), on_cpu, rtol=0.05, atol=0.5)


@pytest.mark.parametrize("stage", [SFT, DPO, DPO.replace(gradient_checkpointing=True), SFT.replace(micro_batch_size=2)], ids=["sft", "dpo", "recomputed", "accumulated"])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_trains(tuning, stage, tokenizer):
    rows = pair_rows() if stage.kind == "dpo" else answers(pair_rows())
    here, there = (train_stage(model, rows, stage, held_out=rows[:6], progress=False).history
                   for model in (tuned("llama", tokenizer, tuning), tuned("llama", tokenizer, tuning).cuda()))
    np.testing.assert_allclose(there.loss.dropna(), here.loss.dropna(), rtol=5e-3)
    np.testing.assert_allclose(there.held_out_loss.dropna(), here.held_out_loss.dropna(), rtol=5e-3)


def test_draws_the_same_texts(tokenizer):
    model, sampling = tuned("llama", tokenizer, "full").eval(), Sampling(samples=3, max_new_tokens=20)
    on_cpu = generate_ids(model, tokenizer, prompts, sampling, 0, precision="fp32")
    on_gpu = generate_ids(model.cuda(), tokenizer, prompts, sampling, 0, precision="fp32")
    equal = [a == b for some, others in zip(on_cpu, on_gpu) for a, b in zip(some, others)]
    assert np.mean(equal) > 0.8  # rounding may turn a choice between two words


def test_computes_in_bf16():
    assert best_precision("cuda") == "bf16"
