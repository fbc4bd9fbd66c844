import copy

import pytest
import torch
from torch import nn

from r1lab.grpo.batch import build_batches
from r1lab.grpo.logps import LogpsModel, completion_logps
from r1lab.grpo.loss import policy_loss
from r1lab.types import Completion, Prompt, Rollout, RolloutGroup

PAD = 0


def group(prompt_length, *rollouts):
    """rollouts: (completion length, advantage, finish reason); token ids are distinct and never PAD."""
    prompt = Prompt("", list(range(1, prompt_length + 1)))
    judged = []
    for number, (length, advantage, reason) in enumerate(rollouts):
        ids = [10 * (number + 1) + i for i in range(length)]
        judged.append(Rollout(Completion(ids, [-float(i) for i in ids], reason), "", advantage=advantage))
    return RolloutGroup(prompt, judged)


def sample_groups():
    return [
        group(3, (2, 1.0, "stop"), (4, -1.0, "length"), (1, 0.0, "stop")),
        group(1, (6, 0.5, "stop"), (2, -0.5, "stop"), (0, 2.0, "stop")),
    ]


def trained_rows(batches):
    """Prompt tokens, completion tokens, logps and advantage of every row, read back through the masks."""
    rows = []
    for batch in batches:
        for i in range(len(batch.input_ids)):
            trained = batch.completion_mask[i]
            ids = batch.input_ids[i][batch.attention_mask[i].bool()].tolist()
            completion = batch.input_ids[i, 1:][trained].tolist()
            rows.append((ids, completion, batch.rollout_logps[i][trained].tolist(), batch.advantages[i].item()))
    return rows


def test_every_row_comes_back_through_the_masks():
    batches, totals = build_batches(
        sample_groups(), pad_token_id=PAD, max_tokens_per_batch=14, skip_zero_advantage=False
    )
    rows = trained_rows(batches)
    expected = [
        (g.prompt.token_ids + r.completion.token_ids, r.completion.token_ids, r.completion.logps, r.advantage)
        for g in sample_groups()
        for r in g.rollouts
    ]
    assert sorted(rows) == sorted(expected)
    assert [len(row[0]) for row in rows] == sorted((len(row[0]) for row in rows), reverse=True)
    assert (totals.num_tokens, totals.num_rows) == (15, 6)


def test_micro_batches_respect_the_token_limit_and_padding():
    batches, _ = build_batches(sample_groups(), pad_token_id=PAD, max_tokens_per_batch=14, skip_zero_advantage=False)
    assert len(batches) > 1
    for batch in batches:
        assert batch.input_ids.numel() <= 14
        assert batch.attention_mask[0].all(), "no wider than its longest row"
        assert (batch.input_ids[batch.attention_mask == 0] == PAD).all()
        size, width = batch.input_ids.shape
        assert batch.completion_mask.shape == batch.rollout_logps.shape == (size, width - 1)
        assert not batch.completion_mask[batch.attention_mask[:, 1:] == 0].any()
        assert (batch.rollout_logps[~batch.completion_mask] == 0).all()


def test_a_row_over_the_limit_stands_alone():
    batches, _ = build_batches(sample_groups(), pad_token_id=PAD, max_tokens_per_batch=6)
    assert [batch.input_ids.shape for batch in batches][:2] == [(1, 7), (1, 7)]


def test_rows_that_cannot_move_the_policy_are_left_out_but_counted():
    batches, totals = build_batches(sample_groups(), pad_token_id=PAD, max_tokens_per_batch=100)
    assert sorted(row[3] for row in trained_rows(batches)) == [-1.0, -0.5, 0.5, 1.0]
    assert (totals.num_tokens, totals.num_rows) == (15, 6)


def test_truncated_completions_are_masked_and_their_tokens_not_counted():
    options = {"pad_token_id": PAD, "max_tokens_per_batch": 100, "mask_truncated_completions": True}
    batches, totals = build_batches(sample_groups(), skip_zero_advantage=False, **options)
    assert (totals.num_tokens, totals.num_rows) == (11, 6)
    row = batches[0].advantages == -1.0
    assert not batches[0].completion_mask[row].any() and batches[0].attention_mask[row].sum() == 7
    kept, _ = build_batches(sample_groups(), **options)
    assert -1.0 not in kept[0].advantages


def test_all_rows_skipped_is_an_empty_list():
    groups = [group(2, (3, 0.0, "stop"), (2, 0.0, "stop"))]
    batches, totals = build_batches(groups, pad_token_id=PAD, max_tokens_per_batch=100)
    assert batches == [] and (totals.num_tokens, totals.num_rows) == (5, 2)


