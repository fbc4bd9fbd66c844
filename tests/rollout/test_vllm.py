"""TRL's client against a server that speaks vLLM's HTTP; `vllm_stub` says what that shows and what it cannot."""

import dataclasses
import math
import sys

import pytest
import torch
import trl
from accelerate import DistributedType
from processes import free_port
from rollout_cases import VOCAB, ragged_prompts, tiny_policy, tokens
from safetensors.torch import load_file
from transformers import DeepseekV3Config, LlamaConfig, LlamaForCausalLM
from vllm_stub import CudaInName, StubServer, server_config, stand_ins

from r1lab.config import GRPOConfig
from r1lab.model import PolicyForCausalLM
from r1lab.rollout import RolloutEngine, SamplingParams, build_vllm_engine
from r1lab.rollout.vllm_requests import checkpoint_tensors

EOS = 3


class Tokenizer:
    eos_token_id = EOS


@pytest.fixture
def server():
    """Holds other weights than the policy, until they are pushed."""
    with stand_ins(), StubServer(_ours(tiny_policy(seed=5))) as stub:
        yield stub


@pytest.fixture
def no_waiting(monkeypatch):
    """TRL's client waits longer and longer between its tries."""
    monkeypatch.setattr("urllib3.util.retry.Retry.sleep", lambda *_, **__: None)


def _ours(policy) -> PolicyForCausalLM:
    ours = PolicyForCausalLM(DeepseekV3Config.from_dict(policy.config.to_dict())).eval()
    ours.load_state_dict(policy.state_dict())
    return ours


def connect(server, policy=None, **changes):
    policy = policy or tiny_policy()
    config = server_config(server.url, free_port(), **changes)
    return build_vllm_engine(policy, Tokenizer(), config, CudaInName())


def native(policy, *arguments, **options):
    return RolloutEngine(policy, eos_token_id=EOS).generate(*arguments, **options)


def test_completions_are_the_policys_for_the_same_seeds(server):
    policy, prompts = tiny_policy(), ragged_prompts((3, 8))
    params = SamplingParams(n=6, max_tokens=30, temperature=1.3)
    seeds = [[70 + i for i in range(6)], [(9 << 48) + i for i in range(6)]]
    ours = connect(server, policy).generate(prompts, params, seeds)
    theirs = native(policy, prompts, params, seeds)
    assert tokens(ours) == tokens(theirs)
    assert [c.finish_reason for group in ours for c in group] == [c.finish_reason for group in theirs for c in group]
    assert {c.finish_reason for group in ours for c in group} == {"stop", "length"}
    for one, other in zip(ours, theirs, strict=True):
        assert [c.logps for c in one] == [pytest.approx(c.logps, abs=1e-5) for c in other]


def test_a_group_is_one_request_in_vllms_own_words(server):
    params = SamplingParams(n=2, max_tokens=9, temperature=0.7, top_p=0.9, top_k=5, banned_token_ids=(4, 6))
    connect(server).generate([[1, 2]], params, [[70, 71]])
    (body,) = server.bodies("/v1/completions")
    expected = {
        "prompt": [[1, 2]], "n": 2, "seed": 70, "max_tokens": 9, "temperature": 0.7, "top_p": 0.9, "top_k": 5,
        "min_p": 0.0, "repetition_penalty": 1.0, "logprobs": 0, "stop_token_ids": [EOS], "ignore_eos": True,
        "logit_bias": {"4": -100.0, "6": -100.0},
    }  # fmt: skip
    assert {name: body[name] for name in expected} == expected


def test_seeds_that_do_not_count_up_are_asked_for_one_by_one(server):
    policy, params, seeds = tiny_policy(), SamplingParams(n=3, max_tokens=6), [[9, 3, 4]]
    ours = connect(server, policy).generate([[1, 2]], params, seeds)
    assert sorted((b["n"], b["seed"]) for b in server.bodies("/v1/completions")) == [(1, 3), (1, 4), (1, 9)]
    assert tokens(ours) == tokens(native(policy, [[1, 2]], params, seeds))


def test_seeds_fit_int64_and_leave_room_to_count_up(server):
    connect(server).generate(
        [[1], [2]], SamplingParams(n=2, max_tokens=1), [[2**63 + 5, 2**63 + 6], [2**62 - 1, 2**62]]
    )
    sent = sorted(body["seed"] for body in server.bodies("/v1/completions"))
    assert sent == [5, 2**62 - 1] and sent[-1] + 2 < 2**63


def test_without_seeds_prompts_differ_and_calls_repeat(server):
    engine, params = connect(server), SamplingParams(n=2, max_tokens=8, seed=1)
    first = tokens(engine.generate([[1, 2], [1, 2]], params))
    assert first == tokens(engine.generate([[1, 2], [1, 2]], params))
    assert len({tuple(ids) for group in first for ids in group}) == 4
    assert first != tokens(engine.generate([[1, 2], [1, 2]], SamplingParams(n=2, max_tokens=8, seed=2)))


