"""Checkpoints that survive a kill, a full disk and a flipped bit.

    <run_dir>/checkpoints/step_00012/
        config.json model.safetensors tokenizer...   the policy, as `save_pretrained` lays it out: transformers loads it
        trainer_state.pt                             optimizer, scheduler, RNG states, counters, ... (`torch.save`)
        manifest.json                                size and sha256 of every file above; written last

    path = save_checkpoint(run_dir, step=12, policy=model, tokenizer=tokenizer, keep_last=3,
                           state={"optimizer": optimizer.state_dict(), "rng": capture_rng_state(), "counters": {...}})

    path = resolve_resume(run_dir)                       # or a checkpoint directory
    checkpoint = load_checkpoint(path, policy=model)     # verifies, then copies the weights into `model`
    optimizer.load_state_dict(checkpoint.state["optimizer"]); restore_rng_state(checkpoint.state["rng"])

Call `save_checkpoint` on the main process only; every process may load.
"""

import contextlib
import hashlib
import json
import os
import pickle
import random
import re
import shutil
import sys
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
STATE_NAME = "trainer_state.pt"

SHAPE_FIELDS = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim",
    "qk_rope_head_dim", "v_head_dim", "n_routed_experts", "n_shared_experts", "num_experts", "num_local_experts",
    "first_k_dense_replace", "num_nextn_predict_layers", "attention_bias", "tie_word_embeddings",
)  # fmt: skip
"""Config fields that decide which parameters exist and their shapes."""

