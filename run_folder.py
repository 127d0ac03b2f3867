"""The folder of one run: what lies where, written so that a kill at any instant leaves the old or the new file, never half.

runs/<version>/
    config.json        settings            data.json          class names, image counts, where the data was found
    environment.json   versions, devices   error.csv          one row per report
    checkpoints/       step-*.npz          best.keras         by validation error; final.keras: at the last step
    result.json        test metrics        predictions.npy    test probabilities, float32 [images, classes]
    figures/*.png                          tensorboard/
"""

import contextlib
import dataclasses
import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import filelock
import numpy as np

from hyper_parameters import HyperParameters, UsageError

CHECKPOINTS_KEPT = 2


def write_atomically(path: Path, content: bytes | str) -> None:
    """Writes a file aside, forces it to the disk and moves it into place.

    Raises:
        UsageError: the disk is full or not writable; the old file, if any, is untouched.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise UsageError(f"could not write {path} ({error.strerror}); make room or give another --runs_dir") from error


def write_json(path: Path, value) -> None:
    """Writes a value as indented JSON, see `write_atomically`."""
    write_atomically(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path):
    """Reads a JSON file of a run folder. Raises UsageError if it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"expected {path}, written by a training run, received {error}; train a run first") from error


def save_model(model, path: Path) -> None:
    """Saves a Keras model as `.keras`, see `write_atomically`."""
    path = Path(path)
    aside = path.with_name(f".aside-{os.getpid()}-{path.name}")  # Keras asks for the suffix .keras
    try:
        model.save(aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise UsageError(f"could not write {path} ({error.strerror}); make room or give another --runs_dir") from error


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
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        facts = json.loads(arrays.pop("facts.json").tobytes())
        return arrays, facts
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} is no readable checkpoint ({error}); give another one") from error


class RunFolder:
    """Paths and files of one run. Making the object touches nothing."""

    def __init__(self, path):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.environment = self.path / "environment.json"
        self.data = self.path / "data.json"
        self.error_csv = self.path / "error.csv"
        self.checkpoints = self.path / "checkpoints"
        self.best = self.path / "best.keras"
        self.final = self.path / "final.keras"
        self.result = self.path / "result.json"
        self.predictions = self.path / "predictions.npy"
        self.figures = self.path / "figures"
        self.tensorboard = self.path / "tensorboard"

    def __str__(self):
        return str(self.path)

    @contextlib.contextmanager
    def locked(self):
        """Holds the folder for one writer; the operating system frees it when the process ends, however it ends.

        Raises:
            UsageError: another process holds it, or the folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.path / ".lock", timeout=0)
            lock.acquire()
        except filelock.Timeout as error:
            raise UsageError(f"another process is training in {self}; wait for it or give another --version") from error
        except OSError as error:
            raise UsageError(f"could not write to {self} ({error.strerror}); give another --runs_dir") from error
        try:
            yield
        finally:
            lock.release()

    def holds_run(self) -> bool:
        return self.config.exists()

    def check(self, config: HyperParameters, *, resume: bool, overwrite: bool) -> None:
        """Raises UsageError if a run with these settings cannot be begun or resumed here; writes nothing."""
        if overwrite or not self.path.exists():
            return
        if self.holds_run() and resume:
            self._check_settings(config)
        elif self.holds_run():
            raise UsageError(
                f"{self} already holds a run; use --resume to go on with it, --overwrite to start again, or another --version"
            )
        elif any(entry.name != ".lock" for entry in self.path.iterdir()):
            raise UsageError(f"{self} must be empty or hold a run, received other files; give another --version")

    def begin(self, config: HyperParameters, *, resume: bool, overwrite: bool) -> None:
        """Checks as `check` does, empties the folder if it is to be overwritten, and writes `config.json`.

        Raises:
            UsageError: see `check`; also if the folder to overwrite holds files but no run.
        """
        self.check(config, resume=resume, overwrite=overwrite)
        others = [entry for entry in self.path.iterdir() if entry.name != ".lock"]
        if overwrite:
            if others and not self.holds_run():
                raise UsageError(
                    f"--overwrite empties run folders only, but {self} holds other files; give another --version"
                )
            self.config.unlink(missing_ok=True)  # first, so that half an emptied folder is no run
            for entry in others:
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink(missing_ok=True)
        if not self.holds_run():
            write_atomically(self.config, config.to_json() + "\n")

    def read_config(self) -> HyperParameters:
        """The settings of the run. Raises UsageError if there are none."""
        if not self.holds_run():
            raise UsageError(
                f"expected a run in {self}, found no config.json; train it first or give another --version"
            )
        return HyperParameters.from_json(self.config.read_text(), str(self.config))

    def _check_settings(self, config):
        stored = self.read_config()
        for field in dataclasses.fields(config):
            given, kept = getattr(config, field.name), getattr(stored, field.name)
            if given != kept and not field.metadata["operational"]:
                raise UsageError(
                    f"--resume goes on with the settings of {self}: expected --{field.name}={kept}, received {given}; leave "
                    "the flag out or start another --version"
                )

    def save_checkpoint(self, step: int, arrays: dict[str, np.ndarray], facts: dict) -> None:
        """Writes the checkpoint of `step`, reads it back, and only then deletes all but the newest two."""
        path = self.checkpoints / f"step-{step:08d}.npz"
        write_checkpoint(path, arrays, facts)
        read_checkpoint(path)
        for old in sorted(self.checkpoints.glob("step-*.npz"))[:-CHECKPOINTS_KEPT]:
            old.unlink()

    def latest_checkpoint(self) -> Path | None:
        """The newest checkpoint that can be read, or None; a damaged one is named and passed over."""
        for path in sorted(self.checkpoints.glob("step-*.npz"), reverse=True):
            try:
                read_checkpoint(path)
                return path
            except UsageError as error:
                print(f"passed over: {error}")
        return None
