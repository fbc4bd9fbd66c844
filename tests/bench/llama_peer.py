"""llama.cpp as a peer: our policy as a GGUF file, and a worker process in the interpreter that has `cyllama`.

The worker (llama_worker.py) answers one JSON line per request. `gguf` is needed here, `cyllama` there.
"""

import json
import subprocess
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch

TYPES = {"f32": gguf.GGMLQuantizationType.F32, "f16": gguf.GGMLQuantizationType.F16,
         "q8_0": gguf.GGMLQuantizationType.Q8_0}  # fmt: skip
SIGMOID = 2
"""llama.cpp's number for a sigmoid gate."""


class LlamaPeer:
    """A policy in llama.cpp; the first thing it does is to check its logits against ours.

    Raises RuntimeError when the worker fails or its logits are not the policy's.
    """

    def __init__(self, python: str, policy: torch.nn.Module, dtype: str):
        self.dtype = dtype
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "policy.gguf"
        write_gguf(policy, path, dtype)
        worker = Path(__file__).with_name("llama_worker.py")
        self.process = subprocess.Popen(
            [python, str(worker), str(path), str(policy.config.vocab_size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._check(policy)

    def run(self, batch: int, prompt_length: int, new_tokens: int, group: int) -> dict[str, float]:
        """Tokens a second of CPU and of wall: prompts prefilled once a group, then a llama_decode a step."""
        return self._ask(batch=batch, prompt_length=prompt_length, new_tokens=new_tokens, group=group)

    def _ask(self, **request) -> dict:
        print(json.dumps(request), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"llama_worker.py ended with status {self.process.wait()}; its output is above")
        return json.loads(line)

    @torch.no_grad()
    def _check(self, policy: torch.nn.Module) -> None:
        ids = [3 + i * 7 % (policy.config.vocab_size - 3) for i in range(20)]
        ours = policy(torch.tensor([ids])).logits[0, -1]
        theirs = torch.tensor(self._ask(logits_of=ids)["logits"])
        error = ((ours - theirs).abs().max() / ours.abs().max()).item()
        print(f"  llama.cpp {self.dtype}: logits within {error:.1e} of ours", flush=True)
        if not error < 0.1:
            raise RuntimeError(f"llama.cpp's logits are off by {error:.2f} of the largest: the GGUF file is wrong")


def write_gguf(policy: torch.nn.Module, path: Path, dtype: str) -> None:
    """The policy in llama.cpp's "deepseek2" layout, attention absorbed; without a tokenizer."""
    writer = gguf.GGUFWriter(str(path), "deepseek2")
    _write_settings(writer, policy.config)
    weights = {name: tensor.detach().numpy() for name, tensor in policy.state_dict().items()}
    _add(writer, "token_embd.weight", weights["model.embed_tokens.weight"], dtype)
    _add(writer, "output_norm.weight", weights["model.norm.weight"], "f32")
    _add(writer, "output.weight", weights["lm_head.weight"], dtype)
    for index in range(policy.config.num_hidden_layers):
        prefix = f"model.layers.{index}."
        layer = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        _write_attention(writer, f"blk.{index}.", layer, policy.config, dtype)
        _write_feed_forward(writer, f"blk.{index}.", layer, dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_settings(writer: gguf.GGUFWriter, config) -> None:
    latent = config.kv_lora_rank
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_kv_lora_rank(latent)
    writer.add_key_length(latent + config.qk_rope_head_dim)
    writer.add_value_length(latent)
    writer.add_key_length_mla(config.qk_nope_head_dim + config.qk_rope_head_dim)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_expert_count(config.n_routed_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_weights_norm(config.norm_topk_prob)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType(SIGMOID))
    writer.add_tokenizer_model("no_vocab")


def _write_attention(writer: gguf.GGUFWriter, name: str, layer: dict, config, dtype: str) -> None:
    _add(writer, f"{name}attn_norm.weight", layer["input_layernorm.weight"], "f32")
    _add(writer, f"{name}ffn_norm.weight", layer["post_attention_layernorm.weight"], "f32")
    _add(writer, f"{name}attn_q_a_norm.weight", layer["self_attn.q_a_layernorm.weight"], "f32")
    _add(writer, f"{name}attn_kv_a_norm.weight", layer["self_attn.kv_a_layernorm.weight"], "f32")
    _add(writer, f"{name}attn_q_a.weight", layer["self_attn.q_a_proj.weight"], dtype)
    _add(writer, f"{name}attn_q_b.weight", layer["self_attn.q_b_proj.weight"], dtype)
    _add(writer, f"{name}attn_kv_a_mqa.weight", layer["self_attn.kv_a_proj_with_mqa.weight"], dtype)
    _add(writer, f"{name}attn_output.weight", layer["self_attn.o_proj.weight"], dtype)
    kv_b = layer["self_attn.kv_b_proj.weight"].reshape(config.num_attention_heads, -1, config.kv_lora_rank)
    keys, values = np.split(kv_b, [config.qk_nope_head_dim], axis=1)
    _add(writer, f"{name}attn_k_b.weight", np.ascontiguousarray(keys.transpose(0, 2, 1)), dtype)
    _add(writer, f"{name}attn_v_b.weight", np.ascontiguousarray(values), dtype)


def _write_feed_forward(writer: gguf.GGUFWriter, name: str, layer: dict, dtype: str) -> None:
    is_moe = "mlp.gate.weight" in layer
    prefix, suffix = ("mlp.shared_experts.", "_shexp") if is_moe else ("mlp.", "")
    for part in ("gate", "up", "down"):
        _add(writer, f"{name}ffn_{part}{suffix}.weight", layer[f"{prefix}{part}_proj.weight"], dtype)
    if not is_moe:
        return
    gate, up = np.split(layer["mlp.experts.gate_up_proj"], 2, axis=1)
    for part, value in (("gate", gate), ("up", up), ("down", layer["mlp.experts.down_proj"])):
        _add(writer, f"{name}ffn_{part}_exps.weight", np.ascontiguousarray(value), dtype)
    _add(writer, f"{name}ffn_gate_inp.weight", layer["mlp.gate.weight"], "f32")
    _add(writer, f"{name}exp_probs_b.bias", layer["mlp.gate.e_score_correction_bias"], "f32")


def _add(writer: gguf.GGUFWriter, name: str, value: np.ndarray, dtype: str) -> None:
    value = np.ascontiguousarray(value, dtype=np.float32)
    if dtype == "q8_0" and value.shape[-1] % 32:  # blocks of 32
        dtype = "f16"
    writer.add_tensor(name, gguf.quants.quantize(value, TYPES[dtype]), raw_dtype=TYPES[dtype])
