"""Curves as PNG files."""

import sys

import pytest
from processes import run_program

from r1lab.trace import MetricsLog, plot_curves


def write_run(path, seed=0, steps=30, keys=None):
    with MetricsLog(path / "metrics.jsonl") as log:
        for step in range(1, steps + 1):
            share = step / steps
            metrics = {"step": step, "reward": share + 0.01 * seed, "rewards/accuracy_reward/mean": share,
                       "completions/mean_length": 20 + 50 * share, "reflection/rate": 0.6 * share}  # fmt: skip
            if step % 10 == 0:
                metrics |= {"eval/3 numbers/accuracy": share * 0.9, "eval/4 numbers/accuracy": None}
            log.append({key: value for key, value in metrics.items() if keys is None or key in keys})
    return path


def read_size(png):
    content = png.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big"), len(content)


def test_one_run(tmp_path):
    out = plot_curves(write_run(tmp_path / "run"), tmp_path / "pictures" / "curves.png", "R1-Zero")
    width, height, num_bytes = read_size(out)
    assert (width, height) == (1500, 1000) and 20_000 < num_bytes < 400_000


def test_seeds_add_thin_lines_and_a_mean(tmp_path):
    from matplotlib.figure import Figure

    from r1lab.trace.curves import _draw_single
    from r1lab.trace.load import load_run

    runs = [write_run(tmp_path / f"seed{seed}", seed, steps=30 - 5 * seed) for seed in range(3)]
    read_size(plot_curves(runs, tmp_path / "curves.png"))
    axes = Figure().subplots()
    _draw_single(axes, [load_run(run).metrics for run in runs], "reward", "Reward", "mean")
    *thin, mean = axes.get_lines()
    assert [len(line.get_xdata()) for line in (*thin, mean)] == [30, 25, 20, 20]
    expected = sum(line.get_ydata()[9] for line in thin) / 3
    assert mean.get_ydata()[9] == pytest.approx(expected) and mean.get_linewidth() > thin[0].get_linewidth()


@pytest.mark.parametrize("keys", [{"step"}, {"step", "reward"}])
def test_missing_metrics_leave_empty_panels(tmp_path, keys):
    read_size(plot_curves(write_run(tmp_path / "run", steps=1, keys=keys), tmp_path / "curves.png"))


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="run_dirs is empty"):
        plot_curves([], tmp_path / "curves.png")
    with pytest.raises(FileNotFoundError):
        plot_curves([tmp_path / "absent"], tmp_path / "curves.png")


def test_importing_the_package_loads_nothing_slow():
    """The first metrics line of a run waits for these imports."""
    code = "import sys, r1lab.trace, r1lab.checkpoint; print(*sys.modules)"
    output = run_program([sys.executable, "-c", code]).stdout
    assert not set(output.split()) & {"pandas", "matplotlib", "pyarrow", "transformers", "trl", "rich", "yaml"}
