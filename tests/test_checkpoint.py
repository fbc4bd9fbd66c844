"""Checkpoints: exact, atomic, verified."""

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time

import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM

from r1lab.checkpoint import (
    CheckpointError,
    capture_rng_state,
    list_checkpoints,
    load_checkpoint,
    load_latest,
    prune_checkpoints,
    remove_checkpoints_after,
    resolve_resume,
    restore_rng_state,
    save_checkpoint,
)

SIZES = dict(
    vocab_size=32, hidden_size=16, intermediate_size=24, moe_intermediate_size=8, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4,
    qk_nope_head_dim=4, v_head_dim=4, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
    n_shared_experts=1, first_k_dense_replace=1, max_position_embeddings=64,
)  # fmt: skip


def build_policy(seed=0, **changes):
    torch.manual_seed(seed)
    return DeepseekV3ForCausalLM(DeepseekV3Config(**SIZES | changes))


@pytest.fixture(scope="module")
def policy():
    return build_policy()


def bits(model):
    return {name: tensor.clone().view(torch.int32) for name, tensor in model.state_dict().items()}


def same_bits(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def flip_byte(path, position=-5):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_round_trip_is_bit_exact(tmp_path):
    policy = build_policy(seed=1)
    with torch.no_grad():
        policy.model.embed_tokens.weight[0, :3] = torch.tensor([1e-42, -0.0, 3.0000002])
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    policy(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "counters": {"skipped_steps": 3, "epoch": 0.5}, "ref": None}
    path = save_checkpoint(tmp_path, step=12, policy=policy, state=state)
    assert path == tmp_path / "checkpoints" / "step_00012"

    other = build_policy(seed=2)
    checkpoint = load_checkpoint(path, policy=other)
    assert same_bits(bits(policy), bits(other))
    assert checkpoint.step == 12 and checkpoint.state["counters"] == state["counters"]
    fresh = torch.optim.AdamW(other.parameters(), lr=1.0)
    fresh.load_state_dict(checkpoint.state["optimizer"])
    assert fresh.param_groups[0]["lr"] == 1e-3
    for mine, saved in zip(policy.parameters(), other.parameters(), strict=True):
        for key, value in optimizer.state.get(mine, {}).items():
            assert torch.equal(value, fresh.state[saved][key]), key


def test_transformers_loads_the_policy(tmp_path, policy):
    path = save_checkpoint(tmp_path, step=1, policy=policy, state={})
    assert same_bits(bits(policy), bits(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)))


def test_loading_restores_every_generator_and_disturbs_none(tmp_path, policy):
    def draw():
        return random.random(), float(numpy.random.rand()), float(torch.rand(())), random.gauss(0, 1)

    random.gauss(0, 1)  # leaves a cached second value, part of the state
    path = save_checkpoint(tmp_path, step=1, policy=policy, state={"rng": capture_rng_state()})
    expected = draw()
    restore_rng_state(load_checkpoint(path).state["rng"])
    assert draw() == expected
    restore_rng_state(load_checkpoint(path).state["rng"])
    load_checkpoint(path, policy=build_policy_quietly())
    assert draw() == expected


def build_policy_quietly():
    rng = capture_rng_state()
    policy = build_policy(seed=9)
    restore_rng_state(rng)
    return policy


@pytest.mark.parametrize("bad", [numpy.float64(1.0), numpy.zeros(2), print, {"x": [object()]}])
def test_state_that_would_need_pickled_code_is_refused_on_saving(tmp_path, policy, bad):
    with pytest.raises(ValueError, match=r"state\['part'\].*cannot be loaded safely"):
        save_checkpoint(tmp_path, step=1, policy=policy, state={"part": bad})
    assert not (tmp_path / "checkpoints").exists()


def test_loading_runs_no_pickled_code(tmp_path, policy):
    path = save_checkpoint(tmp_path, step=1, policy=policy, state={})

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    torch.save({"part": Attack()}, path / "trainer_state.pt")
    manifest_as_attacker_would(path)
    with pytest.raises(CheckpointError, match=r"trainer_state.pt"):
        load_checkpoint(path)
    assert not (tmp_path / "pwned").exists()


