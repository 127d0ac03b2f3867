"""What goes in: find or fetch a data set, verify and read it, split it, augment it, hand it over as `tf.data`.

    load_data(config)        -> ImageData          uint8 pictures and labels, training and test; MNIST by `mnist_input`
    split_data(data, config) -> ImageData, ...     training part and validation part
    training_batches(...)    -> tf.data.Dataset    augmented batches, each a pure function of (seed, step)

CIFAR-10 and CIFAR-100 come in the published Python and binary versions. A row holds 3,072 bytes: 1,024 red, 1,024 green,
1,024 blue, each plane row by row (https://www.cs.toronto.edu/~kriz/cifar.html). Archives and pickles come from
strangers: archives are read, never extracted, and reading a pickle cannot call anything.
"""

import dataclasses
import functools
import gzip
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np

from hyper_parameters import HyperParameters, UsageError
from image_data import ImageData, Split, check_labels, download, keras_cache, one_line, read_file
from mnist_input import load_mnist

KINDS = ("vehicle", "animal")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SYNTHETIC_CLASSES = (
    "disc", "square", "triangle", "ring", "cross", "bars", "columns", "checks", "diamond", "star",
)  # fmt: skip

_PICTURE_BYTES = 3072
_LARGEST_MEMBER = 256 << 20  # bytes; the largest published file, CIFAR-100's training file, has 155 MB
_LARGEST_ARCHIVE = 512 << 20  # bytes unpacked; the published archives have 186 MB
_SITE = "https://www.cs.toronto.edu/~kriz/"


@dataclasses.dataclass(frozen=True)
class _Published:
    """The published files of one CIFAR data set."""

    folders: tuple[str, str]  # Python version, binary version
    archives: tuple[str, str]
    sha256: str  # of the Python version's archive
    train_files: tuple[tuple[str, ...], tuple[str, ...]]
    test_files: tuple[tuple[str, ...], tuple[str, ...]]
    names_files: tuple[str, str]
    label_key: str
    names_key: str
    classes: int
    label_bytes: int  # in a row of the binary version
    label_offset: int


_CIFAR10 = _Published(
    folders=("cifar-10-batches-py", "cifar-10-batches-bin"),
    archives=("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"),
    sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    train_files=(
        tuple(f"data_batch_{i}" for i in range(1, 6)),
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    ),
    test_files=(("test_batch",), ("test_batch.bin",)),
    names_files=("batches.meta", "batches.meta.txt"),
    label_key="labels",
    names_key="label_names",
    classes=10,
    label_bytes=1,
    label_offset=0,
)
_CIFAR100 = _Published(
    folders=("cifar-100-python", "cifar-100-binary"),
    archives=("cifar-100-python.tar.gz", "cifar-100-binary.tar.gz"),
    sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    train_files=(("train",), ("train.bin",)),
    test_files=(("test",), ("test.bin",)),
    names_files=("meta", "fine_label_names.txt"),
    label_key="fine_labels",
    names_key="fine_label_names",
    classes=100,
    label_bytes=2,
    label_offset=1,
)
_PUBLISHED = {
    "cifar10": _CIFAR10,
    "cifar100": _CIFAR100,
    "cifar100_coarse": dataclasses.replace(
        _CIFAR100,
        names_files=("meta", "coarse_label_names.txt"),
        label_key="coarse_labels",
        names_key="coarse_label_names",
        classes=20,
        label_offset=0,
    ),
}


def load_data(config: HyperParameters) -> ImageData:
    """Finds, verifies and reads the data set `config.dataset`.

    CIFAR and MNIST are looked for in `config.data_dir` if that is given, otherwise in Keras' cache, otherwise downloaded into it.
    The labels are those of the first of `config.heads`, if there are any.

    Raises:
        UsageError: not found, or a file is damaged; the message names the file and the ways out.
    """
    if config.dataset == "digits":
        return _load_digits()
    if config.dataset == "synthetic":
        return _draw_synthetic(config.synthetic_images, seed=0)
    if config.dataset == "mnist":
        return load_mnist(config.data_dir)
    head = next(iter(config.tasks), "")
    published = _PUBLISHED["cifar100_coarse" if head == "coarse" else config.dataset]
    if config.data_dir:
        place = _find(published, Path(config.data_dir).expanduser())
        if place is None:
            raise UsageError(
                f"--data_dir must hold {published.folders[0]}/, {published.folders[1]}/ or {published.archives[0]}; none "
                f"found in {config.data_dir}; give another folder, leave it out to download, or use --dataset=digits"
            )
    else:
        place = _find_in_keras_cache(published) or download(_SITE + published.archives[0], published.sha256)
    data = _read(published, place)
    return _as_kinds(data) if head == "kind" else data


