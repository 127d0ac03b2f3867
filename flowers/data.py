"""What goes in: a folder of pictures, one folder per class, or CIFAR -> parts -> augmented batches, each a pure function of
(seed, step).

    load_pictures(config)      -> PictureData        training, validation and test pictures, classes in their order
    draw_transform(...)        -> Transform          rotation, shear, zoom and flip of one variant of one picture
    training_batches(...)      -> tf.data.Dataset    augmented batches

Classes are ordered by number where their folders are numbers (1, 2, ..., 10, not 1, 10, 2), then by name. `cat_to_name.json`
beside or in the folder, {"1": "pink primrose", ...}, gives the names to show.

At the start folders are listed and split. A part of up to 10,000 pictures and 1 GiB is then read, so that every broken picture
is known before training begins; pictures of a larger part are read when their turn comes. Either way a broken one is named, and
`on_bad_image` decides: refuse = the start, or the run at its last checkpoint, ends; skip = left out, and where a batch needs it,
the next picture of its class stands in.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import math
import os
import threading
from pathlib import Path

import numpy as np
import PIL.Image

from cifar10_input import piece_numbers, plan_indices
from flowers.settings import FlowerParameters
from hyper_parameters import from_preset
from resnet_study.errors import UsageError, as_text

_PART_NAMES = {
    "training": ("train", "training"),
    "validation": ("valid", "validation", "val"),
    "test": ("test",),
}
_LARGEST_IN_MEMORY = 1 << 30  # bytes of decoded pictures per part
_MOST_IN_MEMORY = 10_000  # pictures per part; to decode more would delay the start
_MOST_COMPARED = 50_000  # files that are read in search of leaks, unless asked for
_LEAKS_LISTED = 20
_generator_lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Pictures:
    """One part of a data set.

    Attributes:
        files: name of each picture.
        labels: int32 [n].
        shape: (height, width, RGB) that pictures are brought to.
        images: uint8 [n, height, width, RGB], of any size; None = each is read from its file whenever it is needed.
        skips: whether files that turn out to be broken are left out; otherwise they are an error.
        squeezes: whether pictures are squeezed into `shape` by their nearest pixels, as Keras' `flow_from_directory` does,
            and not cut to its aspect.
        broken: {index: reason} of the files found broken so far.
    """

    files: tuple[str, ...]
    labels: np.ndarray
    shape: tuple[int, int, int]
    images: np.ndarray | None = dataclasses.field(default=None, repr=False)
    skips: bool = False
    squeezes: bool = False
    broken: dict[int, str] = dataclasses.field(default_factory=dict, repr=False)

    def __len__(self):
        return len(self.files)

    def read(self, index: int) -> np.ndarray:
        """One picture, uint8 [height, width, RGB]; in the place of a broken one that is skipped, the next of its class.

        Raises:
            UsageError: it is broken, and not to be skipped; or all of its class are.
        """
        picture = self._attempt(index)
        if picture is not None:
            return picture
        members = np.flatnonzero(self.labels == self.labels[index])
        for other in np.roll(members, -int(np.searchsorted(members, index)) - 1):
            picture = self._attempt(int(other))
            if picture is not None:
                return picture
        raise UsageError(f"no picture of the class of {self.files[index]} can be read; mend some")

    def load(self, indices) -> tuple[np.ndarray, np.ndarray]:
        """(uint8 [n, height, width, RGB], labels int32 [n]) of several pictures, without the broken ones that are skipped."""
        indices = np.asarray(indices, int)
        pictures = [self._attempt(int(index)) for index in indices]
        good = [place for place, picture in enumerate(pictures) if picture is not None]
        images = np.array([pictures[place] for place in good], np.uint8).reshape(-1, *self.shape)
        return images, self.labels[indices[good]]

    def _attempt(self, index):
        if index in self.broken:
            return None
        try:
            if self.images is None:
                return read_picture(self.files[index], self.shape, self.squeezes)
        except UsageError as error:
            if not self.skips:
                raise
            self.broken[index] = str(error)
            print(f"skipped: {error}")
            return None
        picture = self.images[index]
        return picture if picture.shape == self.shape else _enlarge(picture, self.shape)


def _enlarge(picture, shape):
    import cv2

    return cv2.resize(picture, shape[1::-1], interpolation=cv2.INTER_CUBIC)


@dataclasses.dataclass(frozen=True)
class PictureData:
    """A data set of pictures.

    Attributes:
        training, validation, test: its parts; `test` is None if there are no test pictures.
        class_folders: names of the class folders, in the order of the labels.
        class_names: names to show, in the same order.
        found: where it was found.
        broken: files left out at the start because they could not be read, with the reasons.
        leaks: pairs of pictures with equal content in two parts, at most 20 of them.
        leak_count: number of such pairs; None = not looked for.
    """

    training: Pictures
    validation: Pictures
    test: Pictures | None
    class_folders: tuple[str, ...]
    class_names: tuple[str, ...]
    found: str
    broken: tuple[str, ...] = ()
    leaks: tuple[tuple[str, str], ...] = ()
    leak_count: int | None = None

    @property
    def skipped(self) -> list[str]:
        """The reasons for all files left out so far."""
        parts = [part for part in (self.training, self.validation, self.test) if part]
        return [*self.broken, *(reason for part in parts for reason in part.broken.values())]


def load_pictures(config: FlowerParameters) -> PictureData:
    """Lists the pictures of `config.data_dir`, splits them where they are not split yet, and reads them if they are few.

    Raises:
        UsageError: no such folder, no pictures, classes that do not fit together, or broken pictures that are not to be
            skipped; the message names them.
    """
    if config.dataset != "folder":
        return _load_published(config)
    folder = Path(config.data_dir).expanduser()
    if not config.data_dir or not folder.is_dir():
        raise UsageError(
            "--data_dir must be a folder with train/<class>/ and valid/<class>/, or with one folder per class, received "
            + (f"'{config.data_dir}', which does not exist or is no folder" if config.data_dir else "none; give one")
        )
    listed = _list_parts(folder)
    classes = sorted(set().union(*listed.values()), key=_class_order)
    if config.classes > len(classes):
        raise UsageError(f"--classes must be at most the {len(classes)} classes of {folder}, received {config.classes}")
    classes = classes[: config.classes or None]
    if config.faithful:
        classes = sorted(classes)
    if len(classes) < 2:
        raise UsageError(
            f"{folder} must hold the folders of two classes or more, with images in them, received {_describe_lack(folder, classes)}"
        )
    listed = {part: {name: files.get(name, []) for name in classes} for part, files in listed.items()}
    bare = [name for name in classes if not listed["training"][name]]
    if bare:
        raise UsageError(
            f"every class of {folder} needs training pictures, received none for {', '.join(bare[:5])}; add some"
        )
    if "validation" not in listed:
        listed |= _split(listed["training"], "test" not in listed and not _find_part(folder, "training"), config)
    shape = (config.image_size, config.image_size, 3)
    parts, skipped = {}, []
    for part, files in listed.items():
        flat = [(file, label) for label, name in enumerate(classes) for file in files[name]]
        if flat:
            parts[part], broken = _read_part(flat, shape, config)
            skipped += broken
    if skipped and config.on_bad_image == "refuse":
        raise UsageError(
            f"{len(skipped)} picture(s) of {folder} cannot be read: {'; '.join(skipped[:3])}{'; ...' if len(skipped) > 3 else ''}; "
            "mend or remove them, or use --on_bad_image=skip"
        )
    for part in ("training", "validation"):
        if not len(parts.get(part, ())):
            raise UsageError(f"{folder} must hold {part} pictures, received none that can be read; add some")
    known = set(parts["training"].labels.tolist())
    lost = [name for label, name in enumerate(classes) if label not in known]
    if lost:
        raise UsageError(
            f"every class of {folder} needs training pictures that can be read, received none for {', '.join(lost[:5])}; mend or "
            "add some, or remove the class"
        )
    names = _display_names(folder, classes)
    leaks = _find_leaks(parts, config.find_leaks)
    return PictureData(
        parts["training"], parts["validation"], parts.get("test"), tuple(classes), names, str(folder),
        tuple(skipped), *leaks,
    )  # fmt: skip


def _describe_lack(folder: Path, classes: list[str]) -> str:
    """What was found in the place of two classes, and what to do."""
    from resnet_study.data.image_files import PICTURE_SUFFIXES

    if classes:
        return f"the one class '{classes[0]}'; add another, or a larger --classes"
    place = _find_part(folder, "training") or folder
    entries = sorted(entry for entry in place.iterdir() if not entry.name.startswith("."))
    if any(entry.is_file() and entry.name.lower().endswith(PICTURE_SUFFIXES) for entry in entries):
        return f"images that lie in {place} itself; put those of each class into a folder of their own"
    if not entries:
        return f"nothing, for {place} is empty; give another --data_dir"
    if folders := [entry.name for entry in entries if entry.is_dir()]:
        return f"folders without images, such as {folders[0]}; give another --data_dir"
    return f"other files, such as {entries[0].name}; give another --data_dir"


def _load_published(config: FlowerParameters) -> PictureData:
    """A data set of `cifar10_input`, by the same reader and split."""
    import cifar10_input

    names = ("dataset", "data_dir", "validation_fraction", "split_seed")
    settings = from_preset("fast", **{name: getattr(config, name) for name in names})
    data = cifar10_input.load_data(settings)
    training, validation = cifar10_input.split_data(data, settings)
    if config.classes > len(data.class_names):
        raise UsageError(
            f"--classes must be at most the {len(data.class_names)} classes of {config.dataset}, received {config.classes}"
        )
    class_names = data.class_names[: config.classes or None]
    shape = (config.image_size, config.image_size, 3)

    def make(name, split):
        split = split.take(np.flatnonzero(split.labels < len(class_names)))
        files = tuple(f"{config.dataset} {name} picture {index}" for index in range(len(split)))
        images = np.repeat(split.images, 3, axis=-1) if split.images.shape[-1] == 1 else split.images
        return Pictures(files, split.labels, shape, images)

    parts = [make(*part) for part in (("training", training), ("validation", validation), ("test", data.test))]
    return PictureData(*parts, class_names, class_names, data.found)


def _find_part(folder: Path, part: str) -> Path | None:
    return next((folder / name for name in _PART_NAMES[part] if (folder / name).is_dir()), None)


def _list_parts(folder: Path) -> dict[str, dict[str, list[str]]]:
    """{part: {class: files}}; a folder without train/ is one training part."""
    if not _find_part(folder, "training"):
        return {"training": _list_classes(folder)}
    places = {part: _find_part(folder, part) for part in _PART_NAMES}
    return {part: _list_classes(place) for part, place in places.items() if place}


def _list_classes(folder: Path) -> dict[str, list[str]]:
    try:
        return _scan_classes(folder)
    except OSError as error:  # no right to read it, a loop of links
        raise UsageError(
            f"{error.filename or folder} could not be read ({error.strerror or error}); mend or remove it"
        ) from error


def _scan_classes(folder: Path) -> dict[str, list[str]]:
    from resnet_study.data.image_files import PICTURE_SUFFIXES

    classes = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.is_dir():
                continue
            with os.scandir(entry.path) as files:
                listed = [file for file in files if not file.name.startswith(".")]
            found = sorted(file.path for file in listed if file.name.lower().endswith(PICTURE_SUFFIXES))
            if found:
                classes[entry.name] = found
            elif any(file.is_dir() for file in listed):
                raise UsageError(
                    f"{entry.path} must hold the pictures of one class, received folders; give --data_dir=FOLDER with train/<class>/ "
                    "and valid/<class>/, or with one folder per class"
                )
    return classes


def _class_order(name: str):
    return (0, int(name), name) if name.isascii() and name.isdecimal() else (1, 0, name)


def _split(files: dict[str, list[str]], with_test: bool, config: FlowerParameters) -> dict:
    """Splits each class by `split_seed`; returns the three parts."""
    rng = np.random.default_rng(config.split_seed)
    parts = {part: {} for part in ("training", "validation", *(["test"] if with_test and config.test_fraction else []))}
    for name, members in files.items():
        counts = {"validation": max(1, round(config.validation_fraction * len(members)))}
        if "test" in parts:
            counts["test"] = max(1, round(config.test_fraction * len(members)))
        if sum(counts.values()) >= len(members):
            raise UsageError(
                f"class '{name}' has {len(members)} picture(s), of which {sum(counts.values())} would be held out; add some, or use "
                "a smaller --validation_fraction and --test_fraction"
            )
        order, start = rng.permutation(len(members)), 0
        for part in ("validation", "test", "training"):
            if part in parts:
                end = start + counts[part] if part in counts else len(members)
                parts[part][name] = [members[index] for index in sorted(order[start:end])]
                start = end
    return parts


def _read_part(flat: list[tuple[str, int]], shape, config) -> tuple[Pictures, list[str]]:
    """The pictures that can be read, and the reasons for the others; where there are many, all pictures, unread."""
    files, labels = zip(*flat, strict=True)
    options = {"skips": config.on_bad_image == "skip", "squeezes": config.faithful}
    if len(flat) > _MOST_IN_MEMORY or len(flat) * math.prod(shape) > _LARGEST_IN_MEMORY:
        return Pictures(files, np.array(labels, np.int32), shape, **options), []
    images = np.empty((len(flat), *shape), np.uint8)

    def attempt(index):
        try:
            images[index] = read_picture(files[index], shape, config.faithful)
            return None
        except UsageError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        reasons = list(pool.map(attempt, range(len(flat))))
    good = [index for index, reason in enumerate(reasons) if reason is None]
    images = images if len(good) == len(flat) else images[good]
    pictures = Pictures(
        tuple(files[index] for index in good), np.array(labels, np.int32)[good], shape, images, **options
    )
    return pictures, [reason for reason in reasons if reason]


def read_picture(file: str, shape, squeezes: bool) -> np.ndarray:
    """As `image_files.read_picture`, which refuses what is cut off; `squeezes` as in `Pictures`."""
    from resnet_study.data.image_files import read_picture

    picture = read_picture(Path(file), shape)
    if not squeezes:
        return picture
    with PIL.Image.open(file) as opened:
        return np.asarray(opened.convert("RGB").resize(shape[1::-1], PIL.Image.Resampling.NEAREST))


def _display_names(folder: Path, classes: list[str]) -> tuple[str, ...]:
    import json

    for place in (folder / "cat_to_name.json", folder.parent / "cat_to_name.json"):
        if place.is_file():
            try:
                names = json.loads(place.read_text(encoding="utf-8"))
                if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
                    raise ValueError("it is no dictionary of names")
            except (OSError, ValueError, RecursionError) as error:
                raise UsageError(
                    f'{place} must hold {{"class folder": "name", ...}}, received {error}; mend or remove it'
                ) from error
            return tuple(as_text(names.get(name, name)) for name in classes)
    return tuple(map(as_text, classes))


def _find_leaks(parts: dict[str, Pictures], wanted: str) -> tuple[tuple[tuple[str, str], ...], int | None]:
    """Some pairs of files with equal content in two parts, and the number of all; that is None if it is not wanted, or would
    mean to read too many files.

    Files are compared by size, those of equal size by their last bytes, and only what is still equal is read as a whole.
    """
    if wanted == "off":
        return (), None
    groups = [[(part, file) for part, pictures in parts.items() for file in pictures.files]]
    for key in (_size, _last_bytes, _digest):
        keyed = collections.defaultdict(list)
        for number, group in enumerate(groups):
            for part, file in group:
                with contextlib.suppress(OSError):  # whatever cannot be read is found when it is its turn
                    keyed[number, key(file)].append((part, file))
        groups = [group for group in keyed.values() if len({part for part, _ in group}) > 1]
        if wanted == "auto" and sum(map(len, groups)) > _MOST_COMPARED:
            return (), None
    leaks, count = [], 0
    for group in groups:
        # Many copies make far more pairs: these are counted without going through them.
        sizes = collections.Counter(part for part, _ in group).values()
        count += math.comb(len(group), 2) - sum(math.comb(size, 2) for size in sizes)
        pairs = ((a, b) for (part, a), (other, b) in itertools.combinations(group, 2) if part != other)
        leaks += itertools.islice(pairs, _LEAKS_LISTED)
    return tuple(sorted(leaks)[:_LEAKS_LISTED]), count


def _size(file):
    return os.stat(file).st_size  # noqa: PTH116 - a million objects would take their time


def _last_bytes(file):
    with open(file, "rb") as opened:  # noqa: PTH123
        opened.seek(max(0, _size(file) - 1024))
        return opened.read()


def _digest(file):
    return hashlib.sha256(Path(file).read_bytes()).digest()


@dataclasses.dataclass(frozen=True)
class Transform:
    """One random change of a picture: degrees, degrees, factors of the two axes, and whether it is mirrored left to right."""

    rotation: float
    shear: float
    zoom_x: float
    zoom_y: float
    flip: bool


def draw_transform(picture: int, variant: int, config: FlowerParameters) -> Transform:
    """Draws a variant of a picture, a pure function of (seed, picture, variant).

    Args:
        picture: index of the picture in its part.
        variant: 0-based number of the variant; without `variants` that is the epoch.
        config: uses seed, rotation, shear, zoom, horizontal_flip.
    """
    rng = np.random.default_rng((config.seed, 5, picture, variant))
    rotation, shear = rng.uniform(-1, 1, 2) * (config.rotation, config.shear)
    zoom_x, zoom_y = rng.uniform(1 - config.zoom, 1 + config.zoom, 2)
    return Transform(rotation, shear, zoom_x, zoom_y, bool(rng.random() < 0.5 and config.horizontal_flip))


def affine_matrix(transform: Transform, height: int, width: int) -> np.ndarray:
    """The map from (x, y, 1) of the new picture to (x, y) of the old one, float64 [2, 3], x to the right, y downwards, pixels.

    Rotation, shear and zoom are those of Keras' `ImageDataGenerator`, about the centre of the picture.
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


