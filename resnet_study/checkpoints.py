"""A checkpoint: arrays and facts of a training run in one `.npz` file whose every byte is checked when it is read."""

import io
import json
import numbers
import zipfile
from pathlib import Path

import numpy as np

from resnet_study.errors import UsageError
from resnet_study.files import is_kind, write_atomically

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


def write_checkpoint(path: Path, arrays: dict[str, np.ndarray], facts: dict) -> None:
    """Writes arrays and JSON-able facts as one `.npz` file, atomically."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays, **{"facts.json": np.frombuffer(json.dumps(facts).encode(), np.uint8)})
    write_atomically(path, buffer.getvalue())


def read_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Reads what `write_checkpoint` wrote; every byte is checked against the checksums of the file.

    Raises:
        UsageError: missing, damaged, or not a checkpoint.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise FileNotFoundError("no such file")
        with zipfile.ZipFile(path) as file:
            # np.savez does not compress. Whatever unpacks to more than the file was made to fill the memory.
            if sum(member.file_size for member in file.infolist()) > path.stat().st_size:
                raise ValueError("it unpacks to more than its size")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        facts = json.loads(arrays.pop("facts.json").tobytes())
        if not is_kind(facts, _FACTS) or any(array.dtype.kind not in "fiu" for array in arrays.values()):
            raise ValueError("it does not hold what a training run writes")
        return arrays, facts
    # A damaged archive can raise nearly anything; whatever it is, the file cannot be used.
    except Exception as error:
        raise UsageError(f"{path} is no readable checkpoint ({error}); give another one") from error
