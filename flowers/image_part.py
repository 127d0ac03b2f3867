"""The images of one part of a data set: each read from its file when it is needed, or all of them at the start.

A part of up to 10,000 images and 1 GiB is read at once, so that every broken image is known before training begins; images of a
larger part are read when their turn comes. Either way a broken one is named, and `on_bad_image` decides: refuse = the start, or the
run at its last checkpoint, ends; skip = left out, and where a batch needs it, the next image of its class stands in, or of several labels one that shares most.
"""

import dataclasses
import math
from pathlib import Path

import numpy as np

from flowers.settings import FlowerParameters
from resnet_study.data.folder_data import read_all
from resnet_study.data.image_files import read_image
from resnet_study.errors import UsageError

_LARGEST_IN_MEMORY = 1 << 30  # bytes of decoded images per part
_MOST_IN_MEMORY = 10_000  # images per part; to decode more would delay the start


@dataclasses.dataclass(frozen=True)
class ImagePart:
    """The images of one part of a data set, with their labels.

    Attributes:
        files: name of each image.
        labels: int32 [n]; of images with several labels 0 or 1, int32 [n, classes].
        shape: (height, width, RGB) that images are brought to.
        images: uint8 [n, height, width, RGB], of any size; None = each is read from its file whenever it is needed.
        skips: whether files that turn out to be broken are left out; otherwise they are an error.
        reading: how files are read, see `resnet_study.own_image_settings.OwnImageSettings.reading`.
        broken: {index: reason} of the files found broken so far.
    """

    files: tuple[str, ...]
    labels: np.ndarray
    shape: tuple[int, int, int]
    images: np.ndarray | None = dataclasses.field(default=None, repr=False)
    skips: bool = False
    reading: dict = dataclasses.field(default_factory=dict)
    broken: dict[int, str] = dataclasses.field(default_factory=dict, repr=False)

    def __len__(self):
        return len(self.files)

    def read(self, index: int) -> np.ndarray:
        """One image; in the place of a broken one that is skipped, the next of its class, or of several labels one that shares most.

        Args:
            index: 0-based place in the part.

        Returns:
            uint8 [height, width, RGB].

        Raises:
            UsageError: it is broken, and not to be skipped; or all that could stand in are.
        """
        image = self._attempt(index)
        if image is not None:
            return image
        for other in self._stand_ins(index):
            image = self._attempt(other)
            if image is not None:
                return image
        raise UsageError(f"no image of the class of {self.files[index]} can be read; mend some")

    def labels_of(self, indices) -> np.ndarray:
        """The labels of what `read` has given for these places, int32 [m] or [m, classes]: those of the images that stand in for broken ones."""
        read = [
            next(other for other in self._stand_ins(int(index)) if other not in self.broken)
            if index in self.broken
            else index
            for index in indices
        ]
        return self.labels[read]

    def _stand_ins(self, index: int) -> list[int]:
        """The images that may stand in for a broken one, in the order in which they are tried."""
        same = (self.labels == self.labels[index]).reshape(len(self), -1).all(axis=1)
        members = np.flatnonzero(same)
        members = np.roll(members, -int(np.searchsorted(members, index)) - 1)
        if self.labels.ndim == 2:  # it may be the only one with these labels
            shared = np.argsort(-(self.labels @ self.labels[index]), kind="stable")
            members = np.concatenate([members, shared[~same[shared]]])
        return members.tolist()

    def load(self, indices) -> tuple[np.ndarray, np.ndarray]:
        """Several images, without the broken ones that are skipped.

        Args:
            indices: 0-based places in the part, int [m], or bool [n].

        Returns:
            (images uint8 [n <= m, height, width, RGB], labels int32 [n]).

        Raises:
            UsageError: one is broken, and not to be skipped.
        """
        indices = np.arange(len(self))[np.asarray(indices, None if len(indices) else int)]
        attempts = [self._attempt(int(index)) for index in indices]
        good = [place for place, image in enumerate(attempts) if image is not None]
        images = np.array([attempts[place] for place in good], np.uint8).reshape(-1, *self.shape)
        return images, self.labels[indices[good]]

    def _attempt(self, index):
        """The image; None if it is broken and to be skipped."""
        if index in self.broken:
            return None
        try:
            if self.images is None:
                return read_image(Path(self.files[index]), self.shape, **self.reading)
        except UsageError as error:
            if not self.skips:
                raise
            self.broken[index] = str(error)
            print(f"skipped: {error}")
            return None
        image = self.images[index]
        if image.shape == self.shape:
            return image
        import cv2

        shrinks = image.shape[0] > self.shape[0]  # as `read_image` does with files
        return cv2.resize(image, self.shape[1::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def make_part(files, labels, config: FlowerParameters) -> tuple[ImagePart, list[str]]:
    """Makes a part of files; where they are few, all are read.

    Args:
        files: path of each image.
        labels: of each, 0-based.
        config: uses image_size, on_bad_image and those of `reading`.

    Returns:
        (the part, without images that are known to be broken; the reasons for these).
    """
    shape = (config.image_size, config.image_size, 3)
    labels = np.array(labels, np.int32)
    options = {"skips": config.on_bad_image == "skip", "reading": config.reading()}
    if len(files) > _MOST_IN_MEMORY or len(files) * math.prod(shape) > _LARGEST_IN_MEMORY:
        return ImagePart(tuple(files), labels, shape, **options), []
    images, reasons = read_all(files, lambda file: read_image(Path(file), shape, **config.reading()), shape)
    good = [index for index in range(len(files)) if index not in reasons]
    images = images if not reasons else images[good]
    part = ImagePart(tuple(files[index] for index in good), labels[good], shape, images, **options)
    return part, list(reasons.values())
