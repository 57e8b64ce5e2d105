"""Metrics worked by hand, and fast sampling held against the plain way."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

import sftdpo.measures.sampling as sampling_module
from sftdpo.config import LoRA, Sampling, decoding
from sftdpo.data import Example, TaskData, cloze_prompt, load_task, questions_of, tokenize, verbalizer_rows
from sftdpo.evaluate import (
    classification_metrics,
    evaluate,
    first_lines,
    pair_reward_accuracy,
    predict,
    preference_metrics,
    score_pairs,
)
from sftdpo.measures.answers import (
    at_temperature,
    calibration_error,
    calibration_interval,
    characters,
    chrf,
    chrf_at_length,
    chrf_matched,
    entropy,
    first_characters,
    fit_temperature,
    mean_interval,
    perfect_calibration_error,
    repeated_share,
)
from sftdpo.measures.baselines import STRENGTHS, baselines, best_threshold, overlap_features, tfidf_baseline
from sftdpo.measures.distance import distances, distributions, divergences, kl_divergence
from sftdpo.measures.sampling import choose_tokens, continuations, generate_ids, sample, text_of
from sftdpo.measures.verse import form, iambic, rhyme_share, rhymes, seen, syllables, ten_syllables
from sftdpo.model import apply_tuning
from sftdpo.tasks import TASKS

prompts = ["Shall I compare thee\n", "Rough winds do shake the darling buds of May,\n", "And\n", "Thou art more lovely\n"]


def plain(model, tokenizer, prompt, tokens):
    "The most probable continuation by transformers' own generate, one prompt at a time."
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False,
                           pad_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id)
    return found[0, ids.shape[1]:].tolist()


def pair(number, first, second, label):
    prompt = f'Question 1: "{first}"\nQuestion 2: "{second}"\nAre these questions asking the same thing?\n'
    return Example(str(number), prompt, ["no", "yes"][label], label=label)


def paraphrases(train, test):
    return TaskData(task="paraphrase", name="by hand", train=train, validation=[], test=test, verbalizers=("no", "yes"),
                    end_of_text=False, source="This test.")


# -- numbers by hand

def test_mean_interval():
    # standard error of 1, 2, 3, 4 is sqrt(5/3)/2 = 0.6455; t with 3 degrees of freedom is 3.1824
    assert mean_interval([1, 2, 3, 4]) == pytest.approx((2.5, 0.4457, 4.5543), abs=1e-4)
    assert np.isnan(mean_interval([1])[1])


def test_calibration_error_of_four_rows():
    # bin (.8, .9]: confidence .885, accuracy .5; bin (.5, .6]: confidence .585, accuracy 1; half of the rows in each
    assert calibration_error([.88, .89, .58, .59], [1, 0, 1, 1]) == pytest.approx(.5 * .385 + .5 * .415)
    assert calibration_error([1., 1.], [1, 1]) == 0


def test_classification_metrics_by_hand():
    table = pd.DataFrame({"label": [1, 1, 0, 0], "prediction": [1, 0, 0, 0], "correct": [True, False, True, True],
                          "probability_no": [.2, .6, .7, .9], "probability_yes": [.8, .4, .3, .1], "mass": [1., 1., .5, .5]})
    metrics = classification_metrics(table)
    assert metrics["accuracy"] == .75 and metrics["verbalizer_mass"] == .75
    assert metrics["macro_f1"] == pytest.approx((2/3 + 4/5) / 2)
    assert metrics["nll"] == pytest.approx(-np.log(.8 * .4 * .7 * .9) / 4)
    assert metrics["accuracy_low"] < .75 < metrics["accuracy_high"]


def test_best_threshold():
    assert best_threshold([.1, .2, .2, .5, .9], [0, 0, 1, 1, 1]) == .2
    assert best_threshold([.3, .6], [1, 1]) == .3  # always yes
    assert best_threshold([.3, .6], [0, 0]) == np.inf  # never yes


def test_paraphrase_baselines():
    train = [pair(0, "a b", "a b", 1), pair(1, "a b c", "a b d", 1), pair(2, "a b", "c d", 0), pair(3, "a", "b", 0), pair(4, "e", "f", 0)]
    test = [pair(5, "x y", "x y", 1), pair(6, "x y z", "x y w", 0), pair(7, "x", "y", 0), pair(8, "v", "w", 1)]
    found = baselines(paraphrases(train, test), test)
    assert found["majority"] == .5  # no, the more frequent in train, is right twice
    assert found["overlap"] == .5  # threshold 2/4: right on the first and the third
    assert questions_of(test[0].prompt) == ("x y", "x y") and questions_of("anything else") is None


def test_syllables_and_metre():
    assert [syllables(word)[0] for word in ("memory", "desire", "thine", "feed'st", "untrimm'd")] == [3, 2, 1, 1, 2]
    assert ten_syllables("From fairest creatures we desire increase,")
    assert not ten_syllables("From fairest creatures we desire,")
    assert iambic("His tender heir might bear his memory") == (2, 2)
    assert iambic("Tender is his heir") == (0, 1)


def test_rhyme_of_a_couplet():
    assert rhymes("So long as men can breathe or eyes can see,", "So long lives this, and this gives life to thee.")
    assert rhymes("upon me proved,", "nor no man ever loved.") is False
    assert rhymes("to see", "I see") is False  # the same word
    assert rhymes("where thou feel'st", "what thou steal'st") is None  # unknown words
    assert rhymes("", "to see") is False


def test_rhyme_share_follows_the_scheme():
    ends = "day bright way night cat tree hat free dog moon log soon red bed".split()
    assert rhyme_share(ends) == (1., 1.)
    assert rhyme_share(ends[:12] + ["red", "moon"]) == (6/7, 1.)
    assert rhyme_share(ends[:3], given=3) == (0., 1.)  # six pairs are left to the policy, and all are missing
    assert rhyme_share(ends[:12] + ["red", "steal'st"]) == (1., 6/7)


def test_form_counts_what_the_policy_wrote():
    training = seen([Example("1", "From fairest creatures we desire increase,\n", "That thereby beauty's rose might never die,")])
    prompt = "a day\na bright\na way\n"
    copied = form(prompt, "From fairest creatures we desire increase,", training)
    assert copied["copied_lines"] == copied["copied_5grams"] == copied["ten_syllables"] == 1
    assert copied["lines_14"] == 0
    eleven = "\n".join(["my own new line of words that nobody wrote"] * 11)
    assert form(prompt, eleven, training)["lines_14"] == 1
    assert form(prompt, eleven, training)["copied_5grams"] == 0
    assert form(prompt, "", training)["lines_14"] == 0


def test_chrf_ends():
    assert chrf("abcdef", "abcdef") == 100 and chrf("xyz", "abcdef") == 0


# -- the choice of a token

def test_choose_is_the_inverse_of_the_nucleus():
    logits = torch.tensor([.5, .3, .2]).log().expand(4, 3)
    noise = torch.tensor([0., .62, .63, .9999999999], dtype=torch.float64)
    assert choose_tokens(logits, noise, 1., .7).tolist() == [0, 0, 1, 1]  # shares 5/8 and 3/8
    assert choose_tokens(logits, noise, 1., 1.).tolist() == [0, 1, 1, 2]
    assert choose_tokens(logits, noise, 0., 1.).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("top_p", [.5, .9, .999])
def test_choose_equals_a_full_sort(top_p):
    torch.manual_seed(1)
    logits, noise = torch.randn(50, 1000) * torch.linspace(.1, 5, 50)[:, None], torch.rand(50)
    probabilities, ids = (logits / .8).softmax(-1).sort(descending=True)
    probabilities = probabilities * (probabilities.cumsum(-1) - probabilities < top_p)
    place = (probabilities.cumsum(-1) <= noise[:, None] * probabilities.sum(-1, keepdim=True)).sum(-1, keepdim=True)
    same = choose_tokens(logits, noise, .8, top_p) == ids.gather(-1, place)[:, 0]
    assert same.float().mean() > .97  # a number on the border between two tokens may fall to either side


def test_choose_has_the_right_frequencies():
    noise = (torch.arange(10_000) + .5) / 10_000
    counts = choose_tokens(torch.tensor([.1, .6, .3]).log().expand(10_000, 3), noise, 1., .95).bincount(minlength=3)
    assert counts.tolist() == pytest.approx([1000, 6000, 3000], abs=1)


# -- sampling

def ragged(model, tokenizer, boost):
    "The model, with the end of text made so likely that samples end at different lengths."
    original = model.forward

    def forward(*args, **kwargs):
        found = original(*args, **kwargs)
        found.logits[..., tokenizer.eos_token_id] += boost
        return found
    model.forward = forward
    return model


def test_greedy_equals_generate(tiny):
    model, tokenizer = tiny
    model.double()  # so that rounding, which depends on the batch and the processor, changes no token
    greedy = Sampling(samples=2, temperature=0., max_new_tokens=40)
    expected = [[plain(model, tokenizer, prompt, 40)] * 2 for prompt in prompts]
    assert generate_ids(model, tokenizer, prompts, greedy, 0, precision="fp32") == expected
    assert generate_ids(model, tokenizer, prompts, greedy, 0, precision="fp32", cache_bytes=1) == expected  # a prompt a batch


def test_greedy_equals_generate_with_lora(tiny):
    model, tokenizer = tiny
    model = apply_tuning(model, "lora", LoRA(rank=2), seed=0)
    for name, weight in model.named_parameters():
        if "lora_B" in name: torch.nn.init.normal_(weight, std=.1)
    asks = [weight.requires_grad for weight in model.parameters()]
    greedy = Sampling(samples=1, temperature=0., max_new_tokens=20)
    found = generate_ids(model, tokenizer, prompts, greedy, 0, precision="fp32")
    assert found == [[plain(model, tokenizer, prompt, 20)] for prompt in prompts]
    assert [weight.requires_grad for weight in model.parameters()] == asks


def test_dropped_rows_change_nothing(tiny):
    "Samples that end at different lengths are those that each prompt, and each sample, gives alone."
    model, tokenizer = tiny
    model.double()  # so that rounding, which depends on the batch and the processor, changes no token
    model = ragged(model, tokenizer, 3.)
    sampling = Sampling(samples=6, temperature=1., top_p=.95, max_new_tokens=60)
    found = generate_ids(model, tokenizer, prompts, sampling, seed=3, precision="fp32")
    lengths = {len(ids) for samples in found for ids in samples}
    assert len(lengths) > 5 and all(tokenizer.eos_token_id not in ids[:-1] for samples in found for ids in samples)
    assert found == generate_ids(model, tokenizer, prompts, sampling, seed=3, precision="fp32", cache_bytes=1)
    fewer = Sampling(samples=2, temperature=1., top_p=.95, max_new_tokens=60)
    assert [samples[:2] for samples in found] == generate_ids(model, tokenizer, prompts, fewer, seed=3, precision="fp32")


def test_seeds(tiny):
    model, tokenizer = tiny
    model.train()
    sampling = Sampling(samples=3, max_new_tokens=20)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = sample(model, tokenizer, prompts, sampling, seed=1)
    assert torch.equal(before, torch.get_rng_state()) and (numpy_before == np.random.get_state()[1]).all()
    torch.manual_seed(99)
    assert first == sample(model, tokenizer, prompts, sampling, seed=1)
    assert first != sample(model, tokenizer, prompts, sampling, seed=2)
    assert len({text for samples in first for text in samples}) == 12  # every sample its own
    assert model.training


def test_max_lines(tiny_gpt2):
    model, tokenizer = tiny_gpt2
    newline = tokenizer("\n")["input_ids"][0]
    original = model.forward

    def forward(*args, **kwargs):
        found = original(*args, **kwargs)
        found.logits[..., newline] += 6.
        return found
    model.forward = forward
    texts = sample(model, tokenizer, prompts, Sampling(samples=4, temperature=1., max_new_tokens=100), seed=0, max_lines=3)
    counts = [sum(bool(line.strip()) for line in text.split("\n")) for samples in texts for text in samples]
    assert max(counts) == 3 and counts.count(3) > 8


def test_each_prompt_is_continued_as_far_as_it_leaves_room(tiny):
    "A long prompt shortens nobody's samples but its own, and goes to the last position."
    model, tokenizer = tiny
    model.double()  # so that rounding, which depends on the batch and the processor, changes no token
    model = ragged(model, tokenizer, -50.)  # no end
    def room_beside(text): return model.config.max_position_embeddings - len(tokenizer(text)["input_ids"])
    long = next(text for number in range(1, 200) if room_beside(text := "Shall I " * number) < 40)
    room, sampling = room_beside(long), Sampling(samples=2, temperature=1., max_new_tokens=40)
    found = generate_ids(model, tokenizer, [*prompts, long], sampling, seed=0, precision="fp32")
    assert [[len(ids) for ids in samples] for samples in found] == [[40, 40]] * len(prompts) + [[room] * 2] and 0 < room < 40
    assert found[:-1] == generate_ids(model, tokenizer, prompts, sampling, seed=0, precision="fp32")
    assert found[-1][0] == generate_ids(model, tokenizer, [*prompts, long], sampling, seed=0, precision="fp32", cache_bytes=1)[-1][0]
    with pytest.raises(ValueError, match="nothing can be sampled; shorten it"): sample(model, tokenizer, ["Shall I " * 400], sampling, seed=0)


def test_a_prompt_opens_as_its_tokenizer_opens_a_text(tiny):
    "Scored, sampled and trained after the token that begins a text, special tokens within read as letters."
    from tokenizers.processors import TemplateProcessing

    from sftdpo.reading.rows import fit, longer_than, opening, prompt_ids, tokenize, verbalizer_rows
    model, tokenizer = tiny
    closed = prompt_ids(prompts, tokenizer)
    begin = tokenizer.bos_token_id
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|endoftext|> $0", special_tokens=[("<|endoftext|>", begin)])
    assert opening(tokenizer) == [begin] and prompt_ids(prompts, tokenizer) == [[begin, *ids] for ids in closed] == [tokenizer(p)["input_ids"] for p in prompts]
    poem = [Example("1", prompts[0], "Thou art")]
    assert tokenize(poem, tokenizer, True)[0].prompt == verbalizer_rows(poem, tokenizer, ("no", "yes"))[0].prompt == [begin, *closed[0]]
    greedy = Sampling(samples=1, temperature=0., max_new_tokens=10)
    begun = torch.tensor([[begin, *closed[0]]])
    expected = model.generate(input_ids=begun, attention_mask=torch.ones_like(begun), max_new_tokens=10, do_sample=False, pad_token_id=begin, eos_token_id=begin)
    assert generate_ids(model, tokenizer, prompts[:1], greedy, 0, precision="fp32")[0][0] == expected[0, begun.shape[1]:].tolist()
    length = len(tokenize(poem, tokenizer, True)[0].prompt) + len(tokenize(poem, tokenizer, True)[0].completions[0])
    assert longer_than(poem, tokenizer, True, length - 1) and not longer_than(poem, tokenizer, True, length)
    cut, = fit(poem, tokenizer, True, length - 1, "truncate")
    assert tokenize([cut], tokenizer, True, length - 1)
    separated = Example("2", "a<|endoftext|>" * 12 + "Shall I ", "compare")
    cut, = fit([separated], tokenizer, True, 40, "truncate")
    assert separated.prompt.endswith(cut.prompt) and len(tokenize([cut], tokenizer, True, 40)[0].prompt) > 20


# -- texts that may not end early

def ends_early(model, tokenizer, lines=6.):
    "The model, likely to end a line, and to end the text."
    newline, original = tokenizer("\n")["input_ids"][0], model.forward

    def forward(*args, **kwargs):
        found = original(*args, **kwargs)
        found.logits[..., newline] += lines
        found.logits[..., tokenizer.eos_token_id] += lines
        return found
    model.forward = forward
    return model


def test_nothing_is_drawn_in_double_precision(tiny, monkeypatch):
    "At cad44a56 random numbers of float64 went to the device, which Apple's GPUs refuse."
    model, tokenizer = tiny
    kinds, draw = set(), sampling_module._generate_batch
    monkeypatch.setattr(sampling_module, "_generate_batch", lambda model, ids, most, noise, *others: kinds.add(noise.dtype) or draw(model, ids, most, noise, *others))
    assert continuations(model, tokenizer, prompts, Sampling(samples=2, max_new_tokens=5), 0, precision="fp32")
    assert kinds == {torch.float32}


def lines_of(text):
    return sum(bool(line.strip()) for line in text.split("\n"))


def test_the_end_is_refused_until_the_last_line(tiny):
    "Every text has the lines and the characters asked for; up to the first refusal it is what is drawn unhindered, token by token."
    model, tokenizer = tiny
    model.double()  # so that rounding, which depends on the batch and the processor, changes no token
    model, end = ends_early(model, tokenizer), tokenizer.eos_token_id
    sampling = Sampling(samples=6, temperature=1., top_p=.95, max_new_tokens=150)
    kept = continuations(model, tokenizer, prompts, sampling, 2, max_lines=5, min_lines=5, precision="fp32")
    free = continuations(model, tokenizer, prompts, sampling, 2, max_lines=5, precision="fp32")
    counts = [lines_of(text_of(tokenizer, one.ids)) for one in sum(kept, [])]
    assert counts == [5] * 24 and min(lines_of(text_of(tokenizer, one.ids)) for one in sum(free, [])) < 3
    for one, other in zip(sum(kept, []), sum(free, [])):
        ids, ended = one.unhindered(end)
        assert ids + [end] * (one.refused is not None) == other.ids and ended == (other.ids[-1] == end)
        assert end not in one.ids[:-1]
    longer = continuations(model, tokenizer, prompts, sampling, 2, 5, 5, [60, 0, 10, 60], "fp32")
    for one, least in zip(sum(longer, []), [60] * 6 + [0] * 6 + [10] * 6 + [60] * 6):
        text = text_of(tokenizer, one.ids)
        if len(one.ids) < sampling.max_new_tokens: assert characters(text) >= least and lines_of(text) >= 5
    assert sum(len(one.ids) < sampling.max_new_tokens for one in sum(longer, [])) >= 20
    assert longer == continuations(model, tokenizer, prompts, sampling, 2, 5, 5, [60, 0, 10, 60], "fp32", cache_bytes=1)


def test_a_refused_end_is_redrawn_from_the_other_tokens(tiny_gpt2):
    "Greedy: the text is that of a model whose end of text is impossible."
    model, tokenizer = tiny_gpt2
    greedy = Sampling(samples=1, temperature=0., max_new_tokens=30)
    expected = generate_ids(ragged(tiny_model("gpt2", tokenizer), tokenizer, -1e4), tokenizer, prompts, greedy, 0, precision="fp32")
    found = continuations(ragged(model, tokenizer, 50.), tokenizer, prompts, greedy, 0, min_characters=[10**6] * 4, precision="fp32")
    assert [[one.ids for one in samples] for samples in found] == expected
    assert all(one.refused == 0 and one.unhindered(tokenizer.eos_token_id) == ([], True) for samples in found for one in samples)


def within(ids, length, value):
    "Correlation of two columns within prompts."
    both = pd.DataFrame({"id": list(ids), "length": list(length), "value": list(value)})
    apart = both[["length", "value"]] - both.groupby("id")[["length", "value"]].transform("mean")
    return apart.corr().loc["length", "value"]


def test_length_cannot_win():
    """Ten other sonnets, each cut to four shares of the true length, that must go on, as a policy must whose end is refused.

    The metric correlates with where they were cut by less than .2 within a prompt, chrF of the cut texts by more than .8."""
    data = load_task("sonnet")
    rows = [(e.id, share, e.completion, t.completion[:round(share * len(e.completion))], other.completion)
            for e in data.validation for t, other in zip(data.train[:10], data.train[10:20]) for share in (.3, .5, .7, 1.)]
    ids, shares, trues, cut, more = zip(*rows)
    judged = [chrf_at_length(f"{text}\n{rest}", true) for true, text, rest in zip(trues, cut, more)]
    whole = [chrf(text, true) for true, text in zip(trues, cut)]
    assert abs(within(ids, shares, judged)) < .2 and within(ids, shares, whole) > .8
    means = pd.Series(judged).groupby(list(shares)).mean()
    assert means.max() - means.min() < .5


# -- whole evaluations

def test_predict_compares_the_verbalizers(tiny):
    model, tokenizer = tiny
    examples = [pair(i, "How do I learn?", "What " * (i + 1), i % 2) for i in range(5)]
    data = paraphrases(examples, examples)
    found = predict(model, tokenizer, data, examples, precision="fp32")
    ids = tokenizer(examples[3].prompt, return_tensors="pt")["input_ids"]
    no, yes = (tokenizer(word)["input_ids"] for word in data.verbalizers)
    with torch.no_grad(): probabilities = model(ids).logits[0, -1].softmax(-1)
    two = probabilities[[no[0], yes[0]]]
    assert found["mass"][3] == pytest.approx(two.sum().item(), rel=1e-4)
    assert found.probability_yes[3] == pytest.approx((two[1] / two.sum()).item(), rel=1e-4)
    assert found.prediction[3] == int(two.argmax()) and found.correct[3] == (found.prediction[3] == 1)
    assert evaluate(model, tokenizer, data, examples, Sampling(), 0).metrics["accuracy"] == found.correct.mean()


def test_evaluate_sonnets(tiny):
    model, tokenizer = tiny
    poem = [Example(str(i), "a day\na bright\na way\n", "\n".join(["by night"] * 11), rejected="x" if i else None) for i in range(3)]
    data = TaskData(task="sonnet", name="by hand", train=poem[:1], validation=[], test=poem[1:], verbalizers=(), end_of_text=True,
                    source="This test.")
    found = evaluate(model, tokenizer, data, poem[1:], Sampling(samples=2, max_new_tokens=30), seed=0, precision="fp32")
    assert list(found.examples["sample"]) == [0, 1, 0, 1] and list(found.examples["id"]) == ["1", "1", "2", "2"]
    assert found.metrics["chrf"] == pytest.approx(found.examples.chrf.mean())
    for line in found.examples.itertuples(): assert line.chrf == chrf_at_length(line.generated, line.true)
    assert found.metrics["tokens_drawn"] <= 30
    # the true continuation's nats per token, its end of text included
    prompt, end = (tokenizer(text)["input_ids"] for text in (poem[1].prompt, poem[1].completion))
    ids = torch.tensor([prompt + end + [tokenizer.eos_token_id]])
    with torch.no_grad(): logps = model(ids).logits[0, :-1].log_softmax(-1)
    expected = -logps.gather(-1, ids[0, 1:, None])[len(prompt) - 1:].mean().item()
    assert found.metrics["nll"] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="no examples"):
        evaluate(model, tokenizer, data, [], Sampling(), 0)


def test_sonnet_baselines_on_the_course_sonnets():
    data = load_task("sonnet")
    found = baselines(data, data.validation)
    assert found["chrf_floor"] == pytest.approx(26.0, abs=.6) and found["chrf_whole_floor"] == pytest.approx(41.6, abs=.6)
    assert found["chrf_floor"] < found["chrf_best_training"] < found["chrf_ceiling"]
    assert found["lines_14_true"] == 1 and found["copied_5grams_true"] < .01


# -- data of one's own

def test_labels_of_three_classes(tiny):
    model, tokenizer = tiny
    examples = [Example(str(i), f"a {i}\n", "yno"[i % 3], label=i % 3) for i in range(9)]
    data = TaskData("labels", "by hand", examples, [], examples, ("y", "n", "o"), False, "This test.")
    found = evaluate(model, tokenizer, data, examples, Sampling(), 0, precision="fp32")
    probabilities = found.examples.filter(like="probability_")
    assert list(probabilities) == ["probability_y", "probability_n", "probability_o"] and probabilities.sum(axis=1).tolist() == pytest.approx([1] * 9)
    assert found.metrics["accuracy"] == (probabilities.to_numpy().argmax(1) == found.examples.label).mean()
    assert baselines(data, examples) == pytest.approx({"majority": 1/3} | {k: v for k, v in baselines(data, examples).items() if k != "majority"})
    unlabelled = predict(model, tokenizer, data, [Example("x", "a\n", "")], precision="fp32")
    assert "label" not in unlabelled and "correct" not in unlabelled and unlabelled.prediction[0] in (0, 1, 2)


def test_completions(tiny):
    model, tokenizer = tiny
    examples = [Example(str(i), f"Shall I {i} ", f"compare {i}") for i in range(6)]
    data = TaskData("completions", "by hand", examples[:4], [], examples[4:], (), True, "This test.")
    found = evaluate(ragged(model, tokenizer, 3.), tokenizer, data, data.test, Sampling(samples=3, max_new_tokens=30), 0, precision="fp32")
    assert list(found.examples["sample"]) == [0, 1, 2] * 2
    assert found.metrics["chrf"] == pytest.approx(found.examples.chrf.mean()) and 0 <= found.metrics["ended"] <= 1
    assert found.metrics["nll"] == pytest.approx(found.examples.nll.mean())
    for line in found.examples.itertuples():
        assert line.chrf == chrf(line.generated, line.true) and line.length_ratio == len(line.generated) / 9
        assert line.chrf_matched == chrf_matched(line.generated, line.true) and line.repeated_4grams == repeated_share(line.generated)
    assert found.metrics["length_ratio"] == pytest.approx(found.examples.length_ratio.mean())
    beside = baselines(data, data.test)
    assert beside["chrf_floor"] <= beside["chrf_best_training"] < beside["chrf_ceiling"] == 100


def test_the_completion_of_the_nearest_prompt_is_a_baseline_and_the_one_nearest_to_the_truth_is_not():
    "Standard replies: whoever finds a prompt like this one has the reply. What is found with the true text at hand is shown, and nothing is held against it."
    said = {"parcel": "It is on its way to you.", "money": "We send it back today, with our apologies.", "login": "Please choose a new word."}
    training = [Example(f"t{i}", f"{opening} {word}?", reply) for i, (opening, (word, reply)) in enumerate((o, pair) for o in ("where is my", "what of the") for pair in said.items())]
    judged = [Example(f"j{i}", f"hello, my {word}, please", reply) for i, (word, reply) in enumerate(said.items())]
    found = baselines(TaskData("completions", "replies", training, [], judged, (), True, "This test."), judged)
    assert found["chrf_nearest"] == found["chrf_best_training"] == 100 > found["chrf_floor"]
    judged[0] = replace(judged[0], prompt="hello, my login, please")
    found = baselines(TaskData("completions", "replies", training, [], judged, (), True, "This test."), judged)
    assert found["chrf_nearest"] == pytest.approx((200 + chrf(said["login"], said["parcel"])) / 3) and found["chrf_best_training"] == 100
    assert {one.name for one in TASKS["completions"].comparable_baselines()} == {"chrf_floor", "chrf_nearest"}


def test_prompts_without_a_word_have_baselines():
    "At 4ab63658 rows of emoji or marks alone stopped the judging: scikit-learn's vocabulary was empty."
    marks = [Example(str(i), "?!"[i % 2] * (1 + i // 2), "yn"[i % 2], label=i % 2) for i in range(40)]
    data = TaskData("labels", "marks", marks[:20], marks[20:30], marks[30:], ("y", "n"), False, "This test.")
    assert baselines(data, data.test)["tfidf"] == 1
    assert baselines(replace(data, task="completions"), data.test)["chrf_nearest"] == 100


def test_a_share_ends_at_one():
    "At 6d2b5f9 nine pairs of ten told right had an interval up to 112.6 %."
    right = np.array([1.0] * 9 + [0.5])
    table = pd.DataFrame(dict(correct=right, correct_summed=right, nll=1.0, rejected_logp=-4.0, rejected_tokens=2))
    assert preference_metrics(table)["accuracy_high"] == 1 and mean_interval(right * 3)[2] > 3 * right.mean()


def test_preferences_by_hand(tiny):
    model, tokenizer = tiny
    examples = [Example("a", "Shall I ", "compare", "no"), Example("b", "Thou ", "art more", "a day of May"), Example("c", "Thou ", "art", "art")]
    data = TaskData("preferences", "by hand", examples, [], examples, (), True, "This test.")
    found = evaluate(model, tokenizer, data, examples, Sampling(), 0, precision="fp32")

    def summed(prompt, completion):
        start, end = (tokenizer(text)["input_ids"] for text in (prompt, completion))
        ids = torch.tensor([start + end + [tokenizer.eos_token_id]])
        with torch.no_grad(): logps = model(ids).logits[0, :-1].log_softmax(-1)
        return logps.gather(-1, ids[0, 1:, None])[len(start) - 1:].sum().item(), len(end) + 1
    for line, e in zip(found.examples.itertuples(), examples):
        (chosen, n), (rejected, m) = summed(e.prompt, e.completion), summed(e.prompt, e.rejected)
        assert (line.chosen_logp, line.rejected_logp) == pytest.approx((chosen, rejected), rel=1e-4) and (line.chosen_tokens, line.rejected_tokens) == (n, m)
        assert line.nll == pytest.approx(-chosen / n, rel=1e-4)
        if e.id != "c": assert line.correct == float(chosen / n > rejected / m) and line.correct_summed == float(chosen > rejected)
    assert found.examples.correct[2] == .5  # equal texts: half
    assert found.metrics["accuracy"] == pytest.approx(found.examples.correct.mean())
    assert baselines(data, examples)["longer"] == pytest.approx((1 + 0 + .5) / 3)
    with pytest.raises(ValueError, match="no rejected completion"): score_pairs(model, tokenizer, data, [Example("x", "a ", "b")])


def test_reward_accuracy_by_hand():
    before = pd.DataFrame({"id": list("abc"), "chosen_logp": [-5., -5., -5.], "rejected_logp": [-2., -2., -2.]})
    after = pd.DataFrame({"id": list("cab"), "chosen_logp": [-5., -4., -6.], "rejected_logp": [-2., -3., -2.]})
    assert pair_reward_accuracy(after, before).loc[["a", "b", "c"]].tolist() == [1, 0, .5]


def test_the_interval_of_a_share_of_pairs_is_that_of_a_share():
    "30 of 30 pairs: Wilson's interval, not [1, 1]; 29 of 30: not above 1. At 62ea385b it is [1, 1] and ends at 1.03."
    from sftdpo.engine.runs import changes
    from sftdpo.tasks import TASKS
    before = pd.DataFrame({"id": [str(i) for i in range(30)], "correct": 0.5, "nll": 1., "chosen_logp": -5., "rejected_logp": -5.})
    for won, low, high in ((30, 0.886, 1), (29, 0.833, 0.994)):
        found = changes(TASKS["preferences"], before.assign(chosen_logp=[-4.] * won + [-6.] * (30 - won)), before)
        assert found["reward_accuracy"] == won / 30 and low - 0.07 < found["reward_accuracy_low"] < 1 and high - 0.01 < found["reward_accuracy_high"] <= 1


def test_what_was_trained_on_is_not_looked_for_where_it_is_not_known(tiny):
    "A file of its own that judges a saved model: at 62ea385b it says that nothing is copied, and that no question is shared."
    model, tokenizer = tiny
    test = [pair(1, "what is  NEW?", "Why?", 1), pair(2, "Who?", "How?", 0)]
    assert "examples_disjoint" not in evaluate(model, tokenizer, paraphrases([], test), test, Sampling(), 0).metrics
    from sftdpo.evaluate import judged_completion
    assert "copied" not in judged_completion(Example("0", "a ", "b c"), "b c", True, set())
    assert judged_completion(Example("0", "a ", "b c"), "b c", True, {"b c"})["copied"] == 1


# -- measures of an answer

def test_matched_and_repeated_by_hand():
    assert first_characters("a day of May", 5) == "a day o" and first_characters("ab", 9) == "ab" and first_characters("ab", 0) == ""
    assert chrf_matched("a day", "a day of May") == 100 == chrf_at_length("a day of May", "a day") and chrf_matched("", "a day") == 0
    assert chrf_at_length("a day", "a day of May") < 100  # a short text loses
    assert repeated_share("to be or not to be or not to be") == pytest.approx(3 / 7) and repeated_share("to be") == 0
    assert first_lines("a\n\nb\nc\n", 2) == "a\n\nb" and first_lines("a\nb", 2) == "a\nb"


def test_entropy_equals_scipy():
    from scipy import stats
    p = np.random.default_rng(0).dirichlet(np.ones(4), 20)
    assert entropy(p) == pytest.approx(stats.entropy(p, axis=1)) and entropy([[1., 0.]]) == 0


def test_a_perfect_policy_shows_two_percent_at_a_thousand_rows():
    rng = np.random.default_rng(3)
    confidence = rng.uniform(.5, 1, 1000)
    by_hand = [calibration_error(confidence, rng.random(1000) < confidence) for _ in range(300)]
    assert perfect_calibration_error(confidence) == pytest.approx(np.mean(by_hand), abs=.001) == pytest.approx(.023, abs=.003)


def test_calibration_interval_covers():
    rng, held = np.random.default_rng(4), 0
    for seed in range(100):
        confidence = rng.uniform(.6, 1, 1000)
        low, high = calibration_interval(confidence, rng.random(1000) < confidence - .1, draws=200, seed=seed)
        held += low <= .1 <= high
    assert held >= 88
    low, high = calibration_interval([.8] * 4, [1, 1, 1, 1])
    assert 0 <= low <= high


def test_temperature_equals_logistic_regression():
    from sklearn.linear_model import LogisticRegression
    rng = np.random.default_rng(5)
    odds = rng.normal(0, 1.5, 3000)
    labels = (rng.random(3000) < 1 / (1 + np.exp(-odds))).astype(int)
    yes = 1 / (1 + np.exp(-3 * odds))
    found = fit_temperature(np.stack([1 - yes, yes], axis=1), labels)
    assert 1 / found == pytest.approx(LogisticRegression(C=1e9, fit_intercept=False).fit(3 * odds[:, None], labels).coef_.item(), rel=1e-3)
    assert at_temperature([[.8, .2]], 2.)[0] == pytest.approx([2/3, 1/3])


def test_evaluate_reports_calibration_and_entropy(tiny):
    model, tokenizer = tiny
    examples = [pair(i, "How do I learn?", "What " * (i + 1), i % 2) for i in range(20)]
    found = evaluate(model, tokenizer, paraphrases(examples, examples), examples, Sampling(), 0)
    probabilities = found.examples.filter(like="probability_").to_numpy()
    assert found.metrics["calibration_error_perfect"] == perfect_calibration_error(probabilities.max(1))
    assert found.metrics["calibration_error_low"] <= found.metrics["calibration_error_high"]
    assert found.metrics["entropy"] == pytest.approx(-(probabilities * np.log(probabilities)).sum(1).mean())


# -- distance

def test_divergence_equals_torch_and_scipy():
    from scipy import stats
    one, other = torch.randn(2, 7, 300, dtype=torch.double).log_softmax(-1)
    theirs = torch.nn.functional.kl_div(other, one, log_target=True, reduction="none").sum(-1)
    assert torch.allclose(kl_divergence(one, other), theirs) and theirs.numpy() == pytest.approx(stats.entropy(one.exp(), other.exp(), axis=1))
    assert torch.allclose(divergences(one, other, chunk=2)[:, 1].double(), kl_divergence(other, one), atol=1e-5)
    assert kl_divergence(torch.tensor([1., 0.]).log(), torch.tensor([.5, .5]).log()).item() == pytest.approx(np.log(2))


def test_distances_equal_a_plain_loop(tiny):
    base, tokenizer = tiny
    policy = tiny_model(base.config.model_type, tokenizer, seed=1)
    policy.train()
    examples = [Example("a", "Shall I ", "compare thee"), Example("b", "Thou art ", "more lovely\nand more")]
    labelled = [replace(example, id=f"{example.id} as a label") for example in examples]
    rows = tokenize(examples, tokenizer, True) + verbalizer_rows(labelled, tokenizer, ("no", "yes"))
    places = [list(range(len(row.completions[0]))) for row in rows]
    assert places[2:] == [[0], [0]]
    found = distances(*(distributions(model, rows, places) for model in (policy, base)), rows, places)
    assert policy.training, "a model is left in the mode that it had"
    policy.eval(), base.eval()
    for row, line in zip(rows, found.itertuples()):
        ids = torch.tensor([row.prompt + row.completions[0]])
        with torch.no_grad(): p, q = (model(ids).logits[0, len(row.prompt) - 1:-1].log_softmax(-1) for model in (policy, base))
        expected = [(a.exp() * (a - b)).sum(-1).mean().item() for a, b in ((p, q), (q, p))]
        assert [line.there, line.back] == pytest.approx(expected, rel=1e-4)


# -- baselines, and questions that training has seen

def test_tfidf_finds_the_word_that_decides():
    examples = [Example(str(i), f"number {i} was {'good' if i % 2 else 'bad'}", "x", label=i % 2) for i in range(60)]
    data = TaskData("labels", "moods", examples[:30], examples[30:40], examples[40:], ("no", "yes"), False, "This test.")
    found = baselines(data, data.test)
    assert found["tfidf"] == 1 and found["majority"] == .5 and "overlap" not in found
    assert (tfidf_baseline(examples[:1], [], examples[40:]) == 0).all()  # one training label: nothing else is known
    few = baselines(data, data.test, training=[replace_label(e, 0) for e in data.train])
    assert few["majority"] == .5 and few["tfidf"] == .5


def replace_label(example, label):
    from dataclasses import replace
    return replace(example, label=label)


def test_tfidf_equals_scikit_learn_on_texts():
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    rng = np.random.default_rng(0)
    text = lambda label: " ".join(rng.choice(list("abcdefgh"[label:label + 7]), 8))
    labels = [i % 2 for i in range(200)]
    examples = [Example(str(i), text(label), "x", label=label) for i, label in enumerate(labels)]
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+")
    texts = [e.prompt for e in examples]
    features = words.fit_transform(texts[:100])
    means = [cross_val_score(LogisticRegression(C=C, max_iter=1000), features, labels[:100], cv=5).mean() for C in STRENGTHS]
    theirs = make_pipeline(words, LogisticRegression(C=STRENGTHS[int(np.argmax(means))], max_iter=1000)).fit(texts[:100], labels[:100])
    assert (tfidf_baseline(examples[:100], [], examples[100:]) == theirs.predict(texts[100:])).all()
    fitted = [LogisticRegression(C=C, max_iter=1000).fit(features, labels[:100]) for C in STRENGTHS]
    on = lambda part: [model.score(words.transform(texts[part]), labels[part]) for model in fitted]
    best, on_training = (int(np.argmax(on(part))) for part in (slice(100, 150), slice(0, 100)))
    assert best != on_training, "otherwise it could be the training rows that choose C"
    assert (tfidf_baseline(examples[:100], examples[100:150], examples[150:]) == fitted[best].predict(words.transform(texts[150:]))).all()


def test_overlap_features_by_hand():
    assert overlap_features([cloze_prompt("a b c", "a b d e")])[0] == pytest.approx([2/5, 2, 2/3, 3, 5, 2/7])


def test_accuracy_on_pairs_that_share_no_question(tiny):
    model, tokenizer = tiny
    train = [pair(0, "What is new?", "What is old?", 0)]
    test = [pair(1, "what is  NEW?", "Why?", 1), pair(2, "Who?", "How?", 0), pair(3, "Who is it?", "How is it?", 1)]
    found = evaluate(model, tokenizer, paraphrases(train, test), test, Sampling(), 0)
    assert found.examples.shared_question.tolist() == [True, False, False] and found.metrics["examples_disjoint"] == 2
    assert found.metrics["accuracy_disjoint"] == found.examples.correct[1:].mean()


def test_the_decoding_is_told():
    assert "refused until line 14" in decoding("sonnet", Sampling()) and "4 samples" in decoding("sonnet", Sampling())
    assert decoding("paraphrase", Sampling()) == ""