_STEP_NAME = re.compile(r"step_(\d+)(\.replaced)?")
_TEMPORARY_PREFIX = ".tmp-"
_PLAIN_TYPES = (type(None), bool, int, float, complex, str, bytes)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or may not be loaded; the message is one line and names the way out."""


@dataclass(slots=True)
class Checkpoint:
    """A verified checkpoint."""

    path: Path
    """The checkpoint directory; `AutoModelForCausalLM.from_pretrained(path)` loads its policy."""
    step: int
    """Optimisation steps done when it was saved."""
    state: dict[str, Any]
    """The named parts given to `save_checkpoint`; tensors on the CPU."""


# ---------------------------------------------------------------------------------------------------------- saving


def save_checkpoint(
    run_dir: str | Path,
    *,
    step: int,
    policy: Any,
    state: dict[str, Any],
    tokenizer: Any = None,
    keep_last: int | None = None,
    policy_state_dict: dict[str, torch.Tensor] | None = None,
) -> Path:
    """Writes `<run_dir>/checkpoints/step_<step>` in one piece: a reader sees all of it or none.

    Args:
        step: optimisation steps done so far.
        policy: the unwrapped model; anything with `save_pretrained`. Tensors keep their dtype, bit for bit.
        state: named parts for the resume. Only tensors, numbers, strings, None and dicts, lists, tuples and sets of
            them, so that loading never has to run pickled code.
        tokenizer: saved next to the policy when given.
        keep_last: after the save, delete all but this many newest checkpoints up to `step`; None keeps all.
        policy_state_dict: the gathered weights when the policy is sharded (FSDP, DeepSpeed ZeRO-3).

    Returns: the checkpoint's directory.

    Raises:
        CheckpointError: the disk is full or a file could not be written. Nothing is left behind and the checkpoints
            that were there still load.
        ValueError: `state` holds something that cannot be loaded safely, or `keep_last` is below 1.
    """
    if keep_last is not None and keep_last < 1:
        raise ValueError(f"keep_last={keep_last}: keep at least 1 checkpoint, or None to keep all")
    _check_plain(state, "state")
    parent = Path(run_dir) / "checkpoints"
    final = parent / f"step_{step:05d}"
    temporary = parent / f"{_TEMPORARY_PREFIX}{final.name}-{os.getpid()}"
    needed = _num_bytes(state) + _num_bytes(policy_state_dict or _state_dict(policy))
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_temporaries(parent)
        _require_space(parent, needed)
        temporary.mkdir()
        _write_files(temporary, step, policy, policy_state_dict, tokenizer, state)
        _move_into_place(temporary, final)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)  # first, so that the message tells the space left without it
        raise CheckpointError(_cannot_write(final, error, needed)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if keep_last is not None:
        prune_checkpoints(run_dir, keep_last, up_to=step)
    return final


def _write_files(directory: Path, step: int, policy, policy_state_dict, tokenizer, state: dict) -> None:
    with _disk_errors_as_oserror(), _without_progress_bars():
        if policy_state_dict is None:
            policy.save_pretrained(directory)
        else:
            policy.save_pretrained(directory, state_dict=policy_state_dict)
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)
        torch.save(state, directory / STATE_NAME)
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    manifest = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "files": {path.relative_to(directory).as_posix(): _describe(path) for path in files},
    }
    manifest["manifest_sha256"] = _manifest_digest(manifest)
    (directory / MANIFEST_NAME).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in (*files, directory / MANIFEST_NAME):
        _fsync(path)
    for path in (path for path in directory.rglob("*") if path.is_dir()):
        _fsync(path)
    _fsync(directory)


@contextlib.contextmanager
def _disk_errors_as_oserror():
    # torch.save and safetensors report a failed write as RuntimeError and SafetensorError, errno only in the text.
    from safetensors import SafetensorError

    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        io_words = ("os error", "I/O error", "PytorchStreamWriter", "unexpected pos", "failed writing")
        if isinstance(error, SafetensorError) or any(word in str(error) for word in io_words):
            reason = re.search(r"I/O error: (.+?) \(os error", str(error))
            raise OSError(reason[1] if reason else "the write was cut short") from error
        raise


@contextlib.contextmanager
def _without_progress_bars():
    # transformers draws a bar for every save and load, across the run's own live view.
    if "transformers" not in sys.modules:
        yield
        return
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _move_into_place(temporary: Path, final: Path) -> None:
    replaced = final.with_name(final.name + ".replaced")
    if final.exists():
        # A directory cannot be renamed over another one. Between these two renames `.replaced` counts as the step's
        # checkpoint (see `list_checkpoints`), so a kill here loses nothing.
        shutil.rmtree(replaced, ignore_errors=True)
        os.rename(final, replaced)
    os.rename(temporary, final)
    _fsync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _remove_temporaries(parent: Path) -> None:
    for leftover in parent.glob(f"{_TEMPORARY_PREFIX}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _require_space(directory: Path, needed: int) -> None:
    if needed > shutil.disk_usage(directory).free:
        raise OSError("not enough free space")


def _cannot_write(path: Path, error: OSError, needed: int) -> str:
    try:
        free = f"{shutil.disk_usage(path.parent).free / 2**20:.1f} MiB"
    except OSError:
        free = "unknown"
    reason = error.strerror or str(error)
    return (
        f"cannot write checkpoint {path}: {reason} (needs about {needed / 2**20:.1f} MiB, free {free}); earlier "
        "checkpoints are untouched: free space or choose another output_dir"
    )


def prune_checkpoints(run_dir: str | Path, keep_last: int, up_to: int | None = None) -> list[Path]:
    """Deletes all but the `keep_last` newest checkpoints of a run. Returns the deleted directories.

    Checkpoints of steps after `up_to` neither count nor go: in a run that was resumed from an earlier step they belong
    to the abandoned future, and must not push out the new ones.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last={keep_last}: keep at least 1 checkpoint")
    present = [path for path in list_checkpoints(run_dir) if up_to is None or _step(path) <= up_to]
    return _delete(present[:-keep_last])


def remove_checkpoints_after(run_dir: str | Path, step: int) -> list[Path]:
    """Deletes the checkpoints of steps after `step`, for a run that goes on from an earlier one: a later resume would
    take them for the latest. Returns the deleted directories."""
    return _delete([path for path in list_checkpoints(run_dir) if _step(path) > step])


def _delete(doomed: list[Path]) -> list[Path]:
    for path in doomed:
        # The manifest goes first: a deletion cut short then reads as "incomplete", not as "corrupt".
        (path / MANIFEST_NAME).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
    return doomed


# --------------------------------------------------------------------------------------------------------- finding


