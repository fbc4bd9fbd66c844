import functools
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import rewards
from rewards import REWARDS, load_reward
from rewards.registry import Registry, reward_name

OPEN_R1_NAMES = {
    "accuracy", "format", "reasoning_steps", "cosine", "repetition_penalty", "length", "code", "binary_code",
    "code_format", "tag_count", "soft_overlong_punishment",
}  # fmt: skip


def test_open_r1_names_are_there():
    assert OPEN_R1_NAMES <= set(REWARDS)


def test_load_by_name_and_by_path():
    assert load_reward("accuracy") is REWARDS["accuracy"] is rewards.accuracy_reward
    assert load_reward("rewards.countdown.countdown_reward") is rewards.countdown_reward


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("acuracy", "accuracy, format"),
        ("rewards.nothing.f", "no module 'rewards.nothing'"),
        ("rewards.countdown.nothing", "no function 'nothing'"),
        ("rewards.countdown.MAX_DEPTH", "no function 'MAX_DEPTH'"),
    ],
)
def test_a_name_that_leads_nowhere(name, message):
    with pytest.raises(ValueError, match=message):
        load_reward(name)


def test_options_are_fixed_and_checked():
    short = load_reward("cosine", max_len=2)
    assert short(completions=["4444"], solution=["4"]) == [-0.5]
    assert short.__name__ == "cosine_reward" and pickle.loads(pickle.dumps(short)).keywords == {"max_len": 2}
    with pytest.raises(TypeError, match="no option 'max_length'; it has .*max_len"):
        load_reward("cosine", max_length=2)


def test_a_registry_imports_when_asked():
    registry = Registry({"path": "json.dumps", "wrong": "no_such_module.f"})
    assert list(registry) == ["path", "wrong"] and len(registry) == 2
    assert registry["path"]([1]) == "[1]"
    with pytest.raises(ValueError, match="no_such_module"):
        registry["wrong"]
    registry["mine"] = test_open_r1_names_are_there
    assert registry["mine"] is test_open_r1_names_are_there
    del registry["mine"]
    assert "mine" not in registry


def test_reward_name_looks_into_partials_and_objects():
    class Mine:
        def __call__(self):
            pass

    assert reward_name(functools.partial(rewards.format_reward)) == "format_reward"
    assert reward_name(Mine()) == "Mine"


def test_every_public_name_exists():
    for name in rewards.__all__:
        assert getattr(rewards, name) is not None and name in dir(rewards)
    with pytest.raises(AttributeError, match="'nothing'"):
        rewards.nothing  # noqa: B018


def run_python(code):
    """In a process without site-packages: only the standard library and this repository can be imported."""
    root = Path(rewards.__file__).parents[1]
    run = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=root, timeout=60)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def test_every_module_imports_without_any_package():
    modules = "rewards.math, rewards.code, rewards.adapters, rewards.rubric, rewards.tags"
    code = f"import sys, rewards, {modules}; from rewards import *; print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in run_python(code)}
    assert "rewards" in loaded
    assert loaded <= set(sys.stdlib_module_names) | {"rewards", "__main__"}


def test_importing_rewards_loads_nothing_else():
    assert [name for name in run_python("import sys, rewards; print(*sys.modules)") if "rewards." in name] == []
