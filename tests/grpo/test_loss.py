import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from trl import GRPOTrainer

from r1lab.grpo.loss import OBJECTIVES, combine_metrics, kl_to_ref, policy_loss
from r1lab.types import LossOutput

LOSS_TYPES = list(OBJECTIVES)
MAX_COMPLETION_LENGTH = 11


def random_rows(num_rows=6, length=9, seed=0, spread=0.4):
    """A ragged batch whose ratios fall inside, below and above the clip range under both signs of advantage."""
    generator = torch.Generator().manual_seed(seed)
    logps = -torch.rand(num_rows, length, generator=generator) * 3
    noise = torch.randn(num_rows, length, generator=generator)
    lengths = torch.arange(num_rows) % length + 1
    return SimpleNamespace(
        logps=logps.requires_grad_(),
        old_logps=logps.detach() + spread * noise,
        ref_logps=logps.detach() + spread * noise.flip(0),
        advantages=torch.randn(num_rows, generator=generator),
        mask=torch.arange(length)[None] < lengths[:, None],
        entropy=torch.rand(num_rows, length, generator=generator),
    )


def our_loss(rows, loss_type, **options):
    options = {"max_completion_length": MAX_COMPLETION_LENGTH, "ref_logps": rows.ref_logps} | options
    return policy_loss(rows.logps, rows.old_logps, rows.advantages, rows.mask, loss_type=loss_type, **options)


