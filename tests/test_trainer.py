"A stage of training: equal to TRL's, to plain computation, to itself after a stop."
import functools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import PeftModel
from tiny import tiny_model, tiny_of

from sftdpo.batches import Scorer, collate, epoch_batches, score
from sftdpo.config import LoRA, Stage
from sftdpo.data import Row
from sftdpo.engine.checkpoints import write_scores
from sftdpo.loss import sequence_log_probabilities
from sftdpo.model import apply_tuning, without_subnormals
from sftdpo.trainer import StageTrainer, Watch, check_start, completion_tokens, similarity, stage_losses, train_stage

SFT = Stage("sft", learning_rate=3e-3, epochs=2, batch_size=8, precision="fp32")
DPO = Stage("dpo", learning_rate=3e-3, epochs=2, batch_size=8, precision="fp32")


def pair_rows(size=21, seed=0, one_token=False):
    "Pairs of unequal lengths: prompts of 2 to 9 tokens, completions of 1 to 6."
    random = np.random.default_rng(seed)
    ids = lambda low, high: random.integers(1, 300, random.integers(low, high)).tolist()
    return [Row(f"row {i}", ids(2, 10), [ids(1, 2 if one_token else 7), ids(1, 2 if one_token else 7)]) for i in range(size)]


def answers(rows):
    return [Row(row.id, row.prompt, row.completions[:1]) for row in rows]


def tuned(architecture, tokenizer, tuning, dropout=0.0):
    model = apply_tuning(tiny_model(architecture, tokenizer, dropout), tuning, LoRA(rank=4), seed=0)
    if tuning == "lora":  # an adapter that already does something: B starts at zero, and hides A's gradient
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name: weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(len(name)))
    return model


def trained(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def gradients(model, loss):
    loss.backward()
    found = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.requires_grad])
    model.zero_grad()
    return found


@pytest.mark.parametrize("stage", [SFT, DPO], ids=["sft", "dpo"])
def test_trl_trains_where_several_devices_are_seen(stage, tokenizer, tmp_path, monkeypatch):
    "At cad44a56 it refused, and spoke of `accelerate launch`."
    from transformers import TrainingArguments

    from sftdpo.engine.trl_engine import trl_trainer
    made = TrainingArguments.__post_init__
    def with_two(self):
        made(self)
        assert self.device
        self._n_gpu = 2
    monkeypatch.setattr(TrainingArguments, "__post_init__", with_two)
    rows = pair_rows(4)
    trainer = trl_trainer(tuned("gpt2", tokenizer, "lora"), tokenizer, rows if stage.kind == "dpo" else answers(rows), stage, 0, np.zeros((4, 2)) if stage.kind == "dpo" else None, tmp_path)
    assert trainer.args.n_gpu == 1


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("stage", [SFT, DPO, DPO.replace(label_smoothing=0.2), DPO.replace(sft_weight=0.7), DPO.replace(sft_weight=2, label_smoothing=0.2),
                                   DPO.replace(sft_weight=0.7, loss="hinge")], ids=["sft", "dpo", "cdpo", "dpo+sft", "cdpo+sft", "hinge+sft"])
def test_loss_and_gradients_equal_trl(stage, architecture, tuning, tokenizer, tmp_path):
    from sftdpo.engine.trl_engine import trl_trainer
    pairs = pair_rows(7)
    rows = pairs if stage.kind == "dpo" else answers(pairs)
    model = tuned(architecture, tokenizer, tuning)
    reference = None
    if stage.kind == "dpo":  # a reference that differs from the policy, so that margins are not all zero
        reference = score(model, rows, precision="fp32") + np.random.default_rng(1).normal(0, 5, (7, 2))
    tokens = completion_tokens(rows)
    losses, _ = stage_losses(Scorer(model, "fp32")(**collate(rows)), None if reference is None else torch.tensor(reference).float(), stage, tokens, tokens[:, 0].double().mean().item())
    ours = losses.sum() / (len(rows) if stage.kind == "dpo" else sum(len(row.completions[0]) for row in rows))
    our_gradients = gradients(model, ours)
    trainer = trl_trainer(model, tokenizer, rows, stage.replace(batch_size=7), 0, reference, tmp_path)
    theirs = trainer.compute_loss(model, trainer.data_collator(list(trainer.train_dataset)))
    their_gradients = gradients(model, theirs)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-4)
    assert (our_gradients - their_gradients).norm() <= 1e-4 * their_gradients.norm()


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_row_equals_separate_sequences(architecture, tokenizer):
    model = tiny_model(architecture, tokenizer).eval()
    rows = pair_rows(12)
    found = score(model, rows, tokens_per_batch=64, precision="fp32")
    for row, scores in zip(rows, found):
        for completion, value in zip(row.completions, scores):
            ids = torch.tensor([row.prompt + completion])
            mask = torch.tensor([[0] * (len(row.prompt) - 1) + [1] * len(completion)])
            with torch.no_grad(): alone = sequence_log_probabilities(model(ids[:, :-1]).logits, ids[:, 1:], mask)
            assert value == pytest.approx(alone.item(), abs=1e-4)


