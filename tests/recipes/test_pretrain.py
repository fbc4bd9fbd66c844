"""Pretraining and the probe, small, each in its own process."""

import json
import re
import sys

import torch
from processes import run_program
from recipe_runs import ROOT, recipe_environment
from safetensors.torch import load_file
from transformers import AutoTokenizer, DeepseekV3ForCausalLM

from r1lab.model import PolicyForCausalLM

SMALL = ["--num_steps", "3", "--drill_steps", "1", "--tokens_per_batch", "1024", "--warmup_steps", "1",
         "--logging_steps", "1"]  # fmt: skip


def _run(recipe, *arguments):
    process = run_program([sys.executable, ROOT / "recipes" / recipe, *arguments], env=recipe_environment())
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


def test_a_finished_base_gets_a_module_and_keeps_its_bits(tmp_path):
    printed = _run("pretrain.py", *SMALL, "--init_from", ROOT / "data/base", "--train_mtp_only", "true", "--output_dir",
                   tmp_path / "base")  # fmt: skip
    losses = [float(loss) for loss in re.findall(r"mtp_loss ([\d.]+)", printed)]
    assert len(losses) == 3 and losses[-1] < losses[0]
    base, trained = (load_file(path / "model.safetensors") for path in (ROOT / "data/base", tmp_path / "base"))
    own = {name for name in base if not name.startswith("model.layers.4.")}  # a base may come with a module
    assert all(torch.equal(trained[name], base[name]) for name in own)
    assert all(name.startswith("model.layers.4.") for name in trained.keys() - own)
    biases = trained["model.layers.4.mlp.gate.e_score_correction_bias"]
    assert biases.abs().max() > 0
    assert PolicyForCausalLM.from_pretrained(tmp_path / "base", with_mtp=True).mtp is not None
    assert json.loads((tmp_path / "base/mtp_training.json").read_text())["final_mtp_loss"] > 0


def test_policy_and_module_are_trained_together(tmp_path):
    printed = _run("pretrain.py", *SMALL, "--mtp_loss_weight", "0.3", "--output_dir", tmp_path / "base")
    for name in ("loss", "mtp_loss"):
        losses = [float(loss) for loss in re.findall(rf" {name} ([\d.]+)", printed)]
        assert len(losses) == 3 and losses[-1] < losses[0]
    assert PolicyForCausalLM.from_pretrained(tmp_path / "base", with_mtp=True).mtp is not None
    process = run_program([sys.executable, ROOT / "recipes/pretrain.py", *SMALL, "--train_mtp_only", "true"],
                          env=recipe_environment())  # fmt: skip
    assert process.returncode != 0 and "give init_from" in process.stderr


def test_a_pretrained_base_loads_in_transformers_and_can_be_probed(tmp_path):
    printed = _run("pretrain.py", *SMALL, "--output_dir", tmp_path / "base")
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]
    assert len(losses) == 3 and losses[-1] < losses[0]
    facts = json.loads((tmp_path / "base/pretraining.json").read_text())
    assert facts["steps"] == 3 and 2000 < facts["tokens"] <= 3 * 1024
    assert str(tmp_path) not in json.dumps(facts)
    model = DeepseekV3ForCausalLM.from_pretrained(tmp_path / "base")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "base")) <= model.config.vocab_size
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    biases = [
        module.e_score_correction_bias for module in model.modules() if hasattr(module, "e_score_correction_bias")
    ]
    assert torch.stack(biases).abs().max() > 0  # moved by the balancing, not by a gradient

    probed = _run("probe.py", "--model_name_or_path", tmp_path / "base", "--num_problems", "2", "--num_samples", "2",
                  "--max_completion_length", "16")  # fmt: skip
    assert [line.split(" {")[0] for line in probed.splitlines()] == [f"pick_two n={n}" for n in (3, 4, 5)]


def test_pretraining_in_fp8(tmp_path):
    printed = _run("pretrain.py", *SMALL, "--fp8", "true", "--output_dir", tmp_path / "base")
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert json.loads((tmp_path / "base/pretraining.json").read_text())["config"]["fp8"] is True
    weights = DeepseekV3ForCausalLM.from_pretrained(tmp_path / "base").state_dict()  # the weights themselves stay fp32
    assert all(weight.dtype == torch.float32 for name, weight in weights.items() if name.endswith("proj.weight"))