def manifest_as_attacker_would(path):
    from r1lab import checkpoint

    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["manifest_sha256"]
    manifest["files"]["trainer_state.pt"] = checkpoint._describe(path / "trainer_state.pt")
    manifest["manifest_sha256"] = checkpoint._manifest_digest(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


# ------------------------------------------------------------------------------------------------------- corruption


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "trainer_state.pt", "manifest.json"])
def test_one_flipped_bit_is_found_and_the_previous_checkpoint_named(tmp_path, policy, name):
    earlier = save_checkpoint(tmp_path, step=1, policy=policy, state={"x": 1})
    path = save_checkpoint(tmp_path, step=2, policy=policy, state={"x": 2})
    flip_byte(path / name)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(resolve_resume(tmp_path), policy=policy)
    message = str(error.value)
    assert f"{path / name} is corrupt" in message and str(earlier) in message and "\n" not in message
    assert load_checkpoint(earlier).state == {"x": 1}


@pytest.mark.parametrize("name", ["model.safetensors", "trainer_state.pt", "manifest.json"])
def test_a_missing_file_is_named(tmp_path, policy, name):
    path = save_checkpoint(tmp_path, step=2, policy=policy, state={})
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing.*no earlier checkpoint"):
        load_checkpoint(path)


def test_a_truncated_file_is_found_without_checksums(tmp_path, policy):
    path = save_checkpoint(tmp_path, step=2, policy=policy, state={})
    os.truncate(path / "model.safetensors", 100)
    with pytest.raises(CheckpointError, match=r"model.safetensors is corrupt: 100 bytes"):
        load_checkpoint(path, verify=False)


def test_another_architecture_is_refused_with_both_values(tmp_path, policy):
    path = save_checkpoint(tmp_path, step=1, policy=policy, state={})
    other = build_policy(hidden_size=32, n_routed_experts=8)
    before = bits(other)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path, policy=other)
    assert "hidden_size: 16 in the checkpoint, 32 in the current policy" in str(error.value)
    assert "n_routed_experts: 4 in the checkpoint, 8" in str(error.value)
    assert same_bits(before, bits(other))


def test_a_newer_format_asks_for_an_update(tmp_path, policy):
    path = save_checkpoint(tmp_path, step=1, policy=policy, state={})
    manifest = json.loads((path / "manifest.json").read_text()) | {"format_version": 99}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"format 99.*update"):
        load_checkpoint(path)


# -------------------------------------------------------------------------------------------------- finding, pruning


def test_resolve_resume(tmp_path, policy):
    for step in (9, 100):
        save_checkpoint(tmp_path, step=step, policy=policy, state={})
    latest = tmp_path / "checkpoints" / "step_00100"
    (tmp_path / "checkpoints" / ".tmp-step_00200-1").mkdir()
    (tmp_path / "checkpoints" / "step_00300").mkdir()  # no manifest
    assert resolve_resume(tmp_path) == latest
    assert resolve_resume(tmp_path / "checkpoints") == latest
    assert resolve_resume(True, output_dir=tmp_path) == latest
    assert resolve_resume(str(tmp_path / "checkpoints" / "step_00009")).name == "step_00009"
    assert resolve_resume(None) is None and resolve_resume(False) is None
    with pytest.raises(CheckpointError, match=r"cut short.*step_00100"):
        resolve_resume(tmp_path / "checkpoints" / "step_00300")
    with pytest.raises(CheckpointError, match="no such directory"):
        resolve_resume(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        resolve_resume(tmp_path / "empty")
    with pytest.raises(ValueError, match="output_dir"):
        resolve_resume(True)
    assert load_latest(tmp_path / "empty") is None and load_latest(tmp_path).step == 100


def test_keep_last(tmp_path, policy):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step=step, policy=policy, state={}, keep_last=2)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step_00002", "step_00003"]
    assert [path.name for path in prune_checkpoints(tmp_path, 1)] == ["step_00002"]
    with pytest.raises(ValueError, match="keep_last=0"):
        save_checkpoint(tmp_path, step=4, policy=policy, state={}, keep_last=0)


def test_a_run_resumed_from_an_earlier_step_keeps_its_new_checkpoints(tmp_path, policy):
    for step in (2, 4, 9):
        save_checkpoint(tmp_path, step=step, policy=policy, state={"branch": "old"})
    path = save_checkpoint(tmp_path, step=5, policy=policy, state={"branch": "new"}, keep_last=1)
    assert load_checkpoint(path).state == {"branch": "new"}
    assert [kept.name for kept in list_checkpoints(tmp_path)] == ["step_00005", "step_00009"]
    assert [gone.name for gone in remove_checkpoints_after(tmp_path, 5)] == ["step_00009"]
    assert load_latest(tmp_path).step == 5