def test_weights_are_pushed_once_an_update_routing_bias_included(server):
    policy = tiny_policy()
    engine, params = connect(server, policy), SamplingParams(n=2, max_tokens=8)
    for update in (1, 2):
        engine.generate([[1, 2]], params)
        engine.generate([[2, 1], [5]], params)
        assert len(server.bodies("/update_weights")) == len(server.bodies("/reset_prefix_cache")) == update
        state = server.policy.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in policy.state_dict().items())
        with torch.no_grad():
            policy.lm_head.weight.mul_(-1)
            policy.model.layers[1].mlp.gate.e_score_correction_bias.add_(torch.arange(4.0))
        engine.weights_changed()
    paths = [path for path, _ in server.log if "weight" in path and "init" not in path]
    assert paths[:3] == ["/start_weight_update", "/update_weights", "/finish_weight_update"]


def test_pushed_are_a_checkpoints_tensors(tmp_path):
    with_mtp = PolicyForCausalLM(DeepseekV3Config.from_dict(tiny_policy().config.to_dict()), with_mtp=True)
    tied = LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                    num_key_value_heads=2, tie_word_embeddings=True)
    )  # fmt: skip
    for name, policy, left_out in (("mtp", with_mtp, "model.layers.2."), ("tied", tied, "lm_head.")):
        policy.save_pretrained(tmp_path / name)
        file = {n: v for n, v in load_file(tmp_path / name / "model.safetensors").items() if not n.startswith(left_out)}
        pushed = dict(checkpoint_tensors(policy))
        assert pushed.keys() == file.keys()
        assert all(torch.equal(value, file[n]) for n, value in pushed.items())


def test_greedy_asks_once_and_bans_hold(server):
    policy, params = tiny_policy(), SamplingParams(n=3, max_tokens=6, temperature=0.0)
    engine = connect(server, policy)
    (greedy,) = engine.generate([[1, 2]], params)
    assert tokens([greedy]) == tokens(native(policy, [[1, 2]], params)) and len(greedy) == 3
    banned = SamplingParams(n=2, max_tokens=6, banned_token_ids=tuple(set(greedy[0].token_ids)))
    assert not {t for c in engine.generate([[1, 2]], banned)[0] for t in c.token_ids} & set(banned.banned_token_ids)


def test_completions_end_where_the_servers_context_does(server):
    server.vllm_config["model_config"]["max_model_len"] = 12
    engine = connect(server)
    ((one,),) = engine.generate([[5] * 10], SamplingParams(max_tokens=30, banned_token_ids=(EOS,)))
    assert len(one.token_ids) == 2 and one.finish_reason == "length"
    with pytest.raises(ValueError, match="prompt 0 has 12 tokens"):
        engine.generate([[5] * 12], SamplingParams())


def test_a_logp_that_vllm_did_not_give_is_nan(server):
    def hide(choices, body):
        choices[0]["logprobs"]["token_logprobs"][1] = float("nan")
        choices[0]["logprobs"]["top_logprobs"][1] = None
        return choices

    server.change = hide
    ((one,),) = connect(server).generate([[1, 2]], SamplingParams(max_tokens=3, banned_token_ids=(EOS,)))
    assert [math.isnan(value) for value in one.logps] == [False, True, False]


def _one_line(error, *parts):
    text = str(error.value)
    assert "\n" not in text and all(part in text for part in parts), text


@pytest.mark.parametrize("timeout", [0.0, 0.3])
def test_an_absent_server_is_named_with_the_command_that_starts_it(timeout):
    url = f"http://127.0.0.1:{free_port()}"
    config = server_config(f"{url}/", free_port(), vllm_server_timeout=timeout)
    with stand_ins(), pytest.raises(ConnectionError) as error:
        build_vllm_engine(tiny_policy(), Tokenizer(), config, CudaInName())
    _one_line(error, f"no vLLM server at {url} after", f"{timeout:g} seconds", "VLLM_SERVER_DEV_MODE=1 vllm serve",
              f"--port {url.split(':')[-1]}", """--weight-transfer-config '{"backend": "nccl"}'""")  # fmt: skip


def test_a_server_that_is_up_but_ill_is_not_waited_for_for_ever(server):
    server.statuses["/health"] = 503
    with pytest.raises(ConnectionError) as error:
        connect(server)
    _one_line(error, server.url, "HTTP 503")


def test_a_server_without_what_trl_needs_is_named_with_the_fix(server):
    server.statuses["/server_info"] = 404
    with pytest.raises(ValueError) as error:
        connect(server)
    _one_line(error, server.url, "VLLM_SERVER_DEV_MODE=1", "vllm serve")
    server.statuses.clear()
    server.vllm_config["weight_transfer_config"] = None
    with pytest.raises(ValueError) as error:
        connect(server)
    _one_line(error, server.url, "no weight-transfer engine", "--weight-transfer-config")