def test_completions_do_not_see_each_other(tiny_gpt2):
    model, _ = tiny_gpt2
    first = score(model, [Row("a", [5, 6], [[7, 8, 9], [10, 11, 12]])], precision="fp32")
    other = score(model, [Row("a", [5, 6], [[70, 80, 90], [10, 11, 12]])], precision="fp32")
    assert first[0, 1] == pytest.approx(other[0, 1], abs=1e-6) and abs(first[0, 0] - other[0, 0]) > 0.1


def alone(model, rows):
    "Log-probabilities by the model's own forward, each completion for itself."
    found = []
    for row in rows:
        for completion in row.completions:
            with torch.no_grad(): logits = model(torch.tensor([row.prompt + completion[:-1]])).logits[0, len(row.prompt) - 1:]
            found.append(logits.float().log_softmax(-1)[range(len(completion)), completion].sum().item())
    return np.array(found).reshape(len(rows), -1)


OTHERS = {  # model type: settings, and whether decoder and projection are all that it does
    "gpt2": (dict(n_embd=32, n_layer=2, n_head=2), True), "qwen3": ({}, True), "gemma3_text": (dict(final_logit_softcapping=2.0), False),
    "granite": (dict(logits_scaling=8.0), False), "cohere": (dict(logit_scale=0.0625), False),
    "modernbert-decoder": (dict(layer_types=["full_attention", "sliding_attention"], pad_token_id=0), False)}


@pytest.mark.parametrize("kind", OTHERS)
def test_every_type_is_scored_as_by_its_own_forward(kind):
    settings, fast = OTHERS[kind]
    model, rows, state = tiny_of(kind, **settings).train(), pair_rows(9), torch.random.get_rng_state()
    scorer = Scorer(model, "fp32")
    assert torch.equal(state, torch.random.get_rng_state()) and scorer.training and model.training
    assert scorer.fast == fast
    found = score(scorer, rows)
    np.testing.assert_allclose(found, alone(model.eval(), rows), atol=1e-3)


def test_a_decoder_that_cannot_be_called_is_scored_by_its_own_forward(tiny_llama):
    model, rows = tiny_llama[0].eval(), pair_rows(5)
    expected, model.get_decoder = score(model, rows, precision="fp32"), lambda: model.lm_head
    assert not Scorer(model).fast
    np.testing.assert_allclose(score(model, rows, precision="fp32"), expected, atol=1e-4)


def test_models_that_mix_completions_are_refused(tokenizer):
    with pytest.raises(ValueError, match="Lfm2ForCausalLM .lfm2. has layers of the type conv"): Scorer(tiny_of("lfm2", layer_types=["conv", "full_attention"]))
    eager = tiny_model("llama", tokenizer)
    eager.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="LlamaForCausalLM computes attention with 'eager', .*attn_implementation='sdpa'"): Scorer(eager)
    with pytest.raises(ValueError, match="FalconForCausalLM .falcon. tells positions by ALiBi"): Scorer(tiny_of("falcon", alibi=True))


def test_a_sliding_window_bounds_rows_with_several_completions():
    "A window of 4: one completion a row may be longer, two may not; side by side they may take more than 4 places."
    model = tiny_of("gemma3_text", sliding_window=4, layer_types=["sliding_attention", "full_attention"])
    single, short, longer = Row("a", [5, 6, 7], [[8, 9, 10, 11]]), Row("b", [5, 6], [[8, 9, 10], [11, 12, 13]]), Row("c", [5, 6], [[8, 9, 10], [11, 12, 13, 14]])
    for row in (single, short): np.testing.assert_allclose(score(model, [row], precision="fp32"), alone(model, [row]), atol=1e-4)
    with pytest.raises(ValueError, match="has 5 tokens, more than the window of 4 that Gemma3ForCausalLM has.*use shorter prompts"): score(model, [longer], precision="fp32")


