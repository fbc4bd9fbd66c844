import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

import r1lab.checkpoint as checkpoint_module
from r1lab.checkpoint import CheckpointError, list_checkpoints, load_checkpoint
from r1lab.grpo.trainer import StepOutput
from r1lab.run import Run, RunConfig
from r1lab.types import Completion, Prompt, Rollout, RolloutGroup


class FakePolicy:
    """Enough of a policy to be saved and counted."""

    def __init__(self):
        self.weight = torch.zeros(3)

    def state_dict(self):
        return {"weight": self.weight}

    def save_pretrained(self, directory):
        torch.save(self.weight, directory / "weight.pt")


class FakeTrainer:
    """Steps without training."""

    def __init__(self, max_steps=4):
        self.config = SimpleNamespace(max_steps=max_steps, seed=0)
        self.collector = SimpleNamespace(reward_funcs=[accuracy])
        self.policy = FakePolicy()
        self.step_index = 0

    def step(self):
        self.step_index += 1
        self.policy.weight += 1
        rollouts = [
            Rollout(Completion([5], [-1.0], "stop"), text, {"accuracy": right}, right)
            for text, right in (("wait 8", 1.0), ("7", 0.0))
        ]
        return StepOutput({"reward": 0.5, "loss": 0.0}, [RolloutGroup(Prompt("p", [3]), rollouts)])

    def state_dict(self):
        return {"step": self.step_index}

    def load_state_dict(self, state):
        self.step_index = state["step"]


def accuracy(**columns):
    raise AssertionError("only its name is asked for")


class Evaluator:
    """Counts calls; accuracy tells them apart."""

    def __init__(self):
        self.calls = []

    def __call__(self, num_problems, num_samples, ban_reflection=False):
        self.calls.append((num_problems, num_samples, ban_reflection))
        return {"accuracy": len(self.calls) / 10, "num_problems": num_problems}


def _run(directory, trainer=None, evaluators=None, **settings):
    fields = {"output_dir": str(directory), "save_steps": 1, "save_total_limit": 10, "eval_steps": 2}
    config = RunConfig(**fields | {"final_num_problems": 7, "final_num_samples": 3} | settings)
    return Run(trainer or FakeTrainer(), config, Accelerator(cpu=True), None, evaluators or {}, {"seed": 0})


def _rows(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def _steps(directory):
    return [path.name for path in list_checkpoints(directory)]


def test_evaluations_of_a_run(tmp_path):
    evaluate = Evaluator()
    results = _run(tmp_path, evaluators={"n3": evaluate}).train()
    during, full = (60, 4, False), (7, 3, False)
    assert evaluate.calls == [full, during, during, full, (7, 3, True)]
    rows = _rows(tmp_path)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row.get("eval/n3/accuracy") for row in rows] == [0.1, None, 0.2, None, 0.3]
    assert [results[when]["n3"]["accuracy"] for when in ("base", "final", "final_reflection_banned")] == [0.1, 0.4, 0.5]
    assert rows[1]["reflection/rate"] == 0.5
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["final"] == results["final"] and saved["steps"] == 4
    assert (tmp_path / "config.yaml").read_text() == "seed: 0\n"


class RecordingTracker(GeneralTracker):
    """An accelerate tracker that keeps what it is given."""

    name = "recording"
    requires_logging_directory = False

    def __init__(self):
        super().__init__()
        self.logged = []

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        pass

    def log(self, values, step):
        self.logged.append((step, values))


def test_trackers_get_every_step_that_metrics_jsonl_gets(tmp_path):
    tracker = RecordingTracker()
    accelerator = Accelerator(cpu=True, log_with=tracker)
    accelerator.init_trackers("project")
    config = RunConfig(output_dir=str(tmp_path), eval_steps=2, log_with="recording")
    Run(FakeTrainer(), config, accelerator, None, {"n3": Evaluator()}, {}).train()
    rows = {row.pop("step"): row for row in _rows(tmp_path)}
    assert [step for step, _ in tracker.logged] == list(rows)
    for step, logged in tracker.logged:
        # A NaN (undefined at this step) is null in JSON.
        assert {name: value if value == value else None for name, value in logged.items()} == rows[step]


