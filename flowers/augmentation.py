"""Augmentation: rotation, shear, zoom and flip of one image, each variant a pure function of (seed, image, variant).

draw_transform(...)   -> Transform     what is done to an image
apply_transform(...)  -> the image changed so, by one affine map
make_variant(...)     -> one image of a part, read and augmented as the settings say
"""

import dataclasses
import threading

import numpy as np

from flowers.image_part import ImagePart
from flowers.settings import FlowerParameters
from resnet_study.data import streams

_generator_lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Transform:
    """One random change of an image.

    Attributes:
        rotation, shear: degrees.
        zoom_x, zoom_y: factors of the two axes; above 1 the image shrinks, as `ImageDataGenerator` has it.
        flip: whether it is mirrored left to right.
    """

    rotation: float
    shear: float
    zoom_x: float
    zoom_y: float
    flip: bool


def draw_transform(index: int, variant: int, config: FlowerParameters) -> Transform:
    """Draws a variant of an image, a pure function of (seed, index, variant).

    Args:
        index: of the image in its part.
        variant: 0-based number of the variant; without `variants` that is the epoch.
        config: uses seed, rotation, shear, zoom, horizontal_flip.
    """
    rng = np.random.default_rng((config.seed, streams.VARIANT, index, variant))
    rotation, shear = rng.uniform(-1, 1, 2) * (config.rotation, config.shear)
    zoom_x, zoom_y = rng.uniform(1 - config.zoom, 1 + config.zoom, 2)
    return Transform(rotation, shear, zoom_x, zoom_y, bool(rng.random() < 0.5 and config.horizontal_flip))


def affine_matrix(transform: Transform, height: int, width: int) -> np.ndarray:
    """The map from (x, y, 1) of the new image to (x, y) of the old one, float64 [2, 3], x to the right, y downwards, pixels.

    Rotation, shear and zoom are those of Keras' `ImageDataGenerator`, about the centre of the image.
    """
    angle, shear = np.deg2rad((transform.rotation, transform.shear))
    linear = (
        np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        @ np.array([[1, -np.sin(shear)], [0, np.cos(shear)]])
        @ np.diag([transform.zoom_x, transform.zoom_y])
    )
    if transform.flip:
        linear = linear @ np.diag([-1, 1])
    center = np.array([(width - 1) / 2, (height - 1) / 2])
    return np.column_stack([linear, center - linear @ center])


def apply_transform(image: np.ndarray, transform: Transform) -> np.ndarray:
    """Changes an image by one affine map.

    Args:
        image: uint8 [height, width, RGB].
        transform: see `draw_transform`.

    Returns:
        uint8 [height, width, RGB]; what comes in from outside repeats the nearest edge pixel.

    Example:
        import numpy as np
        from flowers.augmentation import Transform, apply_transform

        image = np.zeros((64, 64, 3), np.uint8)
        mirrored = apply_transform(image, Transform(rotation=0, shear=0, zoom_x=1, zoom_y=1, flip=True))
    """
    import cv2

    height, width = image.shape[:2]
    return cv2.warpAffine(
        image,
        affine_matrix(transform, height, width),
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _apply_generator(image: np.ndarray, index: int, variant: int, config: FlowerParameters) -> np.ndarray:
    """The same augmentation by Keras' `ImageDataGenerator`, with a seed of its own for each variant of each image."""
    from tensorflow.keras.preprocessing.image import ImageDataGenerator

    generator = ImageDataGenerator(
        rotation_range=config.rotation,
        shear_range=config.shear,
        zoom_range=config.zoom,
        horizontal_flip=config.horizontal_flip,
        data_format="channels_last",
    )
    seed = int(np.random.default_rng((config.seed, streams.VARIANT, index, variant)).integers(2**32))
    with _generator_lock:  # it draws from numpy's global generator
        changed = generator.random_transform(image.astype(np.float32), seed=seed)
    return np.uint8(np.rint(np.clip(changed, 0, 255)))


def make_variant(part: ImagePart, index: int, variant: int, config: FlowerParameters) -> np.ndarray:
    """Reads one image and augments it as the settings say, a pure function of (seed, index, variant).

    Args:
        part: of the data set.
        index: of the image in the part.
        variant: 0-based number of the variant.
        config: uses augment, corrupt, corrupt_mix, pipeline, and what `draw_transform` uses.

    Returns:
        uint8 [height, width, RGB].

    Raises:
        UsageError: the image cannot be read, see `ImagePart.read`.
    """
    index, variant = int(index), int(variant)
    image = part.read(index)
    if not config.augment:
        return image
    if config.corrupt:
        from resnet_study.data.corruptions import worsen

        rng = np.random.default_rng((config.seed, streams.CORRUPTION, index, variant))
        image = worsen(image, config.corrupt, rng, config.corrupt_mix)
    if config.pipeline == "generator":
        return _apply_generator(image, index, variant, config)
    return apply_transform(image, draw_transform(index, variant, config))