def common_logits(tokenizer):
    "A GPT-2 whose logits all lie near -80, as the published one's do: a common part of all embeddings, and a hidden state that meets it."
    model = tiny_model("gpt2", tokenizer).eval()
    with torch.no_grad():
        model.transformer.ln_f.bias[0] -= 30
        model.transformer.wte.weight[:, 0] = 3
    return model


@pytest.mark.parametrize("at_once", [2**24, 400])
def test_answers_of_one_token_do_not_tie_in_bf16(at_once, tokenizer, monkeypatch):
    monkeypatch.setattr("sftdpo.batches.AT_ONCE", at_once)
    model, answers = common_logits(tokenizer), list(range(1, 40))
    rows = [Row(str(i), [5 + i, 6, 7], [[answer] for answer in answers]) for i in range(4)]
    exact, rough = score(model, rows, precision="fp32"), score(model, rows, precision="bf16")
    with torch.no_grad(): assert model(torch.tensor([rows[0].prompt])).logits[0, -1].mean() == pytest.approx(-80, abs=5)
    assert abs(rough - exact).max() < 0.2 and all(len(set(row)) == len(answers) for row in rough)
    policy = Scorer(model, "bf16").train()(**collate(rows))
    assert policy.requires_grad
    np.testing.assert_allclose(policy.detach(), rough, atol=0.05)


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_dpo_starts_at_log_2(architecture, tuning, tokenizer):
    "Also with GPT-2's dropout of 0.1, and after an SFT stage: the reference is the policy that enters."
    model = tuned(architecture, tokenizer, tuning, dropout=0.1)
    rows = pair_rows()
    train_stage(model, answers(rows), SFT, progress=False)
    history = train_stage(model, rows, DPO, held_out=rows[:6], progress=False).history
    assert history.loss.dropna().iloc[0] == pytest.approx(math.log(2), abs=1e-5)
    assert history.held_out_loss.dropna().iloc[0] == pytest.approx(math.log(2), abs=1e-5)
    assert history.held_out_reward_accuracy.dropna().iloc[0] == 0.5
    assert history.held_out_reward_accuracy.dropna().iloc[-1] > 0.8
    if tuning == "lora": assert isinstance(model, PeftModel) and len(model.peft_config) == 1


@pytest.mark.parametrize("stage", [SFT, DPO, DPO.replace(sft_weight=5)], ids=["sft", "dpo", "dpo+sft"])
@pytest.mark.parametrize("micro_batch", [1, 4])
def test_accumulation_equals_one_batch(stage, micro_batch, tokenizer):
    rows = pair_rows() if stage.kind == "dpo" else answers(pair_rows())
    whole, split = (tuned("gpt2", tokenizer, "full") for _ in range(2))
    first = train_stage(whole, rows, stage, progress=False)
    second = train_stage(split, rows, stage.replace(micro_batch_size=micro_batch), progress=False)
    for name in ("loss", "grad_norm"): assert first.history[name].tolist() == pytest.approx(second.history[name].tolist(), rel=1e-3)
    assert first.history.loss[0] == pytest.approx(second.history.loss[0], rel=1e-5)
    start = torch.cat([weight.flatten() for weight in tuned("gpt2", tokenizer, "full").parameters()])
    one, other = (torch.cat([weight.flatten() for weight in model.parameters()]) for model in (whole, split))
    assert (one - other).norm() < 0.01 * (one - start).norm()


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_seed_decides(dropout, tokenizer):
    "Without dropout it still decides the order."
    def weights(seed):
        model = tuned("gpt2", tokenizer, "full")
        train_stage(model, answers(pair_rows()), SFT.replace(dropout=dropout), seed=seed, progress=False)
        return trained(model)
    assert same(weights(0), weights(0)) and not same(weights(0), weights(1))


@pytest.mark.parametrize("change", [dict(weight_decay=0.5), dict(max_gradient_norm=1e-9), dict(precision="bf16")], ids=str)
def test_a_stage_is_trained_with_its_options(change, tokenizer):
    def weights(stage):
        model = tuned("gpt2", tokenizer, "full")
        train_stage(model, answers(pair_rows(8)), stage, progress=False)
        return trained(model)
    assert not same(weights(SFT), weights(SFT.replace(**change)))


