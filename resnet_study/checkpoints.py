"""Checkpoints: arrays and facts of a training run in `.npz` files, of which the last two are kept; every byte is checked when it is read."""

import contextlib
import errno
import json
import math
import numbers
import re
import zipfile
from pathlib import Path

import numpy as np

from resnet_study.errors import UnreadableError, UsageError
from resnet_study.files import is_kind, written_aside

HISTORY = (
    "step", "epoch", "train_error", "train_error_smoothed", "train_loss", "learning_rate", "examples_per_sec", "seconds",
)  # fmt: skip
_REPORT = dict.fromkeys(HISTORY, numbers.Real)
_FACTS = {
    "step": int,
    "history": ([_REPORT | {"validation_loss": float, "validation_error": float}], [_REPORT]),
    "interval": {"images": int, "wrong": float, "loss": float, "seconds": float},
    "seconds": float,
    "net": dict,
}
_KEPT = 2  # checkpoints of a run
_PIECE = 1 << 20  # bytes
_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def write_checkpoint(path: Path, arrays: dict[str, np.ndarray], facts: dict) -> None:
    """Writes arrays and JSON-able facts as one `.npz` file, atomically.

    Args:
        path: of the file.
        arrays: by name; of what is no array yet, such as variables, one at a time is made one.
        facts: see `_FACTS`.

    Raises:
        UsageError: there is no room, or no right to write.
    """
    facts = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    # Straight to the disk: a checkpoint can be as large as what is left of the memory.
    with written_aside(path) as aside, aside.open("wb") as file:
        np.savez(file, **arrays, **{"facts.json": facts})


def save_checkpoint(folder: Path, step: int, arrays: dict[str, np.ndarray], facts: dict) -> None:
    """Writes the checkpoint of `step`, checks what is on the disk, and only then deletes all but this one and the one before."""
    path = checkpoint_of(folder, step)
    write_checkpoint(path, arrays, facts)
    check_checkpoint(path)
    delete_checkpoints_beside(path)


def delete_checkpoints_beside(path: Path) -> None:
    """Deletes all checkpoints but `path`, which was read, and the one before it."""
    found = list_checkpoints(path.parent)
    # Those of later steps were damaged, or the run would have gone on from them.
    kept = found[: found.index(path) + 1][-_KEPT:]
    for other in found:
        if other not in kept:
            with contextlib.suppress(
                PermissionError
            ):  # on Windows, while another program reads it; the next report deletes it
                other.unlink()


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, from the oldest to the newest; a copy that somebody made under another name is none."""
    found = (path for path in folder.glob("step-*.npz") if re.fullmatch(r"step-\d{8,}\.npz", path.name))
    return sorted(found, key=step_of)


def checkpoint_of(folder: Path, step: int) -> Path:
    """The checkpoint of a step, which need not exist."""
    return folder / f"step-{step:08d}.npz"


def step_of(path: Path) -> int:
    """The step of a checkpoint, as its name tells."""
    return int(path.stem.removeprefix("step-"))


def latest_checkpoint_in(folder: Path) -> Path | None:
    """The newest checkpoint of a folder that can be read; None if there is none at all. A damaged one is named and passed over.

    Raises:
        UsageError: there are checkpoints, but none can be read.
    """
    found = list_checkpoints(folder)[::-1]
    for path in found:
        try:
            check_checkpoint(path)
            return path
        except UnreadableError:
            raise
        except UsageError as error:
            print(f"passed over: {error}")
    if found:
        raise UsageError(
            f"none of the {len(found)} checkpoints in {folder} can be read; restore one, or start again with --overwrite"
        )
    return None


def check_checkpoint(path: Path) -> dict:
    """Checks every byte as `read_checkpoint` does, without holding more than a piece of it. Returns the facts.

    Raises:
        UsageError: missing, damaged, or not a checkpoint.
    """
    facts = None
    with _naming_damage(path), zipfile.ZipFile(path) as file:
        for member in file.infolist():
            # The end of a member compares its checksum.
            with file.open(member) as stream:
                version = np.lib.format.read_magic(stream)
                shape, _, dtype = _READ_HEADER[version](stream)
                if dtype.kind not in "fiu":
                    raise ValueError("it does not hold what a training run writes")
                left = math.prod(shape) * dtype.itemsize
                if member.filename == "facts.json.npy":
                    content = stream.read()
                    left -= len(content)
                    facts = json.loads(content)
                while piece := stream.read(_PIECE):
                    left -= len(piece)
            if left:
                raise ValueError(f"{member.filename} is not of its size")
        if not is_kind(facts, _FACTS):
            raise ValueError("it does not hold what a training run writes")
        return facts


def read_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Reads what `write_checkpoint` wrote; every byte is checked against the checksums of the file.

    Raises:
        UsageError: missing, damaged, or not a checkpoint.
    """
    with _naming_damage(path), np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
        facts = json.loads(arrays.pop("facts.json").tobytes())
        if not is_kind(facts, _FACTS) or any(array.dtype.kind not in "fiu" for array in arrays.values()):
            raise ValueError("it does not hold what a training run writes")
        return arrays, facts


@contextlib.contextmanager
def _naming_damage(path):
    """Refuses what is no file or would fill the memory, and says of every error that the checkpoint is damaged."""
    path = Path(path)
    try:
        if not path.is_file():
            raise FileNotFoundError("no such file")
        with zipfile.ZipFile(path) as file:
            # np.savez does not compress. Whatever unpacks to more than the file was made to fill the memory.
            if sum(member.file_size for member in file.infolist()) > path.stat().st_size:
                raise ValueError("it unpacks to more than its size")
        yield
    # A damaged archive can raise nearly anything; whatever it is, the file cannot be used.
    except Exception as error:
        number = getattr(error, "errno", None)
        if isinstance(error, PermissionError | MemoryError) or number in (errno.EIO, errno.ESTALE):
            # It may be sound, and must not be passed over.
            reason = getattr(error, "strerror", None) or str(error) or "too little memory"
            raise UnreadableError(f"{path} could not be read ({reason}); mend that and repeat the command") from error
        raise UsageError(f"{path} is no readable checkpoint ({error}); give another one") from error
