"""What goes in: find or fetch a data set, verify and read it, split it, augment it, hand it over as `tf.data`.

load_data(config)        -> ImageData          uint8 images and labels, training and test
split_data(data, config) -> Split, Split       training part and validation part
training_batches(...)    -> tf.data.Dataset    augmented batches, each a pure function of (seed, step)
"""

import dataclasses
import functools

import numpy as np

from hyper_parameters import HyperParameters
from resnet_study.data import streams
from resnet_study.data.balance import balanced_order
from resnet_study.data.cifar_files import CIFAR10_CLASSES as CIFAR10_CLASSES
from resnet_study.data.cifar_files import KINDS, load_cifar
from resnet_study.data.folder_data import load_folder
from resnet_study.data.image_data import ImageData, Split
from resnet_study.data.mnist import load_mnist
from resnet_study.data.splits import hold_out
from resnet_study.data.toy_data import draw_synthetic, load_digits


def load_data(config: HyperParameters) -> ImageData:
    """Finds, verifies and reads the data set `config.dataset`.

    CIFAR and MNIST are looked for in `config.data_dir` if that is given, otherwise in Keras' cache, otherwise downloaded into it.
    Images of one's own are those of `config.data_dir`, see `resnet_study.data.folder_data`.
    The labels are those of the first of `config.heads`, if there are any.

    Args:
        config: uses dataset, data_dir, heads, synthetic_images; of images of one's own those that say how they are found, split and read.

    Returns:
        ImageData.

    Raises:
        UsageError: not found, or a file is damaged; the message names the file and the ways out.

    Example:
        from cifar10_input import load_data
        from hyper_parameters import from_preset

        data = load_data(from_preset("demo"))
        print(data.train.images.shape)  # (1437, 32, 32, 3)
    """
    if config.dataset == "digits":
        return load_digits()
    if config.dataset == "synthetic":
        return draw_synthetic(config.synthetic_images, seed=0)
    if config.dataset == "mnist":
        return load_mnist(config.data_dir)
    if config.dataset == "folder":
        return load_folder(config)
    head = next(iter(config.head_factors), "")
    data = load_cifar("cifar100_coarse" if head == "coarse" else config.dataset, config.data_dir)
    return _as_kinds(data) if head == "kind" else data


def load_heads(config: HyperParameters) -> dict[str, ImageData]:
    """Reads the data set once for each head: the same images with the labels and class names of the head.

    Args:
        config: uses dataset, data_dir, heads, synthetic_images.

    Returns:
        {name of the head: ImageData}, in the order of `config.heads`.

    Raises:
        UsageError: as `load_data`.
    """
    found = {head: load_data(dataclasses.replace(config, heads=head, head_weights="")) for head in config.head_factors}
    first = next(iter(found.values()))
    return {
        head: dataclasses.replace(
            data, train=Split(first.train.images, data.train.labels), test=Split(first.test.images, data.test.labels)
        )
        for head, data in found.items()
    }


def _as_kinds(data: ImageData) -> ImageData:
    """CIFAR-10 with the labels of `KINDS`: airplane, automobile, ship and truck are vehicles."""
    kinds = np.int32([name not in ("airplane", "automobile", "ship", "truck") for name in data.class_names])
    parts = {
        part: Split(split.images, kinds[split.labels]) for part, split in (("train", data.train), ("test", data.test))
    }
    return dataclasses.replace(data, class_names=KINDS, **parts)