def test_looking_changes_nothing(tokenizer):
    def weights(**looking):
        model = tuned("gpt2", tokenizer, "full")
        train_stage(model, answers(pair_rows()), SFT.replace(dropout=0.1), progress=False, **looking)
        return trained(model)
    assert same(weights(), weights(held_out=answers(pair_rows(5, seed=1))))


class Stop(Exception): pass


def to_resume(kind):
    "The rows and the stage of a test that stops it."
    return (pair_rows(), DPO) if kind == "dpo" else (answers(pair_rows()), SFT)


@pytest.fixture(scope="module")
def undisturbed(tokenizer):
    "The policy of a stage that nothing stops, and how it went; each is trained once."
    @functools.cache
    def trained_whole(kind, tuning):
        rows, stage = to_resume(kind)
        model = tuned("gpt2", tokenizer, tuning)
        return model, train_stage(model, rows, stage.replace(checkpoint_steps=1, micro_batch_size=4, dropout=0.1), held_out=rows[:4], progress=False)
    return trained_whole


@pytest.mark.parametrize("at", [2, 3, 4, 5])
@pytest.mark.parametrize("kind, tuning", [("sft", "full"), ("dpo", "full"), ("sft", "lora"), ("dpo", "lora")])
def test_resumed_equals_undisturbed(kind, tuning, at, undisturbed, tokenizer, tmp_path, monkeypatch):
    "Stopped in either epoch or between them, with dropout: the same weights, history and table of pairs, to the bit."
    rows, stage = to_resume(kind)
    stage = stage.replace(checkpoint_steps=1, micro_batch_size=4, dropout=0.1)
    policy, whole = undisturbed(kind, tuning)
    expected = whole.history

    begin = Watch.on_step_begin
    def stop(self, args, state, *rest, **more):
        begin(self, args, state, *rest, **more)
        if state.global_step == at: raise Stop
    with monkeypatch.context() as patch:
        patch.setattr(Watch, "on_step_begin", stop)
        with pytest.raises(Stop): train_stage(tuned("gpt2", tokenizer, tuning), rows, stage, held_out=rows[:4], folder=tmp_path, progress=False)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [f"checkpoint-{at}"]
    resumed = tuned("gpt2", tokenizer, tuning)
    again = train_stage(resumed, rows, stage, held_out=rows[:4], folder=tmp_path, progress=False)
    found = again.history
    assert (whole.pairs is None and again.pairs is None) if kind == "sft" else whole.pairs.equals(again.pairs)
    assert same(trained(policy), trained(resumed))
    watched = [name for name in expected if name not in ("seconds", "elapsed")]
    assert found[watched].equals(expected[watched])


def test_stages_run_without_dropout_unless_asked(tokenizer):
    "A model that comes with dropout: the first loss of either kind of stage is that of the model as it is judged."
    for stage, rows in ((SFT, answers(pair_rows(8))), (DPO, pair_rows(8)), (DPO.replace(sft_weight=0.7), pair_rows(8))):
        history = train_stage(tuned("gpt2", tokenizer, "full", dropout=0.3), rows, stage, held_out=rows, progress=False).history
        assert history.loss.dropna().iloc[0] == pytest.approx(history.held_out_loss.dropna().iloc[0], abs=1e-5)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
@pytest.mark.parametrize("engine", ["sftdpo", "trl"])
def test_dropout_that_is_asked_for_holds_in_every_stage(engine, kind, tokenizer):
    from sftdpo.engine.trl_engine import train_stage_with_trl
    stage, rows = (SFT, answers(pair_rows(8))) if kind == "sft" else (DPO, pair_rows(8))
    def weights(**settings):
        model = tuned("gpt2", tokenizer, "full")
        if engine == "trl": train_stage_with_trl(model, tokenizer, rows, stage.replace(**settings), progress=False)
        else: train_stage(model, rows, stage.replace(**settings), progress=False)
        return trained(model)
    assert same(weights(dropout=0.2), weights(dropout=0.2)) and not same(weights(dropout=0.2), weights())