def load_heads(config: HyperParameters) -> dict[str, ImageData]:
    """The data set once for each of `config.heads`: the same pictures with the labels and class names of the head."""
    found = {head: load_data(dataclasses.replace(config, heads=head, head_weights="")) for head in config.tasks}
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


def split_data(data: ImageData, config: HyperParameters) -> tuple[Split, Split]:
    """Splits the training images into a training and a validation part, class by class.

    The parts depend on `split_seed` and `validation_fraction` only; on CIFAR-10 the default gives 45,000 and 5,000
    (He 2015, section 4.2), on MNIST 1/12 gives 55,000 and 5,000; 0 leaves the validation part empty. With `train_random_label` /
    `vali_random_label` the labels of a part are random.

    Returns:
        (training, validation).

    Raises:
        UsageError: a class has too few images to appear in both parts.
    """
    labels = data.train.labels
    rng = np.random.default_rng(config.split_seed)
    held_out = []
    present, sizes = np.unique(labels, return_counts=True)
    for label, count in zip(present, _apportion(sizes, config.validation_fraction), strict=True):
        members = np.flatnonzero(labels == label)
        if count >= len(members):
            raise UsageError(
                f"class '{data.class_names[label]}' has {len(members)} training image(s), of which {count} would be held out; "
                "give more images or a smaller --validation_fraction"
            )
        held_out.append(rng.permutation(members)[:count])
    is_validation = np.zeros(len(labels), bool)
    is_validation[np.concatenate(held_out)] = True
    parts = [data.train.take(np.flatnonzero(~is_validation)), data.train.take(np.flatnonzero(is_validation))]
    for index, randomize in enumerate((config.train_random_label, config.vali_random_label)):
        if randomize:
            random_labels = np.random.default_rng((config.seed, index)).integers(
                len(data.class_names), size=len(parts[index])
            )
            parts[index] = dataclasses.replace(parts[index], labels=random_labels.astype(np.int32))
    return parts[0], parts[1]


def _apportion(sizes: np.ndarray, fraction: float) -> list[int]:
    """`fraction` of each size, rounded so that the sum is right too: largest remainders are rounded up. At least 1, unless it is 0."""
    shares = sizes * fraction
    counts = np.floor(shares).astype(int)
    up = np.argsort(counts - shares, kind="stable")[: max(0, round(shares.sum()) - counts.sum())]
    counts[up] += 1
    return np.maximum(fraction > 0, counts).tolist()


def make_normalization(kind: str, images: np.ndarray):
    """The first layer of a net: normalisation with constants measured on training images only.

    Args:
        kind: "channel_standard", "channel_mean", "pixel_mean" or "whiten"; see `HyperParameters.normalization`.
        images: uint8 [n, height, width, channels], the training part.

    Returns:
        `resnet_layers.PixelNormalization`.
    """
    from resnet_layers import PixelNormalization

    if kind == "whiten":
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