def apply_transform(picture: np.ndarray, transform: Transform) -> np.ndarray:
    """The changed picture, uint8 [height, width, RGB]; what comes in from outside repeats the nearest edge pixel."""
    import cv2

    height, width = picture.shape[:2]
    return cv2.warpAffine(
        picture,
        affine_matrix(transform, height, width),
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _apply_generator(picture: np.ndarray, index: int, variant: int, config: FlowerParameters) -> np.ndarray:
    """The same augmentation by Keras' `ImageDataGenerator`, with a seed of its own for each variant of each picture."""
    from tensorflow.keras.preprocessing.image import ImageDataGenerator

    generator = ImageDataGenerator(
        rotation_range=config.rotation,
        shear_range=config.shear,
        zoom_range=config.zoom,
        horizontal_flip=config.horizontal_flip,
        data_format="channels_last",
    )
    seed = int(np.random.default_rng((config.seed, 5, index, variant)).integers(2**32))
    with _generator_lock:  # it draws from numpy's global generator
        changed = generator.random_transform(picture.astype(np.float32), seed=seed)
    return np.uint8(np.rint(np.clip(changed, 0, 255)))


def make_variant(pictures: Pictures, index: int, variant: int, config: FlowerParameters) -> np.ndarray:
    """One picture, augmented as the settings say, uint8 [height, width, RGB]; a pure function of (seed, index, variant)."""
    index, variant = int(index), int(variant)
    picture = pictures.read(index)
    if not config.augment:
        return picture
    if config.pipeline == "generator":
        return _apply_generator(picture, index, variant, config)
    return apply_transform(picture, draw_transform(index, variant, config))


def plan_batch(step: int, count: int, config: FlowerParameters) -> tuple[np.ndarray, np.ndarray]:
    """(indices int64 [batch], variants int64 [batch]) of the batch of a step, a pure function of (seed, step).

    The variant is the epoch, so that pictures never repeat; with `variants` = N it is the epoch modulo N.
    """
    indices, epochs = plan_indices(step, count, config.train_batch_size, config.seed)
    if not config.augment:
        return indices, np.zeros_like(epochs)
    return indices, epochs % config.variants if config.variants else epochs


def training_batches(
    pictures: Pictures,
    config: FlowerParameters,
    train_steps: int,
    first_step=0,
    replicas=1,
    worker=0,
    workers=1,
    features=None,
):
    """The batches from `first_step` to `train_steps`.

    Args:
        pictures: training part.
        config: settings.
        train_steps: batches to train.
        first_step: 0-based step to begin with.
        replicas: devices that share a batch; each step then gives so many equal pieces of the batch, one after the other.
        worker, workers: give the pieces of one machine only, see `cifar10_input.piece_numbers`.
        features: None, or float32 [n, variants, ...] to be taken in the place of the pictures.

    Returns:
        tf.data.Dataset of (pictures uint8 [batch / replicas, height, width, RGB], or features; labels int32 [batch / replicas]).
    """
    import tensorflow as tf

    size = config.train_batch_size // replicas
    shape, kind = (pictures.shape, np.uint8) if features is None else (features.shape[2:], np.float32)

    def make(piece):
        step, part = divmod(int(piece), replicas)
        indices, variants = (
            values[part * size : (part + 1) * size] for values in plan_batch(step, len(pictures), config)
        )
        if features is not None:
            return features[indices, variants], pictures.labels[indices]
        made = [make_variant(pictures, *pair, config) for pair in zip(indices, variants, strict=True)]
        return np.stack(made), pictures.labels[indices]

    def make_piece(piece):
        images, labels = tf.numpy_function(make, [piece], [kind, tf.int32])
        return tf.ensure_shape(images, [size, *shape]), tf.ensure_shape(labels, [size])

    pieces = piece_numbers(first_step, train_steps, replicas, worker, workers)
    return pieces.map(make_piece, num_parallel_calls=2, deterministic=True).prefetch(2 * replicas)