def test_a_kill_while_a_step_is_replaced_loses_nothing(tmp_path, policy, monkeypatch):
    save_checkpoint(tmp_path, step=1, policy=policy, state={"x": "old"})
    rename = os.rename

    def fail_on_second(source, target):
        if os.fspath(target).endswith("step_00001"):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_on_second)
    with pytest.raises(CheckpointError, match="Input/output error"):
        save_checkpoint(tmp_path, step=1, policy=policy, state={"x": "new"})
    monkeypatch.undo()
    assert load_latest(tmp_path).state == {"x": "old"}
    save_checkpoint(tmp_path, step=1, policy=policy, state={"x": "new"})
    assert load_latest(tmp_path).state == {"x": "new"}
    assert os.listdir(tmp_path / "checkpoints") == ["step_00001"]


# ------------------------------------------------------------------------------------------------- kill and full disk


class FilePolicy:
    """A policy whose weights are one big tensor: saved in several writes, and importing no transformers."""

    def __init__(self, num_bytes):
        self.weight = torch.ones(num_bytes // 4)

    def state_dict(self):
        return {"weight": self.weight}

    def save_pretrained(self, directory, state_dict=None):
        from safetensors.torch import save_file

        save_file(self.state_dict(), directory / "model.safetensors")


SAVER = textwrap.dedent("""
    import sys
    import torch
    from r1lab.checkpoint import save_checkpoint

    class FilePolicy:
        def state_dict(self):
            return {"weight": torch.ones(2_000_000)}

        def save_pretrained(self, directory):
            from safetensors.torch import save_file
            save_file(self.state_dict(), directory / "model.safetensors")
            print("half", flush=True)

    save_checkpoint(sys.argv[1], step=1, policy=FilePolicy(), state={"x": 1})
    print("saved", flush=True)
    step = 2
    while True:
        save_checkpoint(sys.argv[1], step=step, policy=FilePolicy(), state={"x": torch.ones(4_000_000)})
        step += 1
""")


@pytest.mark.parametrize("delay_s", [0.0, 0.02])
def test_kill_9_in_the_middle_of_a_save(tmp_path, delay_s):
    saver = subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        lines = [saver.stdout.readline().strip() for _ in range(3)]
        time.sleep(delay_s)
    finally:
        saver.send_signal(signal.SIGKILL)
        saver.wait()
        saver.stdout.close()
    assert lines == ["half", "saved", "half"]
    checkpoint = load_checkpoint(resolve_resume(tmp_path))
    assert checkpoint.step >= 1
    # The next save clears what the killed one left.
    save_checkpoint(tmp_path, step=1000, policy=FilePolicy(400), state={})
    assert not list((tmp_path / "checkpoints").glob(".tmp-*"))


@pytest.mark.parametrize("full_part", ["policy", "state"])
def test_full_disk(tmp_path, full_part):
    """A limit on the file size makes the kernel refuse the write, as a full disk does, for every writer alike."""
    save_checkpoint(tmp_path, step=1, policy=FilePolicy(400), state={"x": 1})
    big = 4_000_000
    policy = FilePolicy(big if full_part == "policy" else 400)
    state = {"x": torch.ones(big // 4) if full_part == "state" else 0}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(CheckpointError) as error:
            save_checkpoint(tmp_path, step=2, policy=policy, state=state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    message = str(error.value)
    assert ("cut short" in message or "File too large" in message) and "step_00002" in message
    assert "needs about 3.8 MiB, free" in message and "\n" not in message
    assert os.listdir(tmp_path / "checkpoints") == ["step_00001"]
    assert load_latest(tmp_path).state == {"x": 1}


def test_too_little_space_is_said_before_writing(tmp_path, monkeypatch):
    from r1lab import checkpoint

    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 20})())
    policy = FilePolicy(4_000_000)
    policy.save_pretrained = lambda *_: pytest.fail("wrote to a disk known to be full")
    with pytest.raises(CheckpointError, match=r"not enough free space \(needs about 3.8 MiB, free 1.0 MiB\)"):
        save_checkpoint(tmp_path, step=1, policy=policy, state={})


def test_only_disk_errors_are_turned_into_disk_errors(tmp_path):
    policy = FilePolicy(400)

    def fail(directory):
        raise RuntimeError("CUDA error: device-side assert triggered")

    policy.save_pretrained = fail
    with pytest.raises(RuntimeError, match="device-side assert"):
        save_checkpoint(tmp_path, step=1, policy=policy, state={})
    assert os.listdir(tmp_path / "checkpoints") == []