def split_data(data: ImageData, config: HyperParameters, keeps_last: bool = True) -> tuple[Split, Split]:
    """Splits the training images into a training and a validation part, class by class.

    The parts depend on `split_seed` and `validation_fraction` only; on CIFAR-10 the default gives 45,000 and 5,000
    (He 2015, section 4.2), on MNIST 1/12 gives 55,000 and 5,000; 0 leaves the validation part empty. A data set that has a validation
    part of its own keeps it; with 0 it is trained on too. With `train_random_label` /
    `vali_random_label` the labels of a part are random.

    Args:
        data: of `load_data`.
        config: uses split_seed, validation_fraction, train_random_label, vali_random_label, seed.
        keeps_last: see `hold_out`.

    Returns:
        (training, validation).

    Raises:
        UsageError: a class has too few images to appear in both parts.

    Example:
        from cifar10_input import load_data, split_data
        from hyper_parameters import from_preset

        config = from_preset("demo")
        training, validation = split_data(load_data(config), config)
        print(len(training), len(validation))  # 1293 144
    """
    if data.validation is not None and config.validation_fraction:
        return _with_random_labels([data.train, data.validation], data, config)
    if data.validation is not None:
        both = [
            np.concatenate(pair)
            for pair in zip(*((part.images, part.labels) for part in (data.train, data.validation)), strict=True)
        ]
        data = dataclasses.replace(data, train=Split(*both))
    labels = data.train.labels
    fractions = {"validation_fraction": config.validation_fraction}
    (held_out,) = hold_out(labels, fractions, config.split_seed, data.class_names, keeps_last=keeps_last)
    is_validation = np.zeros(len(labels), bool)
    is_validation[held_out] = True
    parts = [data.train.take(np.flatnonzero(~is_validation)), data.train.take(np.flatnonzero(is_validation))]
    return _with_random_labels(parts, data, config)


def _with_random_labels(parts, data, config):
    """Training and validation part, with random labels where the settings ask for them."""
    for index, randomize in enumerate((config.train_random_label, config.vali_random_label)):
        if randomize:
            random_labels = np.random.default_rng((config.seed, streams.RANDOM_LABELS + index)).integers(
                len(data.class_names), size=len(parts[index])
            )
            parts[index] = dataclasses.replace(parts[index], labels=random_labels.astype(np.int32))
    return parts[0], parts[1]


def make_normalization(kind: str, images: np.ndarray):
    """The first layer of a network: normalisation with constants measured on training images only.

    Args:
        kind: "channel_standard", "channel_mean", "pixel_mean" or "image_standard"; see `HyperParameters.normalization`.
        images: uint8 [n, height, width, channels], the training part.

    Returns:
        `resnet_study.networks.layers.PixelNormalization`, from [n, height, width, channels] of 0..255 to float32 of that shape.

    Example:
        import numpy as np
        from cifar10_input import make_normalization

        images = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3), np.uint8)
        layer = make_normalization("channel_standard", images)
        print(layer(images[:8]).shape)  # (8, 32, 32, 3)
    """
    from resnet_study.networks.layers import PixelNormalization

    kinds = HyperParameters.__dataclass_fields__["normalization"].metadata["choices"]
    if kind not in kinds:
        raise ValueError(f"kind must be one of {', '.join(kinds)}, received {kind!r}")
    if not len(images):
        raise ValueError("images must be one or more, received none")
    if kind == "image_standard":
        return PixelNormalization(per_image=True, name="normalization")
    if kind == "pixel_mean":
        return PixelNormalization(np.round(images.mean(axis=0), 3).tolist(), 255.0, name="normalization")
    # Counting the 256 grey values gives exact moments without a float copy of all pixels.
    values = np.arange(256)
    counts = np.zeros((images.shape[-1], 256), np.int64)
    for start in range(0, len(images), 1000):  # bincount takes eight bytes a value
        for channel, pixels in enumerate(np.moveaxis(images[start : start + 1000], -1, 0)):
            counts[channel] += np.bincount(pixels.ravel(), minlength=256)
    mean = counts @ values / counts.sum(axis=1)
    std = np.sqrt(counts @ values**2 / counts.sum(axis=1) - mean**2)
    scale = np.maximum(std, 1.0).round(3).tolist() if kind == "channel_standard" else 255.0
    return PixelNormalization(mean.round(3).tolist(), scale, name="normalization")


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """What one training batch is made of.

    Attributes:
        indices: int64 [batch].
        offsets: int32 [batch, 2], crop offsets (y, x).
        flips: bool [batch].
        centers: float32 [batch, 2], centre (y, x) of the square that is cut out, 0 <= share of height and width < 1.
        angles: float32 [batch], degrees of the rotation, counter-clockwise.
    """

    indices: np.ndarray
    offsets: np.ndarray
    flips: np.ndarray
    centers: np.ndarray
    angles: np.ndarray


