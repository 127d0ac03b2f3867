"""Batches of augmented images as `tf.data`, each a pure function of (seed, step): a run that is resumed sees the same ones."""

import numpy as np

from cifar10_input import plan_indices, shard_numbers
from flowers.augmentation import make_variant
from flowers.image_part import ImagePart
from flowers.settings import FlowerParameters
from resnet_study.environment import count_cores


def plan_batch(step: int, labels: np.ndarray, config: FlowerParameters) -> tuple[np.ndarray, np.ndarray]:
    """Which images and variants the batch of a step is made of, a pure function of (seed, step).

    The variant is the epoch, so that images never repeat; with `variants` = N it is the epoch modulo N. An image that comes several
    times in an epoch, by `balanced_sampling`, has another variant each time.

    Args:
        step: 0-based.
        labels: of the training part, see `cifar10_input.plan_indices`.
        config: uses seed, train_batch_size, balanced_sampling, augment, variants.

    Returns:
        (indices int64 [batch], variants int64 [batch]).
    """
    indices, rounds = plan_indices(step, labels, config)
    if not config.augment:
        return indices, np.zeros_like(rounds)
    return indices, rounds % config.variants if config.variants else rounds


def training_batches(
    part: ImagePart,
    config: FlowerParameters,
    train_steps: int,
    first_step=0,
    replicas=1,
    worker=0,
    workers=1,
    features=None,
    classes=0,
):
    """The batches from `first_step` to `train_steps`.

    Args:
        part: training part.
        config: settings.
        train_steps: batches to train.
        first_step: 0-based step to begin with.
        replicas: devices that share a batch; each step then gives so many equal shards of the batch, one after the other.
        worker, workers: give the shards of one machine only, see `cifar10_input.shard_numbers`.
        features: None, or float32 [n, variants, ...] to be taken in the place of the images.
        classes: number of classes, for MixUp and CutMix.

    Returns:
        tf.data.Dataset of (images uint8 [batch / replicas, height, width, RGB], or features; labels int32 [batch / replicas], of several
        for an image [batch / replicas, classes]); with RandAugment, MixUp and CutMix the images are float32, with the last two the labels
        float32 [batch / replicas, classes].
    """
    import tensorflow as tf

    from resnet_study.data.mixing import Mixer

    mixer = Mixer(config, part.shape, classes)
    size = config.train_batch_size // replicas
    shape, kind = (part.shape, np.uint8) if features is None else (features.shape[2:], np.float32)

    def make(shard):
        step, number = divmod(int(shard), replicas)
        indices, variants = (
            values[number * size : (number + 1) * size] for values in plan_batch(step, part.labels, config)
        )
        if features is not None:
            return features[indices, variants], part.labels_of(indices)
        made = [make_variant(part, *pair, config) for pair in zip(indices, variants, strict=True)]
        return np.stack(made), part.labels_of(indices)

    def make_shard(shard):
        images, labels = tf.numpy_function(make, [shard], [kind, tf.int32])
        images, labels = (
            tf.ensure_shape(images, [size, *shape]),
            tf.ensure_shape(labels, [size, *part.labels.shape[1:]]),
        )
        return mixer.mix(mixer.rand_augment(images, shard), labels, shard)

    shards = shard_numbers(first_step, train_steps, replicas, worker, workers)
    return shards.map(make_shard, num_parallel_calls=max(2, count_cores()), deterministic=True).prefetch(2 * replicas)