@pytest.mark.parametrize("eval_steps", [0, 3])
def test_eval_steps(tmp_path, eval_steps):
    evaluate = Evaluator()
    _run(tmp_path, evaluators={"n3": evaluate}, eval_steps=eval_steps).train()
    assert len(evaluate.calls) == 3 + (1 if eval_steps else 0)


def test_the_last_step_is_saved_whatever_save_steps_says(tmp_path):
    _run(tmp_path, save_steps=3).train()
    assert _steps(tmp_path) == ["step_00003", "step_00004"]


def test_a_full_disk_stops_the_run_and_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    inner = checkpoint_module._require_space

    def require(directory, needed):
        if len(list_checkpoints(tmp_path)) == 2:
            raise OSError(28, "No space left on device")
        inner(directory, needed)

    monkeypatch.setattr(checkpoint_module, "_require_space", require)
    with pytest.raises(CheckpointError, match="No space left on device") as error:
        _run(tmp_path).train()
    assert "\n" not in str(error.value)
    assert _steps(tmp_path) == ["step_00001", "step_00002"]
    assert load_checkpoint(tmp_path / "checkpoints/step_00002").state["trainer"] == {"step": 2}
    assert not list(tmp_path.glob("checkpoints/.tmp*"))
    assert [row["step"] for row in _rows(tmp_path)] == [1, 2, 3], "every finished step is on record"


def test_a_run_is_neither_overwritten_nor_mixed_with_another(tmp_path):
    _run(tmp_path).train()
    with pytest.raises(FileExistsError, match="resume_from_checkpoint true.*overwrite_output_dir"):
        _run(tmp_path)
    assert len(_rows(tmp_path)) == 4


def test_overwriting_leaves_nothing_that_a_resume_could_mistake_for_its_own(tmp_path):
    _run(tmp_path, FakeTrainer(max_steps=4)).train()
    _run(tmp_path, FakeTrainer(max_steps=2), overwrite_output_dir=True).train()
    assert [row["step"] for row in _rows(tmp_path)] == [1, 2]
    assert _steps(tmp_path) == ["step_00001", "step_00002"]
    assert len(list(tmp_path.glob("completions/*.parquet"))) == 2


def _without_weights(monkeypatch):
    """A fake policy has no files that transformers could load."""
    monkeypatch.setattr("r1lab.run.load_checkpoint", lambda path, policy: load_checkpoint(path))


def test_resuming_from_an_earlier_step_drops_the_abandoned_future(tmp_path, monkeypatch):
    _without_weights(monkeypatch)
    _run(tmp_path).train()
    trainer = FakeTrainer(max_steps=3)
    run = _run(tmp_path, trainer, resume_from_checkpoint=str(tmp_path / "checkpoints/step_00002"))
    assert trainer.step_index == 2
    assert [row["step"] for row in _rows(tmp_path)] == [1, 2]
    assert _steps(tmp_path) == ["step_00001", "step_00002"]
    run.train()
    assert [row["step"] for row in _rows(tmp_path)] == [1, 2, 3]
    assert _steps(tmp_path) == ["step_00001", "step_00002", "step_00003"]


def test_resume_keeps_the_base_results(tmp_path, monkeypatch):
    _without_weights(monkeypatch)
    _run(tmp_path, FakeTrainer(max_steps=2), {"n3": Evaluator()}).train()
    again = Evaluator()
    results = _run(tmp_path, FakeTrainer(max_steps=3), {"n3": again}, resume_from_checkpoint="true").train()
    assert results["base"]["n3"]["accuracy"] == 0.1
    assert again.calls == [(7, 3, False), (7, 3, True)]


def test_resume_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        _run(tmp_path, resume_from_checkpoint="true")


@pytest.mark.parametrize(("name", "value"), [("save_steps", 0), ("save_total_limit", 0), ("eval_steps", -1)])
def test_settings_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        RunConfig(**{name: value})
