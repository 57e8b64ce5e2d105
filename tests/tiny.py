"""Tiny random models and a tiny tokenizer: real architectures, about 100,000 parameters, made in milliseconds."""
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

end_of_text = "<|endoftext|>"
text = """yes
no
Question 1: How do I learn to write? Question 2: What is the best way to learn writing? Are these two the same question?
Shall I compare thee to a summer's day?
Thou art more lovely and more temperate:
Rough winds do shake the darling buds of May,
And summer's lease hath all too short a date.
"""


def tiny_tokenizer():
    "A byte-level BPE of 400 tokens that encodes any text; `yes` and `no` are one token each; there is no pad token."
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[end_of_text], show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(["yes\nno\n" * 20 + text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end_of_text, eos_token=end_of_text)


def tiny_model(
    architecture: str,  # gpt2 or llama
    tokenizer,  # its vocabulary and end-of-text token
    dropout: float = 0.0,  # of every kind that GPT-2 has; Llama has attention dropout only
    seed: int = 0,  # of the weights
    initializer_range: float = 0.1,  # larger than usual, so that predictions differ clearly from one another
):
    "A random causal language model of two layers, width 64, 256 positions."
    ends = dict(bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=None)
    size = dict(vocab_size=len(tokenizer), initializer_range=initializer_range, **ends)
    torch.manual_seed(seed)
    if architecture == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=256, resid_pdrop=dropout,
                                          embd_pdrop=dropout, attn_pdrop=dropout, **size))
    return LlamaForCausalLM(LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                                        num_key_value_heads=2, max_position_embeddings=256, attention_dropout=dropout, **size))


def tiny_of(
    kind: str,  # a model type of transformers
    **settings,  # beyond the usual names of width and depth
):
    "A random causal language model of any type, of two layers, without dropout."
    size = dict(vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                max_position_embeddings=256, initializer_range=0.3, bos_token_id=0, eos_token_id=0, pad_token_id=None)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **size | settings)).eval()