def test_deterministic():
    first, _ = build_batches(sample_groups(), pad_token_id=PAD, max_tokens_per_batch=14)
    second, _ = build_batches(copy.deepcopy(sample_groups()), pad_token_id=PAD, max_tokens_per_batch=14)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.input_ids, b.input_ids) and torch.equal(a.advantages, b.advantages)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.prompt.token_ids.clear(), "add a BOS"),
        (lambda g: g.rollouts[0].completion.logps.pop(), "1 logps for 2 tokens"),
    ],
)
def test_bad_rollouts_are_named(change, message):
    groups = sample_groups()
    change(groups[0])
    with pytest.raises(ValueError, match=message):
        build_batches(groups, pad_token_id=PAD, max_tokens_per_batch=100)


def test_bad_token_limit():
    with pytest.raises(ValueError, match="max_tokens_per_batch=0"):
        build_batches(sample_groups(), pad_token_id=PAD, max_tokens_per_batch=0)


# Log-probabilities of a batch


class Bigrams(nn.Module):
    """The smallest causal LM with `hidden_states` and `lm_head`: the next token depends on this one alone."""

    def __init__(self, vocab_size=80, width=8):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(vocab_size, width)
        self.lm_head = nn.Linear(width, vocab_size, bias=False)

    def hidden_states(self, input_ids, attention_mask=None):
        return self.embed(input_ids)


@pytest.fixture(scope="module")
def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=80, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def policy():
    from transformers import DeepseekV3Config

    from r1lab.model import PolicyForCausalLM

    torch.manual_seed(0)
    config = DeepseekV3Config(
        vocab_size=80,
        hidden_size=16,
        intermediate_size=16,
        moe_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
    )
    return PolicyForCausalLM(config)


def dense_logps(model, batch, temperature):
    """The definition: softmax over the vocabulary at every position, one row at a time, no padding."""
    logps, entropy = torch.zeros(batch.completion_mask.shape), torch.zeros(batch.completion_mask.shape)
    for i, length in enumerate(batch.attention_mask.sum(1).tolist()):
        ids = batch.input_ids[i : i + 1, :length]
        logits = model.lm_head(model.embed(ids)) if isinstance(model, Bigrams) else model(ids).logits
        log_probs = torch.log_softmax(logits[0, :-1] / temperature, -1)
        logps[i, : length - 1] = log_probs.gather(1, ids[0, 1:, None])[:, 0]
        entropy[i, : length - 1] = -(log_probs.exp() * log_probs).sum(-1)
    return logps * batch.completion_mask, entropy * batch.completion_mask


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", ["bigrams", "policy", "llama"])
def test_logps_and_gradients_equal_the_definition(kind, temperature, policy, llama):
    model = {"bigrams": Bigrams(), "policy": policy, "llama": llama}[kind]
    # Prompts of three and two tokens: the head may skip one column, not two.
    groups = [sample_groups()[0], group(2, (6, 0.5, "stop"), (2, -0.5, "stop"), (0, 2.0, "stop"))]
    (batch,), _ = build_batches(groups, pad_token_id=PAD, max_tokens_per_batch=100, skip_zero_advantage=False)
    logps, entropy = completion_logps(model, batch, temperature)
    expected, expected_entropy = dense_logps(model, batch, temperature)
    torch.testing.assert_close(logps, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(entropy, expected_entropy, rtol=1e-4, atol=1e-5)
    assert not entropy.requires_grad
    weights = torch.randn(logps.shape, generator=torch.Generator().manual_seed(1))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ours = torch.autograd.grad((logps * weights).sum(), trained, allow_unused=True, materialize_grads=True)
    theirs = torch.autograd.grad((expected * weights).sum(), trained, allow_unused=True, materialize_grads=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_shared_micro_batches_are_even_and_the_largest_comes_first():
    groups = [group(7, *[(3 + (5 * i + 3 * g) % 9, 1.0, "stop") for i in range(8)]) for g in range(6)]
    batches, _ = build_batches(groups, pad_token_id=PAD, max_tokens_per_batch=100, share_prompts=True)
    sizes = [int(batch.attention_mask.sum() - batch.shared_lengths.sum()) for batch in batches]
    assert len(sizes) > 2 and sizes == sorted(sizes, reverse=True) and sizes[0] <= 100
    assert sizes[0] - sizes[-1] <= 2 * 18  # of rows of at most 18 tokens; left to itself the last would be a rest
    assert sorted(trained_rows(batches)) == sorted(
        trained_rows(build_batches(groups, pad_token_id=PAD, max_tokens_per_batch=10_000, share_prompts=True)[0])
    )


def test_wrapped_models_are_called_through_their_wrapper():
    class Wrapper(nn.Module):
        """What DDP is to `completion_logps`: holds `.module`, and must see the forward."""

        def __init__(self, module):
            super().__init__()
            self.module, self.calls = module, 0

        def forward(self, *args):
            self.calls += 1
            return self.module(*args)

    (batch,), _ = build_batches(sample_groups(), pad_token_id=PAD, max_tokens_per_batch=100)
    policy = Bigrams()
    wrapped = Wrapper(LogpsModel(policy))
    torch.testing.assert_close(completion_logps(wrapped, batch), completion_logps(policy, batch))
    assert wrapped.calls == 1


@pytest.mark.parametrize("kind", ["bigrams", "policy", "llama"])
def test_a_batch_without_trained_tokens(kind, policy, llama):
    groups = [group(3, (2, 1.0, "length"))]
    (batch,), _ = build_batches(
        groups, pad_token_id=PAD, max_tokens_per_batch=100, skip_zero_advantage=False, mask_truncated_completions=True
    )
    logps, _ = completion_logps({"bigrams": Bigrams(), "policy": policy, "llama": llama}[kind], batch)
    assert (logps == 0).all() and logps.shape == (1, 4)


def test_temperature_must_be_positive():
    (batch,), _ = build_batches(sample_groups(), pad_token_id=PAD, max_tokens_per_batch=100)
    with pytest.raises(ValueError, match="temperature=0"):
        completion_logps(Bigrams(), batch, 0)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "gspo", "dr_grpo"])