def test_logprobs_of_another_kind_are_warned_of(server):
    server.vllm_config["model_config"]["logprobs_mode"] = "raw_logprobs"
    with pytest.warns(UserWarning, match="--logprobs-mode raw_logprobs"):
        connect(server)


@pytest.mark.parametrize(
    ("path", "status", "tries"),
    [("/v1/completions", 500, 4), ("/v1/completions", 400, 1), ("/update_weights", 400, 1)],
)
def test_a_server_that_fails_is_named(server, no_waiting, path, status, tries):
    engine = connect(server)
    server.statuses[path] = status
    with pytest.raises(ConnectionError) as error:
        engine.generate([[1, 2]], SamplingParams(max_tokens=2))
    _one_line(error, server.url, str(status), path, "--resume_from_checkpoint true")
    assert len(server.bodies(path)) == tries


def test_a_failed_push_is_made_again(server, no_waiting):
    engine = connect(server)
    server.statuses["/start_weight_update"] = 400
    with pytest.raises(ConnectionError):
        engine.generate([[1, 2]], SamplingParams(max_tokens=2))
    server.statuses.clear()
    engine.generate([[1, 2]], SamplingParams(max_tokens=2))
    assert len(server.bodies("/update_weights")) == 1


def _other_tokens(choices, body):
    length = len(choices[0]["token_ids"])
    choices[0]["logprobs"] |= {"tokens": [f"token_id:{VOCAB}"] * length, "top_logprobs": [None] * length}
    return choices


def _other_prompt(choices, body):
    return [choice | {"prompt_token_ids": [9]} for choice in choices]


def _cut_logprobs(choices, body):
    for name in choices[0]["logprobs"]:
        choices[0]["logprobs"][name] = choices[0]["logprobs"][name][:-1]
    return choices


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda choices, body: choices[:-1], "1 completions with 1 lists of logprobs where 2 were due"),
        (lambda choices, body: choices + choices, "4 completions"),
        (lambda choices, body: [], "list index"),
        (lambda choices, body: [choice | {"logprobs": None} for choice in choices], "no logprobs"),
        (lambda choices, body: [{"text": "hello"}] * 2, "prompt_token_ids"),
        (_other_tokens, "the logprobs of token"),
        (_other_prompt, "another prompt"),
        (_cut_logprobs, "logprobs for a completion of"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(server, change, message):
    engine = connect(server)
    server.change = change
    with pytest.raises(ConnectionError) as error:
        engine.generate([[1, 2]], SamplingParams(n=2, max_tokens=4))
    _one_line(error, server.url, message)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1], []], {}, "prompt 1 is empty"),
        ([[VOCAB]], {}, f"token id {VOCAB}"),
        ([[1]], {"banned_token_ids": tuple(range(VOCAB))}, "bans all"),
    ],
)
def test_bad_requests_are_named_before_anything_is_sent(server, prompts, options, message):
    engine = connect(server)
    with pytest.raises(ValueError, match=message):
        engine.generate(prompts, SamplingParams(**options))
    with pytest.raises(ValueError, match="seeds"):
        engine.generate([[1]], SamplingParams(n=2), [[1]])
    assert engine.generate([], SamplingParams()) == []
    assert not server.bodies("/update_weights") and not server.bodies("/v1/completions")


def _build(accelerator, **changes):
    return build_vllm_engine(tiny_policy(), Tokenizer(), GRPOConfig(use_vllm=True, **changes), accelerator)


@pytest.mark.parametrize("mode", ["server", "colocate"])
def test_missing_vllm_is_named_with_the_command(mode):
    with pytest.raises(ValueError) as error:
        _build(CudaInName(), vllm_mode=mode)
    _one_line(error, "needs vLLM, which is not installed", "pip install 'trl[vllm]'")


def test_a_trl_without_the_client_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl.generation.vllm_client", None)
    with pytest.raises(ValueError) as error:
        _build(CudaInName())
    _one_line(error, "needs TRL 1.16's vLLM client", "pip install 'trl[vllm]>=1.16'")


def test_processes_that_cannot_send_weights_are_refused(server):
    accelerator = CudaInName()
    accelerator.device = torch.device("cpu")
    with pytest.raises(ValueError, match="trains on cpu"):
        _build(accelerator, vllm_mode="server", vllm_server_base_url=server.url)
    accelerator.distributed_type = DistributedType.FSDP
    with pytest.raises(ValueError, match="FSDP shares it out"):
        _build(accelerator, vllm_mode="server", vllm_server_base_url=server.url)


def test_settings_have_trls_names_and_defaults():
    theirs = {one.name: one for one in dataclasses.fields(trl.GRPOConfig)}
    ours = [one for one in dataclasses.fields(GRPOConfig) if "vllm" in one.name]
    assert len(ours) > 10
    assert {one.name: one.default for one in ours} == {one.name: theirs[one.name].default for one in ours}