def plan_indices(step: int, num_images: int, batch_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which images batch `step` is made of, a pure function of (seed, step).

    The images of all epochs form one endless row, each epoch in an order of its own; batch `step` is its `step`-th
    piece. So every image comes once an epoch, also where the batch size does not divide their number.

    Returns:
        (indices int64 [batch_size], the 0-based epoch of each int64 [batch_size]).
    """
    epochs, positions = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), num_images)
    indices = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        indices[epochs == epoch] = _epoch_order(seed, int(epoch), num_images)[positions[epochs == epoch]]
    return indices, epochs


def plan_batch(step: int, num_images: int, config: HyperParameters) -> BatchPlan:
    """Draws what batch `step` is made of, a pure function of (seed, step); see `plan_indices`.

    Args:
        step: 0-based index of the batch.
        num_images: size of the training part.
        config: uses seed, train_batch_size, augment, padding_size, flip, cutout, rotation.
    """
    batch_size = config.train_batch_size
    indices, epochs = plan_indices(step, num_images, batch_size, config.seed)
    offsets = np.full((batch_size, 2), config.padding_size, np.int32)
    flips = np.zeros(batch_size, bool)
    centers = np.zeros((batch_size, 2), np.float32)
    angles = np.zeros(batch_size, np.float32)
    if config.augment:
        rng = np.random.default_rng((config.seed, 1, step))
        # `integers` excludes its upper end: offsets are 0..2*padding, the last one included.
        offsets = rng.integers(2 * config.padding_size + 1, size=(batch_size, 2), dtype=np.int32)
        if config.flip == "random":
            flips = rng.random(batch_size) < 0.5
        elif config.flip == "alternate":
            flips = _flipped_first(config.seed, num_images)[indices] ^ (epochs % 2 == 1)
        if config.cutout:
            centers = rng.random((batch_size, 2), np.float32)
        if config.rotation:
            angles = rng.uniform(-config.rotation, config.rotation, batch_size).astype(np.float32)
    return BatchPlan(indices, offsets, flips, centers, angles)


@functools.lru_cache(maxsize=4)
def _epoch_order(seed, epoch, num_images):
    return np.random.default_rng((seed, 2, epoch)).permutation(num_images)


@functools.lru_cache(maxsize=4)
def _flipped_first(seed, num_images):
    return np.random.default_rng((seed, 3)).random(num_images) < 0.5


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


def piece_numbers(first_step: int, train_steps: int, replicas: int = 1, worker: int = 0, workers: int = 1):
    """Numbers of the pieces that one machine needs, where devices share each batch: piece p is part p % replicas of batch
    p // replicas.

    Args:
        first_step, train_steps: 0-based step to begin with, and the one to end before.
        replicas: devices of all machines; each step has so many pieces.
        worker, workers: 0-based number of this machine, and the number of all, which have equally many devices.

    Returns:
        tf.data.Dataset of int64 scalars, rising.
    """
    import tensorflow as tf

    pieces = tf.data.Dataset.range(first_step * replicas, train_steps * replicas)
    if workers == 1:
        return pieces
    return pieces.filter(lambda piece: piece % replicas // (replicas // workers) == worker)


def training_batches(
    split: Split,
    normalization,
    config: HyperParameters,
    first_step: int = 0,
    replicas: int = 1,
    worker: int = 0,
    workers: int = 1,
):
    """The batches from `first_step` to `train_steps`, normalised, then rotated, padded with zeros or reflections, cropped, flipped,
    and with a square cut out.

    Normalisation comes first, so that the zeros of the padding are the mean colour (He 2015) and never enter an
    image's own mean and deviation. (Liang's program pads before it whitens.)

    Args:
        split: training part.
        normalization: layer of `make_normalization`.
        config: settings.
        first_step: 0-based step to begin with.
        replicas: devices that share a batch; each step then gives so many equal pieces of the batch, one after the other.
        worker, workers: give the pieces of one machine only, see `piece_numbers`.

    Returns:
        tf.data.Dataset of (images float32 [batch / replicas, height, width, channels], labels int32 [batch / replicas]).
    """
    import tensorflow as tf

    size = config.train_batch_size // replicas
    kinds = (split.images.dtype, split.labels.dtype, np.int32, np.bool_, np.float32, np.float32)
    shapes = (split.images.shape[1:], split.labels.shape[1:], [2], [], [2], [])

    def take(piece):
        batch = plan_batch(int(piece) // replicas, len(split), config)
        part = slice(int(piece) % replicas * size, (int(piece) % replicas + 1) * size)
        indices, *draws = (getattr(batch, field.name)[part] for field in dataclasses.fields(batch))
        return split.images[indices], split.labels[indices], *draws

    def make_piece(piece):
        # From NumPy: tensors to gather from would be a second copy of all images.
        images, labels, *draws = (
            tf.ensure_shape(values, [size, *shape])
            for values, shape in zip(tf.numpy_function(take, [piece], kinds), shapes, strict=True)
        )
        images = normalization(images)
        return (augment(images, *draws, config) if config.augment else images), labels

    pieces = piece_numbers(first_step, config.train_steps, replicas, worker, workers)
    return pieces.map(make_piece).prefetch(4 * replicas)


# Finding and reading the published files


def _find(published: _Published, place: Path) -> Path | None:
    """The folder or archive in, at or just below `place` that holds the data set; None if there is none."""
    if place.is_file():
        return place
    for candidate in (place, *(place / name for name in published.folders + published.archives)):
        if candidate.is_file():
            return candidate
        for files in published.test_files:
            if (candidate / files[0]).is_file():
                return candidate
    return None


def _find_in_keras_cache(published: _Published) -> Path | None:
    cache = keras_cache()
    # `keras.datasets` extracts into <name>-target/<name>; older versions extracted into <name>.
    name = published.folders[0]
    return _find(published, cache / f"{name}-target") or _find(published, cache / name) or _find(published, cache)


def _read(published: _Published, place: Path) -> ImageData:
    """Reads the Python or the binary version from a folder or an archive."""
    wanted = {name for files in published.train_files + published.test_files for name in files} | {
        *published.names_files
    }
    files = _archive_members(place, wanted) if place.is_file() else _folder_files(place, wanted)
    version = 0 if published.test_files[0][0] in files else 1
    missing = [name for name in published.train_files[version] + published.test_files[version] if name not in files]
    if missing:
        raise UsageError(f"expected {', '.join(missing)} in {place}, received {', '.join(sorted(files)) or 'none of its files'}; "
                         "give another --data_dir or leave it out to download")  # fmt: skip
    parse = (_parse_pickle, _parse_binary)[version]

    def read_split(names):
        parts = [parse(files.pop(name), published, f"{place}/{name}") for name in names]
        return Split(np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]))

    return ImageData(
        read_split(published.train_files[version]),
        read_split(published.test_files[version]),
        _class_names(files.get(published.names_files[version]), version, published, place),
        str(place),
    )


def _folder_files(folder: Path, wanted: set[str]) -> dict[str, bytes]:
    paths = {name: folder / name for name in sorted(wanted)}
    return {name: read_file(path, _LARGEST_MEMBER) for name, path in paths.items() if path.is_file()}


class _Unpacked(io.RawIOBase):
    """A tar archive as it is unpacked; reading far more than the published archives hold is an error."""

    def __init__(self, packed):
        gzipped = packed.read(2) == b"\x1f\x8b"
        packed.seek(0)
        self._content = gzip.GzipFile(fileobj=packed) if gzipped else packed

    def read(self, size):
        if size > _LARGEST_MEMBER or self.tell() + size > _LARGEST_ARCHIVE:
            raise ValueError(f"it unpacks to more than {_LARGEST_ARCHIVE:,} bytes, expected about 186 MB")
        return self._content.read(size)

    def seek(self, offset, whence=io.SEEK_SET):
        if offset > _LARGEST_ARCHIVE:
            raise ValueError(f"it unpacks to more than {_LARGEST_ARCHIVE:,} bytes, expected about 186 MB")
        return self._content.seek(offset, whence)

    def tell(self):
        return self._content.tell()


def _archive_members(archive: Path, wanted: set[str]) -> dict[str, bytes]:
    """The wanted regular files of a tar archive, plain or gzipped, read into memory; nothing is extracted."""
    files = {}
    try:
        with archive.open("rb") as packed:
            unpacked = _Unpacked(packed)
            with tarfile.open(fileobj=unpacked, mode="r:") as tar:
                for member in tar:
                    name = member.name.rsplit("/", 1)[-1]
                    if member.size < 0:
                        raise ValueError(f"it holds a file of {member.size} bytes")
                    if member.isreg() and not member.issparse() and name in wanted and name not in files:
                        files[name] = tar.extractfile(member).read()
                        if len(files[name]) != member.size:
                            raise EOFError(f"{name} is cut off")
            while unpacked.read(1 << 20):  # gzip's checksum comes last
                pass
    # A damaged archive can raise nearly anything; whatever it is, the file cannot be used.
    except Exception as error:
        raise UsageError(f"{archive} is damaged or no tar archive ({one_line(error)}); download it again") from error
    return files


class _PickledArray:
    """Stands for a pickled numpy array: keeps what describes it, calls nothing."""

    def __init__(self, *_):
        self.shape, self.type, self.content = (), "", b""

    def __setstate__(self, state):
        _, self.shape, dtype, _, self.content = state
        self.type = dtype.name


class _PickledType:
    """Stands for a pickled numpy dtype."""

    def __init__(self, name, *_):
        self.name = name

    def __setstate__(self, state):
        pass


def _array_from_buffer(content, dtype, shape, _order):
    array = _PickledArray()
    array.shape, array.type, array.content = shape, dtype.name, content
    return array


class _TextDict(dict):
    """A dictionary with keys of text only: the hash of nested tuples can take for ever."""

    __slots__ = ()

    def __setitem__(self, key, value):
        if not isinstance(key, str | bytes):
            raise pickle.UnpicklingError(f"it has a key of type {type(key).__name__}")
        super().__setitem__(key, value)


class _CifarUnpickler(pickle._Unpickler):
    """Reads dictionaries, lists, whole numbers, text and descriptions of arrays; refuses everything else.

    This is the unpickler written in Python: the one written in C reserves memory for whatever number a file names.
    """

    _UNDERSTOOD = (
        "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES "
        "BINBYTES8 BYTEARRAY8 BINUNICODE SHORT_BINUNICODE EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS EMPTY_TUPLE "
        "TUPLE TUPLE1 TUPLE2 TUPLE3 BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD"
    )
    dispatch = {  # noqa: RUF012 - as in the parent class
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _UNDERSTOOD.split()
    }

    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._to_encode = len(content)

    def load_empty_dictionary(self):
        self.append(_TextDict())

    def load_byte_array(self):
        self.append(self.read(int.from_bytes(self.read(8), "little")))  # the original reserves memory first

    def load_build(self):
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _PickledArray | _PickledType):
            raise pickle.UnpicklingError(f"it describes a {type(self.stack[-1]).__name__}")
        self.stack[-1].__setstate__(state)

    dispatch[pickle.EMPTY_DICT[0]] = load_empty_dictionary
    dispatch[pickle.BYTEARRAY8[0]] = load_byte_array
    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module, name):
        if module == "_codecs" and name == "encode":
            return self._encode_latin1
        stands_for = {
            "_reconstruct": _PickledArray,
            "ndarray": _PickledArray,
            "dtype": _PickledType,
            "_frombuffer": _array_from_buffer,
        }
        if module.split(".")[0] == "numpy" and name in stands_for:
            return stands_for[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def _encode_latin1(self, text, _encoding):
        self._to_encode -= len(text)  # each text once, or a small file could fill the memory with copies
        if self._to_encode < 0:
            raise pickle.UnpicklingError("it repeats its content")
        return text.encode("latin1")


def _unpickle(content: bytes, source: str) -> dict:
    """A pickled dictionary with its keys as text. Raises UsageError if it is damaged or asks for anything else."""
    try:
        value = _CifarUnpickler(content).load()
        return {key.decode() if isinstance(key, bytes) else key: item for key, item in value.items()}
    # A damaged pickle can raise nearly anything; whatever it is, the file cannot be used.
    except Exception as error:
        raise UsageError(
            f"{source} is damaged or not of the published version ({one_line(error)}); download it again"
        ) from error


def _parse_pickle(content: bytes, published: _Published, source: str) -> Split:
    batch = _unpickle(content, source)
    array, labels = batch.get("data"), batch.get(published.label_key)
    # What comes from the file is not put into messages before its type is known: it can be larger than the memory.
    if not isinstance(array, _PickledArray) or not isinstance(labels, list):
        raise UsageError(
            f"{source} must hold an array 'data' and a list '{published.label_key}', received {sorted(batch)!r:.200}; download it "
            "again"
        )
    count = len(labels)
    if (
        array.shape != (count, _PICTURE_BYTES)
        or array.type not in ("u1", "|u1", b"u1", b"|u1")
        or not isinstance(array.content, bytes | bytearray)
        or len(array.content) != count * _PICTURE_BYTES
    ):
        raise UsageError(
            f"{source} must hold uint8 data of shape ({count}, {_PICTURE_BYTES}) for its {count} labels, received something else; "
            "download it again"
        )
    if not all(isinstance(label, int) for label in labels):
        raise UsageError(f"{source} must hold whole numbers as labels, received others; download it again")
    return _make_split(np.frombuffer(array.content, np.uint8), np.array(labels, np.int64), published, source)


def _parse_binary(content: bytes, published: _Published, source: str) -> Split:
    row = published.label_bytes + _PICTURE_BYTES
    if not content or len(content) % row:
        raise UsageError(
            f"{source} must be made of rows of {row} bytes, received {len(content):,} bytes; download it again"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, row)
    return _make_split(
        rows[:, published.label_bytes :], rows[:, published.label_offset].astype(np.int64), published, source
    )


def _make_split(planes: np.ndarray, labels: np.ndarray, published: _Published, source: str) -> Split:
    check_labels(labels, published.classes, source)
    images = np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return Split(images, labels.astype(np.int32))


def _class_names(content: bytes | None, version: int, published: _Published, place: Path) -> tuple[str, ...]:
    """Names of the classes, from the data set's own list of names."""
    if content is None and published is _CIFAR10:
        return CIFAR10_CLASSES
    if content is None:
        return tuple(f"class {index}" for index in range(published.classes))
    source = f"{place}/{published.names_files[version]}"
    names = _unpickle(content, source).get(published.names_key) if version == 0 else content.split()
    if (
        not isinstance(names, list)
        or len(names) != published.classes
        or not all(isinstance(name, str | bytes) for name in names)
    ):
        raise UsageError(f"{source} must hold {published.classes} class names, received others; download it again")
    return tuple(name.decode("ascii", "replace") if isinstance(name, bytes) else str(name) for name in names)


