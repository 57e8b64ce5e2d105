"Losses against numbers worked out by hand."
import math

import pytest
import torch

from sftdpo.config import LOSSES, SettingsError, Stage
from sftdpo.loss import (
    Pairs,
    dpo_loss,
    implicit_rewards,
    register_loss,
    reward_accuracy,
    sequence_log_probabilities,
    sft_loss,
    token_log_probabilities,
    with_sft,
)

log = math.log


def tensor(*values): return torch.tensor(values, dtype=torch.float64)


def test_log_probabilities_of_a_padded_batch():
    "Two sequences over three words; the second is one token shorter."
    logits = torch.tensor([[[0, log(2), log(5)], [log(3), 0, 0]], [[0, 0, 0], [9.0, 9.0, 9.0]]])   # 1/8 2/8 5/8 · 3/5 1/5 1/5 · thirds
    targets, mask = torch.tensor([[2, 0], [1, 0]]), torch.tensor([[1, 1], [1, 0]])
    assert token_log_probabilities(logits, targets)[0].exp().tolist() == pytest.approx([5 / 8, 3 / 5])
    assert sequence_log_probabilities(logits, targets, mask).exp().tolist() == pytest.approx([3 / 8, 1 / 3])
    assert sft_loss(sequence_log_probabilities(logits, targets, mask)).tolist() == pytest.approx([log(8 / 3), log(3)])


def test_dpo_by_hand():
    "Pair 1: chosen 4 times as likely, rejected half: margin beta·log 8. Pair 2: both doubled: margin 0."
    losses, chosen, rejected = dpo_loss(tensor(log(4), log(2)), tensor(-log(2), log(2)), tensor(0, 0), tensor(0, 0), beta=1 / 3)
    assert losses.tolist() == pytest.approx([log(3 / 2), log(2)])
    assert chosen.tolist() == pytest.approx([log(4) / 3, log(2) / 3]) and rejected.tolist() == pytest.approx([-log(2) / 3, log(2) / 3])
    assert reward_accuracy(chosen, rejected).tolist() == [1, 0.5]


def test_label_smoothing_by_hand():
    losses, *_ = dpo_loss(tensor(log(4)), tensor(-log(2)), tensor(0), tensor(0), beta=1 / 3, label_smoothing=0.25)
    assert losses.item() == pytest.approx(0.75 * log(3 / 2) + 0.25 * log(3))


def test_gradient_by_hand():
    "The loss falls by beta·sigmoid(-margin) per nat of the chosen log-probability: 1/3 · 1/3."
    chosen = tensor(log(4)).requires_grad_()
    losses, reward, _ = dpo_loss(chosen, tensor(-log(2)), tensor(0), tensor(0), beta=1 / 3)
    losses.sum().backward()
    assert chosen.grad.item() == pytest.approx(-1 / 9) and not reward.requires_grad


def test_implicit_rewards_are_scaled_log_ratios():
    assert implicit_rewards(tensor(-1, -3), tensor(-2, -2), 0.5).tolist() == [0.5, -0.5]


def test_sft_term_by_hand():
    "Chosen completions of 1, 2 and 6 tokens cost 1, 3 and 5 nats: 9 nats over 9 tokens, whatever the micro-batches."
    losses, chosen = tensor(0.1, 0.2, 0.6), tensor(-1, -3, -5)
    whole = with_sft(losses, chosen, weight=0.5, mean_tokens=3)
    assert whole.mean().item() == pytest.approx(0.3 + 0.5 * 9 / 9)
    pieces = [with_sft(losses[i:i + 1], chosen[i:i + 1], weight=0.5, mean_tokens=3) for i in range(3)]
    assert torch.cat(pieces).mean().item() == pytest.approx(whole.mean().item())


@pytest.fixture
def loss_of_ones_own():
    def of_ones_own(pairs, beta):
        "Length-normalised log-probabilities, no reference, and a margin of 0.5 to reach."
        return -torch.nn.functional.logsigmoid(beta * (pairs.chosen / pairs.chosen_tokens - pairs.rejected / pairs.rejected_tokens) - 0.5)
    yield register_loss(of_ones_own)
    LOSSES.pop("of_ones_own")


def test_a_loss_of_ones_own(loss_of_ones_own):
    "Registered, its name is a setting, and it gets the tokens of each completion; taken away, the setting is refused."
    Stage("dpo", loss="of_ones_own")
    losses, *_ = dpo_loss(tensor(-2), tensor(-9), tensor(-5), tensor(-5), beta=0.5, loss="of_ones_own", tokens=(tensor(2), tensor(3)))
    assert losses.item() == pytest.approx(log(1 + math.exp(-(0.5 * (-1 + 3) - 0.5))))
    with pytest.raises(ValueError, match="sftdpo.loss already has a loss 'ipo': give yours another name"):
        @register_loss
        def ipo(pairs, beta): return pairs.chosen
    with pytest.raises(ValueError, match="already has a loss 'hinge'"):  # at 6d2b5f9 one that differed in a number only took its place
        @register_loss
        def hinge(pairs: Pairs, beta: float) -> torch.Tensor: return torch.relu(5 - beta * pairs.log_ratios)
    assert {LOSSES[name].__module__ for name in ("ipo", "hinge")} == {"sftdpo.loss"}


def test_a_loss_that_nobody_registered():
    with pytest.raises(SettingsError, match="dpo.loss = 'of_ones_own'"): Stage("dpo", loss="of_ones_own")
    with pytest.raises(ValueError, match="no loss 'of_ones_own': use one of 'sigmoid', 'hinge', 'ipo'"): dpo_loss(*[tensor(0)] * 4, loss="of_ones_own")