def plan_indices(step: int, labels: np.ndarray, config) -> tuple[np.ndarray, np.ndarray]:
    """Which images batch `step` is made of, a pure function of (seed, step).

    The images of all epochs form one endless row, each epoch in an order of its own. Every `train_batch_size` images of the row are a
    batch. So every image comes once an epoch, also where the batch size does not divide their number. With `balanced_sampling` every
    class comes equally often instead, see `resnet_study.data.balance.balanced_order`.

    Args:
        step: 0-based index of the batch.
        labels: of the training part, int32 [num_images]; without `balanced_sampling` their number alone counts.
        config: uses seed, train_batch_size, balanced_sampling.

    Returns:
        (indices int64 [batch], how often each image can have come before, int64 [batch]: without `balanced_sampling` the 0-based epoch).
    """
    size = config.train_batch_size
    epochs, positions = np.divmod(np.arange(step * size, (step + 1) * size), len(labels))
    indices, rounds = np.empty(size, np.int64), epochs.copy()
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        if config.balanced_sampling:
            order, epoch_rounds = balanced_order(config.seed, epoch, np.int32(labels).tobytes())
            rounds[here] = epoch_rounds[positions[here]]
        else:
            order = _epoch_order(config.seed, epoch, len(labels))
        indices[here] = order[positions[here]]
    return indices, rounds


def plan_batch(step: int, labels: np.ndarray, config: HyperParameters) -> BatchPlan:
    """Draws what batch `step` is made of, a pure function of (seed, step); see `plan_indices`.

    Args:
        step: 0-based index of the batch.
        labels: of the training part, see `plan_indices`.
        config: uses seed, train_batch_size, balanced_sampling, augment, padding_size, flip, cutout, rotation.

    Returns:
        BatchPlan.
    """
    batch_size = config.train_batch_size
    indices, rounds = plan_indices(step, labels, config)
    offsets = np.full((batch_size, 2), config.padding_size, np.int32)
    flips = np.zeros(batch_size, bool)
    centers = np.zeros((batch_size, 2), np.float32)
    angles = np.zeros(batch_size, np.float32)
    if config.augment:
        rng = np.random.default_rng((config.seed, streams.BATCH, step))
        # `integers` excludes its upper end: offsets are 0..2*padding, the last one included.
        offsets = rng.integers(2 * config.padding_size + 1, size=(batch_size, 2), dtype=np.int32)
        if config.flip == "random":
            flips = rng.random(batch_size) < 0.5
        elif config.flip == "alternate":
            flips = alternate_flips(config.seed, len(labels), indices, rounds)
        if config.cutout:
            centers = rng.random((batch_size, 2), np.float32)
        if config.rotation:
            angles = rng.uniform(-config.rotation, config.rotation, batch_size).astype(np.float32)
    return BatchPlan(indices, offsets, flips, centers, angles)


@functools.lru_cache(maxsize=4)
def _epoch_order(seed, epoch, num_images):
    return np.random.default_rng((seed, streams.EPOCH_ORDER, epoch)).permutation(num_images)


def alternate_flips(seed: int, num_images: int, indices, rounds) -> np.ndarray:
    """Whether images are mirrored by `--flip=alternate`: half of them when they are first seen, and then each every second time.

    Args:
        seed: of the run.
        num_images: of the training.
        indices: int [n], which of them.
        rounds: int or int [n], how often each was seen before.

    Returns:
        bool [n].
    """
    return _flipped_first(seed, num_images)[indices] ^ (np.asarray(rounds) % 2 == 1)


