"""What every data set has in common: images with labels, and files that are read within limits.

Files come from strangers and disks break: what cannot be used ends in a `UsageError` that names the file.
"""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from resnet_study.errors import UsageError, say_once


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

    def __post_init__(self):
        if len(self.images) != len(self.labels):
            raise UsageError(
                f"a Split needs a label for each image, received {len(self.images)} images and {len(self.labels)} labels"
            )

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


def digest(*data: ImageData) -> str:
    """Stands for images, labels and names of classes; of several heads for those of each. Others have another one."""
    found = hashlib.sha256()
    for one in data:
        found.update(repr([str(name) for name in one.class_names]).encode())
        for part in (one.train, one.test, one.validation):
            for array in (part.images, part.labels) if part else ():
                found.update(f"{array.dtype} {array.shape}".encode())
                found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()[:16]


def as_given(data: ImageData) -> ImageData:
    """A data set that a program has made, its labels as int32.

    Args:
        data: `Split.labels` may also be of other whole numbers, and [n, 1], as `keras.datasets` has them.

    Raises:
        UsageError: images that are not uint8 [n, height, width, channels], or labels that are no classes.
    """
    parts = {name: getattr(data, name) for name in ("train", "test", "validation") if getattr(data, name) is not None}
    found = {
        name: Split(np.asarray(part.images), _as_labels(part, name, len(data.class_names)))
        for name, part in parts.items()
    }
    for name, part in found.items():
        if part.images.dtype != np.uint8 or part.images.ndim != 4 or part.images.shape[3] not in (1, 3):
            raise UsageError(
                f"{name} images must be uint8 [n, height, width, 1 or 3], raw pixels 0..255, received {part.images.dtype} {list(part.images.shape)}; "
                "bring them to that"
            )
    if all(part.labels.ndim == 2 and (part.labels.sum(axis=1) == 1).all() for part in found.values()):
        say_once(
            "note: each image has one label of several possible; for a softmax give labels [n], such as labels.argmax(axis=1)"
        )
    return dataclasses.replace(data, **found)


def _as_labels(part, name, classes):
    labels = np.asarray(part.labels)
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 < classes else labels
    several = labels.ndim == 2
    is_whole = not labels.size or labels.dtype.kind in "iub" or (several and np.isin(labels, (0, 1)).all())
    if not is_whole or labels.ndim not in (1, 2) or (several and labels.shape[1] != classes):
        raise UsageError(
            f"{name} labels must be whole numbers [n], or 0 and 1 [n, {classes}], received {labels.dtype} {list(labels.shape)}; bring them to that"
        )
    highest = 1 if several else classes - 1
    if labels.size and not 0 <= labels.min() <= labels.max() <= highest:
        raise UsageError(
            f"{name} labels must be 0..{highest}, of {classes} class names, received {labels.min()}..{labels.max()}; count from 0, and name each class"
        )
    return labels.astype(np.int32)


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
