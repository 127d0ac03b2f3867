"""What every data set has in common: images with labels, and files that are read within limits.

Files come from strangers and disks break: what cannot be used ends in a `UsageError` that names the file.
"""

import dataclasses
from pathlib import Path

import numpy as np

from resnet_study.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Split:
    """Images and their labels.

    Attributes:
        images: uint8 [n, height, width, channels], RGB or grey, 0..255.
        labels: int32 [n], 0-based; of images with several labels 0 or 1, int32 [n, classes].

    Example:
        import numpy as np
        from resnet_study.data.image_data import Split

        split = Split(np.zeros((200, 32, 32, 3), np.uint8), np.zeros(200, np.int32))
        first = split.take(np.arange(100))
        print(len(first))  # 100
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "Split":
        """The images and labels at `indices`, int [m] or bool [n]."""
        return Split(*self.load(indices))

    def load(self, indices) -> tuple[np.ndarray, np.ndarray]:
        """(images, labels) at `indices`, as `flowers.image_part.ImagePart.load` reads them."""
        return self.images[indices], self.labels[indices]

    def batches(self, size: int):
        """Yields (images, labels) of all images in order, `size` at a time; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self.images[start : start + size], self.labels[start : start + size]


@dataclasses.dataclass(frozen=True)
class ImageData:
    """A data set.

    Attributes:
        train, test: its official parts.
        class_names: in the order of the labels.
        found: where it was found.
        validation: its own validation part; None = part of the training images is held out for it.
        class_folders: of images of one's own, what folders or table call the classes.
        unlabelled: of these, files of a test part without labels.
        fingerprint, sample: of these, see `labelled_files.LabelledFiles`.
        own_parts: of these, the parts that they come in; the others are drawn.
    """

    train: Split
    test: Split
    class_names: tuple[str, ...]
    found: str
    validation: Split | None = None
    class_folders: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    fingerprint: str = ""
    sample: dict[str, int] = dataclasses.field(default_factory=dict, repr=False)
    own_parts: tuple[str, ...] = ()

    @property
    def multi_label(self) -> bool:
        """Whether an image can have several labels."""
        return self.test.labels.ndim == 2


def read_file(path: Path, largest: int) -> bytes:
    """The content of a file.

    Args:
        path: of the file.
        largest: bytes that it may have.

    Raises:
        UsageError: it is larger, or cannot be read.
    """
    try:
        if path.stat().st_size > largest:
            raise UsageError(f"{path} has {path.stat().st_size:,} bytes, expected at most {largest:,}; give another file")  # fmt: skip
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} could not be read ({error.strerror or error}); give another file") from error


def check_labels(labels: np.ndarray, classes: int, source: str) -> None:
    """Raises UsageError, naming `source`, unless there are labels and all are in 0..classes-1."""
    if not len(labels) or labels.min() < 0 or labels.max() >= classes:
        received = f"{labels.min()}..{labels.max()}" if len(labels) else "no images"
        raise UsageError(f"{source} must hold labels 0..{classes - 1}, received {received}; download it again")