@functools.lru_cache(maxsize=4)
def _flipped_first(seed, num_images):
    return np.random.default_rng((seed, streams.FIRST_FLIPS)).random(num_images) < 0.5


def crop_and_flip(images, offsets, flips, padding: int, mode: str):
    """Pads images on all sides, cuts a window of the old size out of each, mirrors some of them left to right.

    Args:
        images: [batch, height, width, channels], any number type.
        offsets: int32 [batch, 2], top and left edge of the window in the padded image, 0..2*padding pixels.
        flips: bool [batch].
        padding: pixels added on each side, less than height and width for mode "reflect".
        mode: "zero" or "reflect" (the edge pixel is not repeated).

    Returns:
        tf.Tensor of the shape and type of `images`.
    """
    import tensorflow as tf

    if mode not in ("zero", "reflect"):
        raise ValueError(f"mode must be zero or reflect, received {mode!r}")
    height, width, channels = images.shape[1:]
    rows = offsets[:, :1] + tf.range(height)
    columns = offsets[:, 1:] + tf.where(flips[:, None], tf.range(width - 1, -1, -1), tf.range(width))
    if mode == "reflect":
        # No padded copy: a pixel outside of the image is looked up where its mirror image is.
        rows = height - 1 - abs(height - 1 - abs(rows - padding))
        columns = width - 1 - abs(width - 1 - abs(columns - padding))
    else:
        images = tf.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        height, width = height + 2 * padding, width + 2 * padding
    pixels = tf.reshape(images, (-1, height * width, channels))
    return tf.gather(pixels, rows[:, :, None] * width + columns[:, None, :], axis=1, batch_dims=1)


def augment(images, offsets, flips, centers, angles, config: HyperParameters):
    """Rotates, `crop_and_flip`, then sets a square of each image to zero (DeVries & Taylor 2017, arXiv:1708.04552).

    Args:
        images: [batch, height, width, channels], uint8 or floating point.
        offsets, flips, centers, angles: see `BatchPlan`. An image is rotated about its middle, bilinearly; what comes in from outside
            is as `padding_mode` says. Any pixel may be the centre of the square; what is outside of the image is cut off.
        config: uses rotation, padding_size, padding_mode, cutout (side of the square in pixels).

    Returns:
        tf.Tensor of the shape and type of `images`.
    """
    import tensorflow as tf

    if config.rotation:
        images = _rotate(images, angles, "REFLECT" if config.padding_mode == "reflect" else "CONSTANT")
    images = crop_and_flip(images, offsets, flips, config.padding_size, config.padding_mode)
    if not config.cutout:
        return images
    sides = []
    for axis, length in enumerate(images.shape[1:3]):
        first = tf.cast(centers[:, axis : axis + 1] * length, tf.int32) - config.cutout // 2
        sides.append((tf.range(length) >= first) & (tf.range(length) < first + config.cutout))
    square = sides[0][:, :, None, None] & sides[1][:, None, :, None]
    return tf.where(square, tf.zeros((), images.dtype), images)


def _rotate(images, angles, fill_mode):
    import tensorflow as tf

    y, x = ((length - 1) / 2 for length in images.shape[1:3])
    sine, cosine = tf.sin(angles * (np.pi / 180)), tf.cos(angles * (np.pi / 180))
    # Where the pixel (column, row) of the result comes from: the two rows of an affine matrix, then of a projective one.
    zero = tf.zeros_like(sine)
    matrix = (cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y, zero, zero)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack(matrix, axis=1),
        output_shape=images.shape[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode=fill_mode,
    )


