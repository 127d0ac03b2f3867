"""What a frozen backbone gives for each image and each of its fixed variants: computed once, and trained on in the place of the images."""

import functools
import itertools
import math

import numpy as np
import tensorflow as tf

from flowers.augmentation import make_variant
from flowers.image_part import ImagePart
from flowers.settings import FlowerParameters
from resnet_study import devices
from resnet_study.errors import UsageError

LARGEST_FEATURES = 2 << 30  # bytes, of training and validation images together


def count_variants(config: FlowerParameters) -> int:
    """How many fixed variants of each image there are; 0 = endlessly many."""
    return config.variants if config.augment else 1


def may_cache_features(config: FlowerParameters) -> bool:
    """Whether the settings ask for cached features, or leave the choice where they do not change."""
    changes = config.backbone_trainable or config.faithful or not count_variants(config) or config.changes_batches
    return config.cache_features != "off" and not changes


def can_cache_features(config: FlowerParameters, training: int, validation: int, backbone) -> bool:
    """Whether the head is trained on cached features: where it may be, and they fit into the memory.

    Args:
        config: settings; uses cache_features, backbone_trainable, faithful, augment, variants, changes_batches.
        training, validation: numbers of images.
        backbone: keras.Model from raw pixels to features.

    Raises:
        UsageError: they must be cached and do not fit.
    """
    if not may_cache_features(config):
        return False
    size = (training * count_variants(config) + validation) * math.prod(backbone.output_shape[1:]) * 4
    if size > LARGEST_FEATURES and config.cache_features == "on":
        raise UsageError(
            f"the cached features would take {size / 2**30:.1f} GiB of memory, more than {LARGEST_FEATURES / 2**30:.0f}; use --head=pool, fewer "
            "--variants, or --cache_features=off"
        )
    return size <= LARGEST_FEATURES


def compute_features(backbone, training: ImagePart, validation_batches, config: FlowerParameters) -> tuple:
    """Runs the backbone once for each image and variant.

    Args:
        backbone: keras.Model from raw pixels to features.
        training: training part.
        validation_batches: yields (images, labels) of the validation part.
        config: settings.

    Returns:
        Features of the training images float32 [n, variants, ...]; of the validation images float32 [n, ...], and their labels.
    """
    towers = devices.count_inference_towers()

    @functools.partial(tf.function, reduce_retracing=True)
    def run(images, towers):
        return tf.concat([backbone(*part, training=False) for part in devices.split_among_towers(towers, images)], 0)

    def compute(images):
        return np.asarray(run(images, min(towers, len(images))), np.float32)

    variants, size = count_variants(config), config.validation_batch_size
    pairs = list(itertools.product(range(len(training)), range(variants)))
    # Filled in place: pieces put together would for a time take twice the memory.
    features = np.empty((len(pairs), *backbone.output_shape[1:]), np.float32)
    for place, batch in zip(in_batches(features, size), in_batches(pairs, size), strict=True):
        place[:] = compute(np.stack([make_variant(training, *pair, config) for pair in batch]))
    validation = [(compute(images), labels) for images, labels in validation_batches]
    return (
        features.reshape(len(training), variants, *features.shape[1:]),
        *(np.concatenate(values) for values in zip(*validation, strict=True)),
    )


def in_batches(values, size):
    """Yields a sequence in pieces of `size`."""
    for start in range(0, len(values), size):
        yield values[start : start + size]
