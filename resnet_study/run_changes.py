"""What may change in a run that has begun: how --resume may make it longer, and what --overwrite must not delete.

Each function takes the run as a `resnet_study.run_folder.RunFolder`.
"""

import contextlib
import dataclasses
from pathlib import Path

from resnet_study.errors import UsageError
from resnet_study.files import read_json

# Settings that may name a file or folder.
_READ_FROM = ("ckpt_path", "teacher", "weights", "class_weight", "labels", "data_dir")
# Data that were moved are found there from the next start on.
PLACES = ("data_dir", "labels", "label_separator")


def check_deletion(run, config) -> None:
    """Raises UsageError where --overwrite would delete what is no run, or what the new one reads."""
    own = any(path.exists() for path in (run.environment, run.error_csv, run.checkpoints, run.data))
    with contextlib.suppress(UsageError):
        own = own or "runs_dir" in read_json(run.config, dict)
    if not own:
        raise UsageError(
            f"{run} must hold a run to overwrite, received the config.json of something else; give another --version"
        )
    for name in _READ_FROM:
        if not (given := getattr(config, name, "")):
            continue
        # Not by their names, whose case some file systems ignore.
        place = Path(given).expanduser().resolve()
        if any(around.exists() and around.samefile(run.path) for around in (place, *place.parents)):
            raise UsageError(
                f"--{name}={given} is read from {run}, which --overwrite would empty; give another --version"
            )


def check_settings(run, config) -> None:
    """Raises UsageError where the settings differ from those of a run that is to go on, but for those that may."""
    stored = run.read_config(type(config))
    grown = find_longer(run, stored, config)
    for field in dataclasses.fields(config):
        given, kept = getattr(config, field.name), getattr(stored, field.name)
        if given != kept and not field.metadata["operational"] and field.name not in grown:
            only = "a run can be made longer, not shorter; " if field.name == config.LENGTH else ""
            raise UsageError(
                f"--resume goes on with the settings of {run}: expected --{field.name}={kept}, received {given}; {only}leave "
                "the flag out or start another --version"
            )


def find_longer(run, stored, config) -> tuple[str, ...]:
    """The settings by which a run may be resumed for longer than it was begun for. Raises UsageError where that would change its course."""
    length = config.LENGTH
    kept, given = getattr(stored, length), getattr(config, length)
    if given <= kept:
        return ()
    if getattr(stored, "sparsity", 0):
        raise UsageError(
            f"--{length}={given} would have given {run} its zeros later, so a run with --sparsity cannot be made longer; start another "
            "--version"
        )
    history = run.read_history() if run.error_csv.is_file() else None
    done = 0
    if history is not None and len(history):
        done = int(history["step"].iloc[-1]) if length == "train_steps" else len(history) - 1
    if stored.patience and 0 < done < kept and run.has_final():
        raise UsageError(
            f"--patience has ended {run} after {done} of {kept}, and would again, received --{length}={given}; go on from its weights in "
            "another run, with --is_use_ckpt and --ckpt_path, or --weights"
        )
    if config.extend == kept:
        if stored.extend and done < kept:
            raise UsageError(
                f"--extend={kept} begins anew where {run} has ended, received a run that stands at {done}; go on with it first"
            )
        return (length, "extend")
    if config.lr_schedule in ("linear", "cosine") or getattr(config, "lookahead_steps", False):
        raise UsageError(
            f"--{length}={given} would have given {run} other learning rates and weights from its first step on: the "
            f"{config.lr_schedule} schedule has ended after {kept}; add --extend={kept} to begin it anew from the last weights, or start "
            "another --version"
        )
    return (length,)
