"""What every data set has in common: pictures with labels, files read within limits, downloads that can be trusted.

Files come from strangers and disks break: what cannot be used ends in a `UsageError` that names the file.
"""

import dataclasses
import os
import socket
import time
from pathlib import Path

import filelock
import numpy as np

from hyper_parameters import UsageError

_WAITS = (2, 8)  # seconds before the second and third try of a download
_TIMEOUT = 30  # seconds without a byte


@dataclasses.dataclass(frozen=True)
class Split:
    """Pictures and their labels: images uint8 [n, height, width, channels], RGB or grey, labels int32 [n]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "Split":
        return Split(self.images[indices], self.labels[indices])

    def batches(self, size: int):
        """Yields (images, labels) of all pictures in order, `size` at a time; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self.images[start : start + size], self.labels[start : start + size]


@dataclasses.dataclass(frozen=True)
class ImageData:
    """A data set: its official training and test parts, the names of its classes, and where it was found."""

    train: Split
    test: Split
    class_names: tuple[str, ...]
    found: str


def read_file(path: Path, largest: int) -> bytes:
    """The content of a file of at most `largest` bytes. Raises UsageError if it is larger or cannot be read."""
    try:
        if path.stat().st_size > largest:
            raise UsageError(f"{path} has {path.stat().st_size:,} bytes, expected at most {largest:,}; download it again")  # fmt: skip
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} could not be read ({error.strerror or error}); give another --data_dir") from error


def check_labels(labels: np.ndarray, classes: int, source: str) -> None:
    """Raises UsageError, naming `source`, unless there are labels and all are in 0..classes-1."""
    if not len(labels) or labels.min() < 0 or labels.max() >= classes:
        received = f"{labels.min()}..{labels.max()}" if len(labels) else "no images"
        raise UsageError(f"{source} must hold labels 0..{classes - 1}, received {received}; download it again")


def one_line(error: BaseException) -> str:
    """Kind and message of an error, at most 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def keras_cache(kind: str = "datasets") -> Path:
    """The folder of data sets or "models" that Keras downloaded, as Keras documents it; it has no public function for it."""
    return Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / kind


def download(url: str, sha256: str) -> Path:
    """Downloads a file into Keras' cache, once, also where several processes ask for it at the same time.

    The file gets its name only when its checksum is right, so what is half there, for whatever reason, is never read.

    Raises:
        UsageError: three tries failed, or the cache cannot be written to.
    """
    name, folder = url.rsplit("/", 1)[-1], keras_cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / f".{name}.lock"):
            if not (folder / name).is_file():
                _fetch(url, sha256, folder / f".incomplete-{name}").replace(folder / name)
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be written to ({error.strerror or error}); give --data_dir=FOLDER"
        ) from error
    return folder / name


def _fetch(url: str, sha256: str, place: Path) -> Path:
    """Downloads one file to `place`, in three tries; what fails its checksum is deleted."""
    import keras

    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)  # get_file itself would wait for ever for a stalled server
    try:
        for wait in (*_WAITS, None):
            try:
                return Path(keras.utils.get_file(place.name, url, file_hash=sha256, cache_dir=place.parent.parent,
                                                 cache_subdir=place.parent.name))  # fmt: skip
            except Exception as error:
                place.unlink(missing_ok=True)
                if wait is None:
                    raise UsageError(
                        f"{url.rsplit('/', 1)[-1]} is neither in Keras' cache nor could it be downloaded ({one_line(error)}); give "
                        "--data_dir=FOLDER, connect to a network, or use --dataset=digits"
                    ) from error
                print(f"{url}: {one_line(error)}; trying again in {wait} s")
                time.sleep(wait)
    finally:
        socket.setdefaulttimeout(timeout)