def test_dpo_checks_its_start_also_with_dropout(tokenizer, monkeypatch):
    "The start is compared without the dropout: a right one passes, a wrong one does not."
    import sftdpo.trainer
    model = apply_tuning(tiny_model("gpt2", tokenizer), "lora", LoRA(rank=4, dropout=0.3), seed=0)
    train_stage(model, pair_rows(8), DPO.replace(dropout=0.3, epochs=1), progress=False)
    score_rightly = sftdpo.trainer.reference_of
    def wrongly(*arguments):
        scores, held_out, seconds = score_rightly(*arguments)
        return scores + np.array([5.0, 0.0]), held_out, seconds
    monkeypatch.setattr(sftdpo.trainer, "reference_of", wrongly)
    with pytest.raises(ValueError, match="nats a token from its reference"): train_stage(tuned("gpt2", tokenizer, "full"), pair_rows(8), DPO.replace(dropout=0.3), progress=False)


def test_the_sft_term_keeps_chosen_completions_likely(tokenizer):
    changes = {}
    for weight in (0, 5):
        result = train_stage(tuned("gpt2", tokenizer, "full"), pair_rows(), DPO.replace(sft_weight=weight, epochs=4), held_out=pair_rows(), progress=False)
        changes[weight] = result.pairs.chosen_change.mean()
        assert ("preference_loss" in result.history) == bool(weight)
    assert changes[5] > changes[0] + 1
    assert result.history.preference_loss.dropna().iloc[0] == pytest.approx(math.log(2), abs=1e-5) and result.history.loss.dropna().iloc[0] > 5


def test_pairs_by_hand_and_without_a_further_pass(tokenizer, monkeypatch):
    "What became of each held-out pair is what two passes say; the stage scores held-out rows as often as before."
    rows, held_out, passes = pair_rows(), pair_rows(6, seed=1), []
    model = tuned("gpt2", tokenizer, "full")
    before = score(model, held_out, precision="fp32")
    import sftdpo.trainer
    scoring = sftdpo.trainer.score_together
    monkeypatch.setattr(sftdpo.trainer, "score_together", lambda *rest: passes.append(1) or scoring(*rest))
    pairs = train_stage(model, rows, DPO.replace(evaluations=2), held_out=held_out, progress=False).pairs
    assert len(passes) == 3  # the start and two looks
    after = score(model, held_out, precision="fp32")
    pairs = pairs.set_index("id").loc[[row.id for row in held_out]]
    np.testing.assert_allclose(pairs[["chosen_change", "rejected_change"]], after - before, atol=1e-4)
    np.testing.assert_allclose(pairs[["chosen_start", "rejected_start"]], before, atol=1e-4)
    assert pairs.chosen_tokens.tolist() == [len(row.completions[0]) for row in held_out]
    assert pairs.similarity.tolist() == [similarity(*row.completions) for row in held_out]
    assert similarity([1, 2, 3], [1, 2, 4]) == pytest.approx(2 / 3)
    assert train_stage(tuned("gpt2", tokenizer, "full"), rows, DPO.replace(evaluations=0), held_out=held_out, progress=False).pairs is None


def test_a_left_over_reference_is_not_believed(tokenizer, tmp_path):
    "Scores of another policy or other rows carry another key."
    rows = pair_rows()
    write_scores(tmp_path / "reference.npz", "of another policy", np.full((len(rows), 2), -1.0), 1.0)
    history = train_stage(tuned("gpt2", tokenizer, "full"), rows, DPO, folder=tmp_path, progress=False).history
    assert history.loss.dropna().iloc[0] == pytest.approx(math.log(2), abs=1e-5)


def test_a_wrong_reference_ends_the_stage(tokenizer, monkeypatch):
    import sftdpo.trainer
    score_rightly = sftdpo.trainer.reference_of
    def wrongly(*arguments):
        scores, held_out, seconds = score_rightly(*arguments)
        return scores + np.array([5.0, 0.0]), held_out, seconds
    monkeypatch.setattr(sftdpo.trainer, "reference_of", wrongly)
    with pytest.raises(ValueError, match="nats a token from its reference, where both are the same model"): train_stage(tuned("gpt2", tokenizer, "full"), pair_rows(), DPO, progress=False)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("loss", [dict(loss="ipo", beta=0.01), dict(loss="ipo", beta=0.5), dict(beta=5.0), dict(loss="hinge", beta=2.0)], ids=str)
def test_a_right_start_is_right_for_every_loss(loss, precision, tokenizer):
    rows = [Row(row.id, row.prompt, [completion * 12 for completion in row.completions]) for row in pair_rows(8)]
    train_stage(common_logits(tokenizer), rows, DPO.replace(epochs=1, precision=precision, **loss), progress=False)