def test_the_split_and_the_skipped_rows_leave_the_gradient_unchanged(loss_type):
    """The whole path: batches -> logps -> loss -> gradient of the weights, in one batch and in many."""
    model, gradients = Bigrams(), []
    for options in ({"max_tokens_per_batch": 100, "skip_zero_advantage": False}, {"max_tokens_per_batch": 8}):
        batches, totals = build_batches(sample_groups(), pad_token_id=PAD, **options)
        model.zero_grad()
        for batch in batches:
            logps, _ = completion_logps(model, batch)
            policy_loss(
                logps,
                batch.old_logps,
                batch.advantages,
                batch.completion_mask,
                loss_type=loss_type,
                max_completion_length=6,
                num_items_in_batch=totals.num_tokens,
                num_rows=totals.num_rows,
            ).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for whole, split in zip(*gradients, strict=True):
        assert whole.abs().sum() > 0
        torch.testing.assert_close(split, whole)


def test_rows_of_a_group_stand_together_and_say_where_the_prompt_repeats():
    options = {"pad_token_id": PAD, "max_tokens_per_batch": 100, "skip_zero_advantage": False}
    (batch,), totals = build_batches(sample_groups(), share_prompts=True, **options)
    assert batch.shared_lengths.tolist() == [0, 3, 3, 0, 1, 1]
    plain, plain_totals = build_batches(sample_groups(), **options)
    assert sorted(trained_rows([batch])) == sorted(trained_rows(plain)) and totals == plain_totals
    for row, shared in enumerate(batch.shared_lengths.tolist()):
        assert torch.equal(batch.input_ids[row, :shared], batch.input_ids[row - 1, :shared])
    assert all(batch.shared_lengths is None for batch in plain)


def test_the_limit_counts_a_shared_prompt_once_and_goes_on_with_the_group_in_the_next_batch():
    groups = [group(4, *[(3, 1.0, "stop")] * 5)]
    batches, _ = build_batches(groups, pad_token_id=PAD, max_tokens_per_batch=10, share_prompts=True)
    assert [batch.shared_lengths.tolist() for batch in batches] == [[0, 4], [0, 4], [0]]
    single, _ = build_batches(groups, pad_token_id=PAD, max_tokens_per_batch=1, share_prompts=True)
    assert [batch.shared_lengths.tolist() for batch in single] == [[0]] * 5


def test_equal_prompts_of_two_groups_are_not_taken_for_one():
    same = group(3, (2, 1.0, "stop"), (2, -1.0, "stop"))
    (batch,), _ = build_batches([same, same], pad_token_id=PAD, max_tokens_per_batch=100, share_prompts=True)
    assert batch.shared_lengths.tolist() == [0, 3, 0, 3]