# Data sets that need no download


def _load_digits() -> ImageData:
    """The 1,797 handwritten digits of scikit-learn (8x8, 17 grey levels), brought to 32x32 RGB; 360 of them are the test part."""
    import cv2
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    grey = [
        cv2.resize(np.uint8(np.rint(image * 255 / 16)), (32, 32), interpolation=cv2.INTER_CUBIC)
        for image in digits.images
    ]
    images = np.repeat(np.stack(grey)[..., None], 3, axis=-1)
    train, test = train_test_split(np.arange(len(images)), test_size=360, stratify=digits.target, random_state=0)
    everything = Split(images, digits.target.astype(np.int32))
    return ImageData(everything.take(train), everything.take(test), tuple("0123456789"), "scikit-learn")


def _draw_synthetic(count: int, seed: int) -> ImageData:
    """Draws `count` pictures of ten shapes in random colours, places and sizes, with noise; a fifth is the test part."""
    import cv2

    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 10).astype(np.int32)
    images = np.empty((count, 32, 32, 3), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:] = rng.integers(0, 256, 3)
        color = [int(value) for value in (image[0, 0].astype(int) + rng.integers(70, 186, 3)) % 256]
        center, radius = rng.integers(12, 20, 2), int(rng.integers(7, 12))
        drawn = np.ascontiguousarray(image)
        _draw_shape(cv2, drawn, SYNTHETIC_CLASSES[label], color, center, radius)
        image[:] = np.clip(drawn + rng.normal(0, 12, image.shape), 0, 255)
    everything = Split(images, labels)
    test_count = max(10, count // 5)
    found = f"drawn with seed {seed}"
    order = rng.permutation(count)
    return ImageData(everything.take(order[test_count:]), everything.take(order[:test_count]), SYNTHETIC_CLASSES, found)


def _draw_shape(cv2, image, shape, color, center, radius):
    x, y = (int(value) for value in center)
    low, high = (x - radius, y - radius), (x + radius, y + radius)
    if shape == "disc":
        cv2.circle(image, (x, y), radius, color, -1)
    elif shape == "ring":
        cv2.circle(image, (x, y), radius, color, 3)
    elif shape == "square":
        cv2.rectangle(image, low, high, color, -1)
    elif shape == "cross":
        cv2.line(image, low, high, color, 3)
        cv2.line(image, (low[0], high[1]), (high[0], low[1]), color, 3)
    elif shape in ("bars", "columns", "checks"):
        period = radius - 3
        rows, columns = np.indices(image.shape[:2])
        rows, columns = (rows + y) // (period // 2) % 2, (columns + x) // (period // 2) % 2
        image[{"bars": rows, "columns": columns, "checks": rows ^ columns}[shape] == 1] = color
    else:
        corners = {"triangle": 3, "diamond": 4, "star": 10}[shape]
        angles = np.arange(corners) * 2 * np.pi / corners - np.pi / 2
        radii = np.where(np.arange(corners) % 2, 0.45 if shape == "star" else 1.0, 1.0) * radius
        points = np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], axis=1)
        cv2.fillPoly(image, [np.int32(np.rint(points))], color)