def test_a_wrong_start_is_wrong_for_every_beta(tokenizer, monkeypatch):
    "Dropout that was left on moves log-probabilities, whatever a small beta makes of that."
    monkeypatch.setattr("sftdpo.trainer.set_dropout", lambda model, probability: None)
    for beta in (1e-4, 0.1):
        with pytest.raises(ValueError, match="or dropout is on. Delete the stage's folder"): train_stage(tuned("gpt2", tokenizer, "full", dropout=0.1), pair_rows(), DPO.replace(beta=beta), progress=False)
    policy = torch.tensor([[-3.0, -40.0]])
    check_start(policy, policy + 1, tokens=12, precision="bf16")
    with pytest.raises(ValueError, match="starts 0.1667 nats a token"): check_start(policy, policy + 1, tokens=12, precision="fp32")


@pytest.mark.parametrize("schedule, expected", [("constant", [0.0, 1 / 3, 2 / 3, 1.0, 1.0, 1.0]), ("linear", [0.0, 1 / 3, 2 / 3, 1.0, 2 / 3, 1 / 3])])
def test_every_schedule_warms_up(schedule, expected, tokenizer):
    from sftdpo.engine.trl_engine import train_stage_with_trl
    stage, rows = SFT.replace(schedule=schedule, warmup=0.5), answers(pair_rows())
    ours = train_stage(tuned("gpt2", tokenizer, "full"), rows, stage, progress=False)
    theirs = train_stage_with_trl(tuned("gpt2", tokenizer, "full"), tokenizer, rows, stage, progress=False)
    for result in (ours, theirs): assert result.history.learning_rate.dropna().tolist() == pytest.approx([3e-3 * share for share in expected])


