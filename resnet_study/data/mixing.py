"""MixUp, CutMix and RandAugment by Keras' own layers, each batch a pure function of (seed, shard): a run that is resumed sees the same ones."""

import functools

import keras
import tensorflow as tf

from resnet_study.data import streams
from resnet_study.errors import UsageError


class _Draws(keras.random.SeedGenerator):
    """Seeds for the layers, one after the other, that no variable keeps."""

    def __init__(self, seed: int, kind: int, shard):
        self._base, self._count = tf.random.fold_in([seed, kind], tf.cast(shard, tf.int64)), 0

    def next(self, ordered=True):
        self._count += 1
        return tf.random.fold_in(self._base, self._count)


def check_mixing(config, shape) -> None:
    """Raises UsageError where RandAugment is asked for of grey images; `shape`: (height, width, channels)."""
    if config.rand_augment and shape[2] != 3:
        raise UsageError("--rand_augment is for colour images, received grey ones; leave it out, or give --channels=3")


class Mixer:
    """What the settings ask for beyond the augmentation of single images; nothing where they ask for nothing."""

    def __init__(self, config, shape, classes: int):
        """Makes what the settings ask for.

        Args:
            config: uses rand_augment, mixup, cutmix, seed.
            shape: of an image, (height, width, channels).
            classes: number of classes.
        """
        self._seed, self._classes = config.seed, classes
        self._augment = None
        if config.rand_augment:
            self._augment = keras.layers.RandAugment((0, 255), factor=config.rand_augment, dtype="float32")
            self._augment.build((None, *shape))
        # A single number would be the upper end of what Keras draws CutMix's alpha from.
        kinds = ((keras.layers.MixUp, config.mixup), (keras.layers.CutMix, (config.cutmix, config.cutmix)))
        self._mixers = [kind(alpha, dtype="float32") for kind, alpha in kinds if alpha and alpha != (0, 0)]

    def rand_augment(self, images, shard):
        """RandAugment of raw pixels.

        Args:
            images: [batch, height, width, RGB] of 0..255, any number type.
            shard: 0-based number of the batch, or of its share, int64.

        Returns:
            float32 of the same shape, 0..255; or what was given.
        """
        if not self._augment:
            return images
        draws = _Draws(self._seed, streams.RAND_AUGMENT, shard)
        self._augment._get_seed_generator = lambda backend=None: draws  # the layer takes no seed otherwise
        drawn = self._augment.get_random_transformation(images, training=True)
        return tf.clip_by_value(self._augment.transform_images(images, drawn), 0, 255)

    def mix(self, images, labels, shard):
        """MixUp or CutMix; of both, one by a coin for each batch.

        Args:
            images: float or uint8 [batch, height, width, channels].
            labels: int32 [batch]; or of images with several 0 and 1, int32 [batch, classes].
            shard: as above.

        Returns:
            (images float32, labels float32 [batch, classes]: the shares of the classes); or what was given.
        """
        if not self._mixers:
            return images, labels
        multi_label = len(labels.shape) == 2
        if not multi_label and self._classes < 2:
            raise ValueError(f"MixUp and CutMix need the number of classes, received {self._classes}; give classes=")
        shares = tf.cast(labels, tf.float32) if multi_label else tf.one_hot(labels, self._classes)
        images = tf.cast(images, tf.float32)
        draws = _Draws(self._seed, streams.MIX, shard)

        def mix(layer):
            drawn = layer.get_random_transformation(images, training=True, seed=draws)
            return layer.transform_images(images, drawn), layer.transform_labels(shares, drawn)

        if len(self._mixers) == 1:
            return mix(self._mixers[0])
        coin = tf.random.stateless_uniform([], draws.next())
        return tf.cond(coin < 0.5, *(functools.partial(mix, layer) for layer in self._mixers))
