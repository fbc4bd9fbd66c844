"""vLLM inside the process: TRL's class around a stand-in for `vllm.LLM`, which runs the native engine."""

import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from rollout_cases import ragged_prompts, tiny_policy, tokens
from vllm_stub import stand_ins

from r1lab.config import GRPOConfig
from r1lab.rollout import RolloutEngine, SamplingParams, build_vllm_engine

EOS = 3


class StandInLLM:
    """The calls of `vllm.LLM` that are made of it; `weights` are what was loaded, `calls` the rest."""

    def __init__(self, **options):
        self.options, self.calls, self.weights = options, [], {}
        loader = SimpleNamespace(load_weights=self.weights.update)
        runner = SimpleNamespace(model=loader)
        self.llm_engine = SimpleNamespace(
            model_executor=SimpleNamespace(driver_worker=SimpleNamespace(model_runner=runner))
        )
        for name in ("sleep", "wake_up", "reset_prefix_cache"):
            setattr(self, name, lambda name=name, **options: self.calls.append((name, options)))

    def generate(self, prompts, sampling_params, use_tqdm):
        self.calls.append(("generate", {}))
        return [_output(prompt["prompt_token_ids"], one) for prompt, one in zip(prompts, sampling_params, strict=True)]


def _output(prompt_ids, params):
    assert params.ignore_eos and params.logprobs == 0 and not params.detokenize
    wanted = SamplingParams(params.n, params.max_tokens, params.temperature, params.top_p, params.top_k)
    engine = RolloutEngine(tiny_policy(), eos_token_id=params.stop_token_ids)
    (group,) = engine.generate([prompt_ids], wanted, [[params.seed + i for i in range(params.n)]])
    outputs = [
        SimpleNamespace(
            token_ids=tuple(one.token_ids),
            logprobs=[{t: SimpleNamespace(logprob=v, rank=1)} for t, v in zip(one.token_ids, one.logps, strict=True)],
        )
        for one in group
    ]
    return SimpleNamespace(prompt_token_ids=prompt_ids, outputs=outputs)


@pytest.fixture
def build(monkeypatch):
    """(settings) -> (engine, its StandInLLM)."""
    from trl.generation import vllm_generation

    monkeypatch.setattr(vllm_generation, "LLM", StandInLLM, raising=False)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace))
    accelerator = Accelerator(cpu=True)  # before the variables, which would have it look for other processes
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")  # TRL sets them; given back after the test

    def build_engine(policy=None, **changes):
        policy = policy or tiny_policy()
        policy.config.name_or_path = policy.name_or_path = "a/checkpoint"
        config = GRPOConfig(use_vllm=True, generation_batch_size=32, **changes)
        engine = build_vllm_engine(policy, SimpleNamespace(eos_token_id=EOS), config, accelerator)
        return engine, engine.backend.generation.llm

    with stand_ins():
        yield build_engine


def test_it_starts_as_the_settings_say(build):
    _, llm = build(vllm_gpu_memory_utilization=0.5, vllm_max_model_length=48, vllm_model_impl="transformers")
    expected = {
        "model": "a/checkpoint", "gpu_memory_utilization": 0.5, "max_model_len": 48, "max_num_seqs": 32,
        "tensor_parallel_size": 1, "model_impl": "transformers", "logprobs_mode": "processed_logprobs",
    }  # fmt: skip
    assert {name: llm.options[name] for name in expected} == expected


def test_completions_are_those_of_the_seeds(build):
    prompts, params, seeds = ragged_prompts((3, 8)), SamplingParams(n=2, max_tokens=9), [[70, 71], [5, 9]]
    engine, _ = build()
    ours = engine.generate_together(prompts, params, seeds)
    theirs = RolloutEngine(tiny_policy(), eos_token_id=EOS).generate(prompts, params, seeds)
    assert tokens(ours) == tokens(theirs)
    assert [c.logps for group in ours for c in group] == [c.logps for group in theirs for c in group]


def test_weights_are_loaded_once_an_update_under_a_checkpoints_names(build):
    policy = tiny_policy()
    engine, llm = build(policy)
    for _ in range(2):
        engine.generate([[1]], SamplingParams(max_tokens=1))
    assert [name for name, _ in llm.calls] == ["reset_prefix_cache", "generate", "generate"]
    gate = policy.model.layers[1].mlp.gate
    assert torch.equal(llm.weights["model.layers.1.mlp.gate.e_score_correction_bias"], gate.e_score_correction_bias)
    assert "model.layers.1.mlp.experts.3.up_proj.weight" in llm.weights
    engine.weights_changed()
    engine.generate([[1]], SamplingParams(max_tokens=1))
    assert [name for name, _ in llm.calls][3:] == ["reset_prefix_cache", "generate"]


def test_sleep_gives_up_the_weights_after_each_rollout(build, monkeypatch):
    monkeypatch.setattr("trl.generation.vllm_generation.empty_cache", lambda: None)  # of a GPU
    engine, llm = build(vllm_enable_sleep_mode=True)
    for _ in range(2):
        engine.generate([[1]], SamplingParams(max_tokens=1))
    rollout = [("wake_up", {"tags": ["weights"]}), ("reset_prefix_cache", {}), ("wake_up", {"tags": ["kv_cache"]}),
               ("generate", {}), ("sleep", {"level": 2})]  # fmt: skip
    assert llm.calls == [("sleep", {"level": 2}), *rollout, *rollout]


def test_a_policy_without_a_checkpoint_is_refused(build):
    policy = tiny_policy()
    with pytest.raises(ValueError, match="model_name_or_path"):
        build_vllm_engine(policy, SimpleNamespace(eos_token_id=EOS), GRPOConfig(use_vllm=True), Accelerator(cpu=True))