def test_step_times_wait_for_the_gpu(monkeypatch):
    "A made-up GPU that needs two seconds for what a step gave it, and one for what came before."
    now, left = [0.0], [1.0]
    def synchronize():
        now[0] += left[0]
        left[0] = 0.0
    monkeypatch.setattr("sftdpo.trainer.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("sftdpo.trainer.torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("sftdpo.trainer.torch.cuda.synchronize", synchronize)
    watch = Watch([], None, False, "")
    watch.trainer, watch.bar = SimpleNamespace(train_dataset=[], stage=SFT.replace(checkpoint_minutes=0)), SimpleNamespace(n=0, update=lambda n: None)
    watch.total, state = 8, SimpleNamespace(global_step=1)
    watch.on_step_begin(None, state, None)
    left[0] = 2.0
    watch.on_step_end(None, state, None)
    assert watch.duration == 2.0


def test_stopped_after_the_last_step(tokenizer, tmp_path, monkeypatch):
    rows, stage, held_out = pair_rows(), DPO.replace(checkpoint_steps=1), pair_rows(6, seed=1)
    undisturbed = tuned("gpt2", tokenizer, "full")
    expected = train_stage(undisturbed, rows, stage, held_out=held_out, progress=False)
    def stop(*rest, **more): raise Stop
    with monkeypatch.context() as patch:
        patch.setattr(Watch, "on_train_end", stop)
        with pytest.raises(Stop): train_stage(tuned("gpt2", tokenizer, "full"), rows, stage, held_out=held_out, folder=tmp_path, progress=False)
    resumed = tuned("gpt2", tokenizer, "full")
    found = train_stage(resumed, rows, stage, held_out=held_out, folder=tmp_path, progress=False)
    assert same(trained(undisturbed), trained(resumed)) and found.steps == expected.steps and found.examples_per_second > 0
    assert found.pairs.equals(expected.pairs)


def test_loss_that_is_not_finite_names_step_and_rows(tokenizer):
    rows = answers(pair_rows())
    rows[5] = Row("the bad one", [9] * 40, [[7]])  # the only row that reaches the broken position
    model = tuned("gpt2", tokenizer, "full")
    with torch.no_grad(): model.transformer.wpe.weight[39] = float("nan")
    step = 1 + next(i for i, batch in enumerate(epoch_batches([len(row.prompt) for row in rows], 8, 0, 0)) if 5 in batch)
    with pytest.raises(FloatingPointError, match=rf"not finite at step {step}, rows .*the bad one.*Lower the learning rate"):
        train_stage(model, rows, SFT, progress=False)


def test_nothing_to_train_on_is_an_error(tiny_gpt2):
    with pytest.raises(ValueError, match="no rows to train on"): train_stage(tiny_gpt2[0], [], SFT)


def test_sft_and_dpo_see_the_same_order(tokenizer, monkeypatch):
    seen = []
    compute = StageTrainer.step_gradients
    monkeypatch.setattr(StageTrainer, "step_gradients", lambda self, model, step: seen.append(step) or compute(self, model, step))
    rows = pair_rows(50)
    train_stage(tuned("gpt2", tokenizer, "full"), answers(rows), SFT, seed=3, progress=False)
    sft, seen[:] = list(seen), []
    train_stage(tuned("gpt2", tokenizer, "full"), rows, DPO, seed=3, progress=False)
    assert seen == sft and sorted(sum(seen[:7], [])) == list(range(50)) and seen[:7] != seen[7:]


def test_engines_leave_no_file_behind(tokenizer, tmp_path, monkeypatch):
    from sftdpo.engine.trl_engine import train_stage_with_trl
    monkeypatch.chdir(tmp_path)
    for stage in (SFT.replace(checkpoint_steps=1, epochs=1), DPO.replace(checkpoint_steps=1, epochs=1)):
        rows = pair_rows() if stage.kind == "dpo" else answers(pair_rows())
        train_stage(tuned("gpt2", tokenizer, "full"), rows, stage, progress=False)
        train_stage_with_trl(tuned("gpt2", tokenizer, "full"), tokenizer, rows, stage, progress=False)
    assert not list(tmp_path.iterdir())


def test_trl_engine_trains_the_same_stage(tokenizer):
    from sftdpo.engine.trl_engine import train_stage_with_trl
    rows = pair_rows()
    for tuning in ("full", "lora"):
        model = tuned("gpt2", tokenizer, tuning, dropout=0.1)
        train_stage_with_trl(model, tokenizer, answers(rows), SFT, progress=False)
        history = train_stage_with_trl(model, tokenizer, rows, DPO, held_out=rows[:6], progress=False).history
        assert history.loss.dropna().iloc[0] == pytest.approx(math.log(2), abs=1e-4)
        assert history.held_out_reward_accuracy.dropna().iloc[-1] > 0.8


def test_trl_starts_at_log_2_in_bf16_too(tokenizer):
    "TRL makes a one-token answer's logits in bf16, so its reference has them in bf16: with a beta of 5, another rounding would show."
    from sftdpo.engine.trl_engine import train_stage_with_trl
    rows = [Row(str(i), [5 + i, 6, 7], [[10 + i], [90 - i]]) for i in range(16)]
    model = common_logits(tokenizer)
    history = train_stage_with_trl(model, tokenizer, rows, DPO.replace(beta=5.0, precision="bf16", batch_size=16), held_out=rows, progress=False).history
    assert [history[name].dropna().iloc[0] for name in ("loss", "held_out_loss")] == pytest.approx([math.log(2)] * 2, abs=0.01)
    assert Scorer(model, "bf16").fast


def test_stages_are_trained_without_subnormal_numbers(monkeypatch):
    "A DPO stage whose pairs were told apart took fifteen seconds a step instead of 0.4: products with subnormal numbers are two hundred times as slow."
    def products(): return bool((tiny * 1e-10).any()), bool((tiny @ torch.full((300, 300), 1e-12)).any())
    before, tiny = torch.get_num_threads(), torch.full((300, 300), 1e-30)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with without_subnormals():
                assert products() == (False, False), "on every thread"
                with without_subnormals(): pass
                assert products() == (False, False), "one context inside another"
            assert products() == (True, True), "what others compute is as it was"
    finally: torch.set_num_threads(before)
    monkeypatch.setattr("sftdpo.trainer.set_dropout", lambda *rest: (_ for _ in ()).throw(InterruptedError(products())))
    with pytest.raises(InterruptedError, match="False, False"): train_stage(None, [Row("a", [1], [[2]])], Stage("sft"), progress=False)
    assert products() == (True, True)


def test_trl_averages_no_sft_term_over_parts_of_a_batch(tokenizer):
    # At 2313f6f5 such a stage had another loss under the same key.
    from sftdpo.engine.trl_engine import train_stage_with_trl
    stage = DPO.replace(engine="trl", sft_weight=0.5, batch_size=4, micro_batch_size=2)
    with pytest.raises(ValueError, match="dpo.micro_batch_size = 2 cannot be used with dpo.engine = 'trl' and dpo.sft_weight"):
        train_stage_with_trl(tuned("gpt2", tokenizer, "full"), tokenizer, pair_rows(), stage, progress=False)