def shard_numbers(first_step: int, train_steps: int, replicas: int = 1, worker: int = 0, workers: int = 1):
    """Numbers of the shards that one machine needs, where devices share each batch: shard p is part p % replicas of batch
    p // replicas.

    Args:
        first_step, train_steps: 0-based step to begin with, and the one to end before.
        replicas: devices of all machines; each step has so many shards.
        worker, workers: 0-based number of this machine, and the number of all, which have equally many devices.

    Returns:
        tf.data.Dataset of int64 scalars, rising.
    """
    import tensorflow as tf

    shards = tf.data.Dataset.range(first_step * replicas, train_steps * replicas)
    if workers == 1:
        return shards
    return shards.filter(lambda shard: shard % replicas // (replicas // workers) == worker)


def training_batches(
    split: Split,
    normalization,
    config: HyperParameters,
    first_step: int = 0,
    replicas: int = 1,
    worker: int = 0,
    workers: int = 1,
    classes: int = 0,
):
    """The batches from `first_step` to `train_steps`: some images made worse, RandAugment, normalised, then rotated, padded with zeros or
    reflections, cropped, flipped, with a square cut out, and mixed.

    Normalisation comes first, so that the zeros of the padding are the mean colour (He 2015) and never enter an
    image's own mean and deviation. (Liang's program pads before it standardises.)

    Args:
        split: training part.
        normalization: layer of `make_normalization`.
        config: settings.
        first_step: 0-based step to begin with.
        replicas: devices that share a batch; each step then gives so many equal shards of the batch, one after the other.
        worker, workers: give the shards of one machine only, see `shard_numbers`.
        classes: number of classes, for MixUp and CutMix.

    Returns:
        tf.data.Dataset of (images float32 [batch / replicas, height, width, channels], labels int32 [batch / replicas], of images
        with several 0 and 1, int32 [batch / replicas, classes]); with MixUp or CutMix labels float32 [batch / replicas, classes].

    Raises:
        ValueError: MixUp or CutMix without the number of classes.

    Example:
        from cifar10_input import load_data, make_normalization, split_data, training_batches
        from hyper_parameters import from_preset

        config = from_preset("demo")
        training, _ = split_data(load_data(config), config)
        batches = training_batches(training, make_normalization(config.normalization, training.images), config)
        images, labels = next(iter(batches))
        print(images.shape, labels.shape)  # (128, 32, 32, 3) (128,)
    """
    import tensorflow as tf

    from resnet_study.data.corruptions import worsen_batch
    from resnet_study.data.mixing import Mixer

    mixer = Mixer(config, split.images.shape[1:], classes)
    size = config.train_batch_size // replicas
    kinds = (split.images.dtype, split.labels.dtype, np.int32, np.bool_, np.float32, np.float32)
    shapes = (split.images.shape[1:], split.labels.shape[1:], [2], [], [2], [])

    def take(shard):
        batch = plan_batch(int(shard) // replicas, split.labels, config)
        part = slice(int(shard) % replicas * size, (int(shard) % replicas + 1) * size)
        indices, *draws = (getattr(batch, field.name)[part] for field in dataclasses.fields(batch))
        images = split.images[indices]
        if config.augment and config.corrupt:
            seed = (config.seed, streams.CORRUPTION, int(shard) // replicas)
            images = worsen_batch(images, config.corrupt, seed, part.start, config.corrupt_mix)
        return images, split.labels[indices], *draws

    def make_shard(shard):
        # From NumPy: tensors to gather from would be a second copy of all images.
        images, labels, *draws = (
            tf.ensure_shape(values, [size, *shape])
            for values, shape in zip(tf.numpy_function(take, [shard], kinds), shapes, strict=True)
        )
        images = normalization(mixer.rand_augment(images, shard))
        return mixer.mix(augment(images, *draws, config) if config.augment else images, labels, shard)

    shards = shard_numbers(first_step, config.train_steps, replicas, worker, workers)
    return shards.map(make_shard).prefetch(4 * replicas)