def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first. Temporary leftovers of a killed save are not among them."""
    by_step: dict[int, Path] = {}
    parent = Path(run_dir) / "checkpoints"
    if not parent.is_dir():
        return []
    for path in parent.iterdir():
        match = _STEP_NAME.fullmatch(path.name)
        if not match or not (path / MANIFEST_NAME).is_file():
            continue
        step = int(match[1])
        if step not in by_step or match[2] is None:
            by_step[step] = path
    return [by_step[step] for step in sorted(by_step)]


def resolve_resume(resume: str | Path | bool | None, output_dir: str | Path | None = None) -> Path | None:
    """Turns the value of `resume_from_checkpoint` into a checkpoint directory.

    Args:
        resume: a checkpoint directory; a run directory (its latest complete checkpoint); True (the run directory
            `output_dir`); None or False (no resume).
        output_dir: the current run's directory, read when `resume` is True.

    Returns: the checkpoint directory, or None when `resume` is None or False.

    Raises:
        CheckpointError: there is no such directory, or no complete checkpoint in it.
    """
    if resume is None or resume is False:
        return None
    if resume is True:
        if output_dir is None:
            raise ValueError("resume_from_checkpoint=True needs output_dir: give the run directory instead")
        resume = output_dir
    path = Path(resume)
    if not path.is_dir():
        raise CheckpointError(f"cannot resume from {path}: no such directory")
    if (path / MANIFEST_NAME).is_file():
        return path
    run_dir = path.parent if path.name == "checkpoints" else path
    checkpoints = list_checkpoints(run_dir)
    if checkpoints:
        return checkpoints[-1]
    if _STEP_NAME.fullmatch(path.name) or path.name.startswith(_TEMPORARY_PREFIX):
        raise CheckpointError(f"cannot resume from {path}: {MANIFEST_NAME} is missing, the save was cut short"
                              f"{_way_out(path)}")  # fmt: skip
    raise CheckpointError(f"cannot resume from {path}: no complete checkpoint under {run_dir / 'checkpoints'}")


def _step(path: Path) -> int:
    return int(_STEP_NAME.fullmatch(path.name)[1])


def _way_out(path: Path) -> str:
    """The end of an error message: which earlier checkpoint to take instead."""
    match = _STEP_NAME.search(path.name)
    step = int(match[1]) if match else None
    earlier = [
        other
        for other in list_checkpoints(path.parent.parent)
        if other != path and (step is None or _step(other) < step)
    ]
    if earlier:
        return f"; resume from the previous checkpoint: {earlier[-1]}"
    return "; there is no earlier checkpoint beside it: start the run anew"


# --------------------------------------------------------------------------------------------------------- loading


def load_checkpoint(path: str | Path, *, policy: Any = None, verify: bool = True) -> Checkpoint:
    """Reads a checkpoint directory after checking every file against the manifest.

    Args:
        path: the checkpoint directory, as `resolve_resume` returns it.
        policy: a model whose weights are replaced by the saved ones, in place. The global RNG is left as it was.
        verify: False skips the checksums (sizes are still checked), for very large models on trusted disks.

    Raises:
        CheckpointError: a file is missing or corrupt (named, with the previous checkpoint to use instead), the format
            is newer than this code, or `policy` has another architecture (the fields and both values are named).
    """
    path = Path(path)
    manifest = _read_manifest(path)
    _verify_files(path, manifest, verify)
    if policy is not None:
        _check_architecture(path, policy.config)
        _load_weights(path, policy)
    return Checkpoint(path=path, step=manifest["step"], state=_read_state(path))


def load_latest(run_dir: str | Path, *, policy: Any = None, verify: bool = True) -> Checkpoint | None:
    """`load_checkpoint` of a run's newest complete checkpoint; None when the run has none."""
    checkpoints = list_checkpoints(run_dir)
    return load_checkpoint(checkpoints[-1], policy=policy, verify=verify) if checkpoints else None


def _read_manifest(path: Path) -> dict:
    file = path / MANIFEST_NAME
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        version, digest = manifest["format_version"], manifest.pop("manifest_sha256")
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing: not a complete checkpoint{_way_out(path)}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is corrupt{_way_out(path)}") from error
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(f"{file} has format {version}, this r1lab reads up to {FORMAT_VERSION}: update r1lab")
    if digest != _manifest_digest(manifest):
        raise CheckpointError(f"{file} is corrupt{_way_out(path)}")
    return manifest