def trl_loss(rows, loss_type, *, epsilon=0.2, epsilon_high=None, beta=0.0, rollout_weights=None):
    """GRPOTrainer._compute_loss itself, on a stand-in for the trainer that answers with our log-probabilities."""
    trainer = SimpleNamespace(
        loss_type="grpo" if loss_type == "gspo" else loss_type,
        importance_sampling_level="sequence" if loss_type == "gspo" else "token",
        epsilon_low=epsilon,
        epsilon_high=epsilon if epsilon_high is None else epsilon_high,
        beta=beta,
        max_completion_length=MAX_COMPLETION_LENGTH,
        current_gradient_accumulation_steps=1,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        model=SimpleNamespace(training=True),
        accelerator=Accelerator(cpu=True),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=rollout_weights is not None,
        vllm_importance_sampling_correction=True,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (rows.logps, rows.entropy, None),
    )
    inputs = {
        "prompt_ids": torch.zeros(len(rows.mask), 1, dtype=torch.int64),
        "prompt_mask": torch.ones(len(rows.mask), 1, dtype=torch.int64),
        "completion_ids": torch.zeros(rows.mask.shape, dtype=torch.int64),
        "completion_mask": rows.mask.long(),
        "advantages": rows.advantages,
        "old_per_token_logps": rows.old_logps,
        "ref_per_token_logps": rows.ref_logps,
        "num_items_in_batch": rows.mask.sum(),
        "importance_sampling_ratio": rollout_weights,
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss, {name: values[0] for name, values in trainer._metrics["train"].items()}


def gradient(loss, rows):
    return torch.autograd.grad(loss, rows.logps)[0]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize(
    "options",
    [
        {"epsilon_high": 1.3},
        {"epsilon": 0.1, "epsilon_high": 0.28},
        {"epsilon_high": 1.3, "beta": 0.3},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:cispo caps")
@pytest.mark.filterwarnings("error:.*converted to a scalar")
def test_equals_trl(loss_type, options):
    for seed in range(3):
        rows = random_rows(seed=seed)
        ours = our_loss(rows, loss_type, entropy=rows.entropy, **options)
        theirs, their_metrics = trl_loss(rows, loss_type, **options)
        torch.testing.assert_close(ours.loss, theirs)
        torch.testing.assert_close(gradient(ours.loss, rows), gradient(theirs, rows), rtol=1e-5, atol=1e-7)
        shared = set(ours.metrics) & set(their_metrics)
        assert "entropy" in shared and ("kl" in shared) == ("beta" in options)
        assert any("clip_ratio" in name for name in shared)
        for name in shared:
            assert ours.metrics[name] == pytest.approx(their_metrics[name], abs=1e-6), name


@pytest.mark.parametrize("columns", [1, 9])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_weights_of_another_engines_rollouts_equal_trl(loss_type, columns):
    rows = random_rows()
    weights = 3 * torch.rand(len(rows.mask), columns, generator=torch.Generator().manual_seed(1))
    weights[1] = 0.0
    options = {"epsilon_high": 1.3, "beta": 0.3, "rollout_weights": weights}
    ours, plain = our_loss(rows, loss_type, **options).loss, our_loss(rows, loss_type, epsilon_high=1.3, beta=0.3).loss
    theirs, _ = trl_loss(rows, loss_type, **options)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, rows), gradient(theirs, rows), rtol=1e-5, atol=1e-7)
    assert not torch.allclose(ours, plain)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_equals_trl_on_policy(loss_type):
    rows = random_rows()
    rows.old_logps = None
    ours = our_loss(rows, loss_type, epsilon_high=5.0)
    theirs, _ = trl_loss(rows, loss_type, epsilon_high=5.0)
    torch.testing.assert_close(ours.loss, theirs)
    torch.testing.assert_close(gradient(ours.loss, rows), gradient(theirs, rows))
    assert gradient(our_loss(rows, loss_type, epsilon_high=5.0).loss, rows).abs().sum() > 0
    assert ours.metrics["ratio/min"] == ours.metrics["ratio/max"] == 1.0


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_row_without_trained_tokens_equals_trl(loss_type):
    rows = random_rows()
    rows.mask[2] = False
    ours = our_loss(rows, loss_type, epsilon_high=1.3, beta=0.2)
    theirs, _ = trl_loss(rows, loss_type, epsilon_high=1.3, beta=0.2)
    torch.testing.assert_close(ours.loss, theirs)
    torch.testing.assert_close(gradient(ours.loss, rows), gradient(theirs, rows))


def test_the_random_rows_reach_every_branch():
    metrics = our_loss(random_rows(), "dapo").metrics
    assert 0 < metrics["clip_ratio/low_mean"] < 1 and 0 < metrics["clip_ratio/high_mean"] < 1
    assert our_loss(random_rows(), "cispo", epsilon_high=1.3).metrics["cispo_clip_ratio"] > 0


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("cuts", [(2, 4), (1, 3), (5,)], ids=str)
def test_micro_batches_sum_to_the_whole(loss_type, beta, cuts):
    rows = random_rows()
    options = {"epsilon_high": 1.3, "beta": beta, "entropy": rows.entropy}
    whole = our_loss(rows, loss_type, **options)
    outputs, weights = [], []
    for part in torch.tensor_split(torch.arange(len(rows.mask)), cuts):
        micro = SimpleNamespace(**{name: value[part] for name, value in vars(rows).items()})
        totals = {"num_items_in_batch": rows.mask.sum(), "num_rows": len(rows.mask)}
        outputs.append(our_loss(micro, loss_type, **options | totals | {"entropy": micro.entropy}))
        weights.append(len(part) if loss_type == "gspo" else int(micro.mask.sum()))
    summed = sum(output.loss for output in outputs)
    torch.testing.assert_close(summed, whole.loss)
    torch.testing.assert_close(gradient(summed, rows), gradient(whole.loss, rows))
    if loss_type != "gspo":
        assert combine_metrics(outputs, weights) == pytest.approx(whole.metrics, abs=1e-6)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_leaving_out_zero_advantage_rows_is_exact(loss_type):
    rows = random_rows()
    rows.advantages[[0, 3]] = 0.0
    whole = our_loss(rows, loss_type, epsilon_high=1.3)
    kept = torch.tensor([1, 2, 4, 5])
    micro = SimpleNamespace(**{name: value[kept] for name, value in vars(rows).items()})
    skipped = our_loss(micro, loss_type, epsilon_high=1.3, num_items_in_batch=int(rows.mask.sum()), num_rows=6)
    torch.testing.assert_close(skipped.loss, whole.loss)
    torch.testing.assert_close(gradient(skipped.loss, rows), gradient(whole.loss, rows))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_processes_average_to_the_whole(loss_type):
    rows = random_rows()
    whole = our_loss(rows, loss_type, epsilon_high=1.3).loss
    shares = {"num_items_in_batch": rows.mask.sum() / 2, "num_rows": len(rows.mask) / 2}
    losses = []
    for part in (torch.arange(1), torch.arange(1, 6)):
        local = SimpleNamespace(**{name: value[part] for name, value in vars(rows).items()})
        losses.append(our_loss(local, loss_type, epsilon_high=1.3, **shares).loss)
    torch.testing.assert_close(sum(losses) / 2, whole)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_what_stands_outside_the_mask_is_ignored(loss_type):
    rows, poisoned = random_rows(), random_rows()
    outside = ~rows.mask
    poisoned.logps = rows.logps.detach().masked_fill(outside, math.nan).requires_grad_()
    poisoned.old_logps = rows.old_logps.masked_fill(outside, -math.inf)
    poisoned.ref_logps = rows.ref_logps.masked_fill(outside, math.inf)
    clean = our_loss(rows, loss_type, epsilon_high=1.3, beta=0.1)
    dirty = our_loss(poisoned, loss_type, epsilon_high=1.3, beta=0.1)
    torch.testing.assert_close(dirty.loss, clean.loss)
    torch.testing.assert_close(gradient(dirty.loss, poisoned), gradient(clean.loss, rows))
    assert (gradient(our_loss(rows, loss_type, epsilon_high=1.3, beta=0.1).loss, rows)[outside] == 0).all()
    assert dirty.metrics == pytest.approx(clean.metrics)


# Two rows, of two tokens and one: ratios 1.5, 0.5 under advantage 1 (cut to 1.2; kept at .5), 0.5 under advantage -2
# (cut to 0.8). Row losses sum to -(1.2 + 0.5) = -1.7 and 2 * 0.8 = 1.6.
BY_HAND = {
    "grpo": (-1.7 / 2 + 1.6) / 2,
    "bnpo": (-1.7 + 1.6) / 3,
    "dapo": (-1.7 + 1.6) / 3,
    "dr_grpo": (-1.7 + 1.6) / (2 * 10),
    # sqrt(1.5 * 0.5) = .866 is inside the range.
    "gspo": (-math.sqrt(0.75) + 1.6) / 2,
    # Capped at 1.2: -ratio * advantage * logp, with logps -1, -2, -3.
    "cispo": (1.2 * 1 + 0.5 * 2 - 2 * 0.5 * 3) / 3,
}


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_by_hand(loss_type):
    logps = torch.tensor([[-1.0, -2.0], [-3.0, -9.0]])
    old_logps = logps - torch.tensor([[1.5, 0.5], [0.5, 1.0]]).log()
    mask = torch.tensor([[True, True], [True, False]])
    loss = policy_loss(
        logps,
        old_logps,
        torch.tensor([1.0, -2.0]),
        mask,
        loss_type=loss_type,
        max_completion_length=10,
        epsilon_high=1.2 if loss_type == "cispo" else None,
    ).loss
    assert loss.item() == pytest.approx(BY_HAND[loss_type], rel=1e-6)


def test_kl_is_zero_only_at_equality():
    logps = torch.tensor([-1.0, -1.0, -1.0])
    kl = kl_to_ref(logps, torch.tensor([-1.0, -1.5, -0.2]))
    expected = [0.0, math.exp(-0.5) + 0.5 - 1, math.exp(0.8) - 0.8 - 1]
    assert kl.tolist() == pytest.approx(expected, abs=1e-6) and (kl[1:] > 0).all()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_nothing_to_train_is_a_loss_of_zero(loss_type):
    rows = random_rows()
    rows.mask[:] = False
    output = our_loss(rows, loss_type, epsilon_high=5.0)
    assert output.loss.item() == 0.0
    assert (gradient(output.loss, rows) == 0).all()


def test_combine_metrics_weighs_means_and_keeps_extremes():
    parts = [
        LossOutput(torch.zeros(()), {"ratio/max": 2.0, "ratio/min": 0.5, "kl": 1.0}),
        LossOutput(torch.zeros(()), {"ratio/max": 3.0, "ratio/min": 0.1, "kl": 4.0}),
        LossOutput(torch.zeros(()), {"ratio/max": -math.inf, "ratio/min": math.inf, "kl": 0.0}),
    ]
    assert combine_metrics(parts, [1, 2, 0]) == {"ratio/max": 3.0, "ratio/min": 0.1, "kl": 3.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_type": "ppo"}, "loss_type='ppo'"),
        ({"beta": 0.1}, "needs ref_logps"),
        ({"loss_type": "dr_grpo"}, "max_completion_length=None"),
        ({"old_logps": torch.zeros(6, 8)}, "old_logps is"),
        ({"completion_mask": torch.ones(6, 10)}, "completion_mask is"),
        ({"advantages": torch.zeros(5)}, "advantages is"),
        ({"rollout_weights": torch.ones(3, 2)}, "rollout_weights is"),
        ({"advantages": torch.zeros(6, 9), "loss_type": "gspo"}, "one ratio per row"),
    ],
    ids=str,
)
def test_bad_input_says_what_to_do(changes, message):
    rows = random_rows()
    arguments = {
        "logps": rows.logps,
        "old_logps": rows.old_logps,
        "advantages": rows.advantages,
        "completion_mask": rows.mask,
    }
    with pytest.raises(ValueError, match=message):
        policy_loss(**arguments | changes)


def test_cispo_warns_about_a_cap_below_one():
    with pytest.warns(UserWarning, match="epsilon_high=5.0"):
        our_loss(random_rows(), "cispo")