def _verify_files(path: Path, manifest: dict, checksums: bool) -> None:
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing{_way_out(path)}")
        size = file.stat().st_size
        if size != expected["size"]:
            raise CheckpointError(f"{file} is corrupt: {size} bytes instead of {expected['size']}{_way_out(path)}")
        if checksums and _sha256(file) != expected["sha256"]:
            raise CheckpointError(f"{file} is corrupt: its sha256 is not the manifest's{_way_out(path)}")


def _read_state(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path / STATE_NAME, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path / STATE_NAME} holds pickled code, which is never run{_way_out(path)}") from error


def _check_architecture(path: Path, config: Any) -> None:
    saved = json.loads((path / "config.json").read_text(encoding="utf-8"))
    # Through JSON, so that both sides are written alike (tuples, dtypes, enums).
    current = json.loads(config.to_json_string(use_diff=False))
    different = [
        f"{name}: {saved[name]!r} in the checkpoint, {current[name]!r} in the current policy"
        for name in SHAPE_FIELDS
        if name in saved and name in current and saved[name] != current[name]
    ]
    if different:
        raise CheckpointError(f"{path} holds another architecture ({'; '.join(different)}): resume with the model "
                              "the run was started with")  # fmt: skip


def _load_weights(path: Path, policy: Any) -> None:
    # Through from_pretrained, because the names on disk may differ from the module's (transformers splits the stacked
    # experts on saving). It draws random numbers for the initialisation it then overwrites.
    from r1lab.model import has_mtp  # imports transformers, which readers of run files can do without

    rng = capture_rng_state()
    with _without_progress_bars():
        module = {"with_mtp": True} if has_mtp(policy) else {}
        saved = type(policy).from_pretrained(path, dtype=next(policy.parameters()).dtype, **module)
    restore_rng_state(rng)
    try:
        policy.load_state_dict(saved.state_dict())
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise CheckpointError(f"{path} does not fit the current policy: {' '.join(lines)}") from error


# ------------------------------------------------------------------------------------------------------ RNG states


def capture_rng_state() -> dict[str, Any]:
    """The states of the global generators of python, numpy, torch and (if present) every CUDA device.

    Made of plain numbers and tensors, ready for `save_checkpoint`'s `state`.
    """
    import numpy

    version, internal, gauss_next = random.getstate()
    name, keys, position, has_gauss, cached = numpy.random.get_state()
    state = {
        "python": (version, list(internal), gauss_next),
        "numpy": (name, keys.tolist(), int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_rng_state(state: dict[str, Any]) -> None:
    """Sets the global generators as `capture_rng_state` found them. CUDA states are skipped on another device count."""
    import numpy

    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, position, has_gauss, cached = state["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([part.cpu() for part in state["cuda"]])


# ----------------------------------------------------------------------------------------------------------- small


def _check_plain(value: Any, where: str) -> None:
    """Raises ValueError where `torch.load(weights_only=True)` could not read `value` back."""
    if type(value) in _PLAIN_TYPES or type(value) in (torch.Tensor, torch.nn.Parameter, torch.Size, torch.dtype):
        return
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            if type(key) not in _PLAIN_TYPES and type(key) is not tuple:
                raise ValueError(f"{where}: key {key!r} is a {type(key).__name__}; use a string or a number")
            _check_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple, set):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    else:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise ValueError(f"{where} is a {kind}, which cannot be loaded safely: store tensors, numbers, strings, or "
                         "dicts, lists and tuples of them (`.item()`, `torch.from_numpy`, `vars(...)`)")  # fmt: skip


def _num_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(_num_bytes(item) for item in value.values())
    if isinstance(value, list | tuple | set):
        return sum(_num_bytes(item) for item in value)
    return 16


def _state_dict(policy: Any) -> dict[str, torch.Tensor]:
    return policy.state_dict() if hasattr(policy, "state_dict") else {}


def _describe(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest_digest(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
