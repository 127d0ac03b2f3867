"""Images of one's own as arrays: a folder, a `.zip` or a table of labels, read at the start and held in memory like any other data set."""

import concurrent.futures
import contextlib
from pathlib import Path

import numpy as np
from tqdm import tqdm

from resnet_study.data.image_data import ImageData, Split
from resnet_study.data.image_files import read_image
from resnet_study.data.labelled_files import LabelledFiles, describe_lack, find_labelled
from resnet_study.data.splits import draw_fold, hold_out
from resnet_study.environment import count_cores, largest_memory
from resnet_study.errors import UsageError, say_once
from resnet_study.shared_settings import SharedSettings

_OF_ONE_LABEL = ("class_weight", "balanced_sampling", "teacher", "train_random_label", "vali_random_label")  # settings
_FEW = 1000  # images that are read without showing progress
_LARGEST_KEPT = 1 << 30  # bytes of training images
# What was read last: a run reads its images to train, to be tested and to be drawn, and to decode photographs takes long.
_kept: dict[tuple, tuple[float, ImageData]] = {}


def list_classes(config: SharedSettings) -> LabelledFiles:
    """Finds the images that the settings mean, and says what was taken for what.

    Args:
        config: uses data_dir, labels, label_separator, label_level, folds, fold; and where images have several labels the settings that
            are for one.

    Raises:
        UsageError: as `find_labelled`; or there are fewer than two classes, or one without training images; or all folds are meant, or a
            setting is for one label of each image.
    """
    data = find_labelled(config.data_dir, config.labels, config.label_level, config.label_separator)
    if len(data.classes) < 2:
        raise UsageError(
            f"{data.place} must hold the folders of two classes or more, with images in them, received "
            f"{describe_lack(data, config.data_dir, config.labels)}"
        )
    for line in data.found:
        say_once(line)
    if data.multi_label:
        check_several_labels(config, str(config.labels))
    trained = data.find_classes("training")
    if config.crosses:
        raise UsageError(
            f"--folds={config.folds} is a run for each fold, by --mode=train or flowers.train; give --fold=1 to {config.folds} for one of them"
        )
    used = data.classes[: getattr(config, "classes", 0) or None]
    if bare := [name for name in used if name not in trained]:
        raise UsageError(
            f"every class of {data.place} needs training images, received none for {', '.join(bare[:5])}; add some, "
            "take out what no model can learn, or use --mode=test or flowers.evaluate to test a model on them"
        )
    return data


def check_several_labels(config: SharedSettings, place: str) -> None:
    """Raises UsageError for a setting that is for one label of each image, where the images of `place` have several."""
    for name in _OF_ONE_LABEL:
        if getattr(config, name, False):
            raise UsageError(
                f"--{name} is for one label of each image, received {place} with several labels; leave --{name} out"
            )


def find_parts(found: LabelledFiles, config: SharedSettings) -> dict[str, list[tuple[str, str]]]:
    """The parts of a data set, as it has them, or of one fold: its test part, and a validation part of the other folds. A fold is drawn from
    the training and validation images; a test part of its own takes no part in a cross-validation.

    Args:
        found: of `list_classes`.
        config: uses folds, fold, split_seed, validation_fraction.

    Returns:
        As `LabelledFiles.parts`.

    Raises:
        UsageError: a class has too few images.
    """
    if not config.folds:
        return found.parts
    rank = {name: index for index, name in enumerate(found.classes)}
    members = found.in_order(found.parts["training"] + found.parts.get("validation", []), rank)
    if aside := len(found.parts.get("test", ())):
        say_once(f"the {aside:,} images of the test part are in no fold; test a model on them when all is chosen")
    labels = found.number_labels(members, rank)
    drawn = {"test": draw_fold(labels, config.folds, config.fold, config.split_seed, found.classes)}
    rest = np.setdiff1d(np.arange(len(members)), drawn["test"])
    fractions = {"validation_fraction": config.validation_fraction}
    held_out = rest[hold_out(labels[rest], fractions, config.split_seed, found.classes)[0]]
    drawn |= {"training": np.setdiff1d(rest, held_out)} | ({"validation": held_out} if len(held_out) else {})
    return {part: [members[index] for index in indices] for part, indices in drawn.items()}


def check_split_flags(config: SharedSettings, flags: dict) -> None:
    """Raises UsageError for flags of a split that a folder or a table makes itself, by its parts; they would change nothing."""
    parts = list_classes(config).parts
    has = {"test_fraction": "test" in parts, "validation_fraction": "validation" in parts}
    for name in (*has, "split_seed"):
        if flags.get(name) and has.get(name, all(has.values())):
            raise UsageError(
                f"--{name} splits images that have no such part, received --{name}={flags[name]} and images with the parts {', '.join(parts)}; "
                "leave it out"
            )


def load_folder(config) -> ImageData:
    """Reads images of one's own.

    Where they come without a test part, `test_fraction` of each class is held out; their own validation part stays one.

    Args:
        config: `HyperParameters`; uses data_dir, labels, label_level, image_size, channels, test_fraction, folds, fold, split_seed,
            validation_fraction, on_bad_image, value_range, resize, jpeg_size.

    Returns:
        ImageData, images uint8 [n, image_size, image_size, 3, or 1 where all are grey].

    Raises:
        UsageError: as `list_classes`; or an image cannot be read, or they do not fit into the memory.
    """
    found = list_classes(config)
    settings = ("image_size", "channels", "test_fraction", "split_seed", "on_bad_image")
    settings += ("folds", "fold", "validation_fraction") if config.folds else ()
    key = (found.place, found.fingerprint(), *config.reading().values(), *(getattr(config, name) for name in settings))
    newest = _newest(config.data_dir, found)
    if key in _kept and _kept[key][0] == newest:
        return _kept[key][1]
    _kept.clear()
    data = _read(config, found)
    if data.train.images.nbytes <= _LARGEST_KEPT:
        for part in (data.train, data.test, data.validation):
            for array in (part.images, part.labels) if part else ():
                array.flags.writeable = False  # a program that changed it would change the next one's images
        _kept[key] = newest, data
    return data


def _newest(data_dir: str, found: LabelledFiles) -> float:
    """When a file of the data set, or the archive that holds all, was changed last; what cannot be asked was never."""
    place = Path(data_dir).expanduser()
    files = [place] if place.is_file() else [file for members in found.parts.values() for file, _ in members]
    times = [0.0]
    for file in files:
        with contextlib.suppress(OSError):
            times.append(Path(file).stat().st_mtime)
    return max(times)


def _read(config, found: LabelledFiles) -> ImageData:
    rank = {name: index for index, name in enumerate(found.classes)}
    parts = {
        part: ([file for file, _ in members], found.number_labels(members, rank))
        for part, members in find_parts(found, config).items()
    }
    if "test" not in parts:
        files, labels = parts["training"]
        if not config.test_fraction:
            raise UsageError(f"{found.place} has no test images, received --test_fraction=0; give such as 0.1")
        (held_out,) = hold_out(labels, {"test_fraction": config.test_fraction}, config.split_seed, found.classes)
        rest = np.setdiff1d(np.arange(len(files)), held_out)
        for part, indices in (("training", rest), ("test", held_out)):
            parts[part] = [files[index] for index in indices], labels[indices]
    shape = (config.image_size, config.image_size, config.channels or 3)
    _check_memory(sum(len(files) for files, _ in parts.values()), shape)
    arrays, broken = {}, []
    for part, (files, labels) in parts.items():
        images, reasons = read_all(files, lambda file: read_image(Path(file), shape, **config.reading()), shape)
        broken += reasons.values()
        arrays[part] = (
            Split(np.delete(images, list(reasons), axis=0), np.delete(labels, list(reasons), axis=0))
            if reasons
            else Split(images, labels)
        )
    check_broken(broken, config, found.place)
    for reason in broken:
        print(f"skipped: {reason}")
    for part, split in arrays.items():
        if len(find_known(split.labels)) < (len(found.classes) if part == "training" else 1):
            of_each = " of each class" * (part == "training")
            raise UsageError(f"{found.place} must hold {part} images{of_each} that can be read; mend or add some")
    everything = (image for split in arrays.values() for image in split.images)
    if not config.channels and all((image[..., :1] == image).all() for image in everything):
        arrays = {
            part: Split(np.ascontiguousarray(split.images[..., :1]), split.labels) for part, split in arrays.items()
        }
        say_once("all images are grey, so they are read with one channel; --channels=3 makes three")
    return ImageData(
        arrays["training"], arrays["test"], found.class_names, found.place, arrays.get("validation"), found.classes,
        found.unlabelled, found.fingerprint(), found.sample(), tuple(found.parts),
    )  # fmt: skip


def find_known(labels: np.ndarray) -> set[int]:
    """The classes of some images, of labels int [n], or of 0 and 1, int [n, classes]."""
    return set((labels if labels.ndim == 1 else np.flatnonzero(labels.any(axis=0))).tolist())


def read_all(files, read, shape) -> tuple[np.ndarray, dict[int, str]]:
    """Reads image files side by side.

    Args:
        files: of the images.
        read: function of a file that gives uint8 of `shape`.
        shape: (height, width, channels).

    Returns:
        (images uint8 [n, *shape], {index: reason} of those that cannot be read; their place holds anything).
    """
    images, reasons = np.empty((len(files), *shape), np.uint8), {}

    def attempt(index):
        try:
            images[index] = read(files[index])
        except UsageError as error:
            reasons[index] = str(error)

    with concurrent.futures.ThreadPoolExecutor(count_cores()) as pool:
        shown = None if len(files) > _FEW else True
        for _ in tqdm(
            pool.map(attempt, range(len(files))), total=len(files), unit="image", desc="reading", disable=shown
        ):
            pass
    return images, dict(sorted(reasons.items()))


def check_broken(reasons, config: SharedSettings, place: str) -> None:
    """Raises UsageError, naming some, if images that cannot be read are not to be skipped."""
    if reasons and config.on_bad_image == "refuse":
        raise UsageError(
            f"{len(reasons)} image(s) of {place} cannot be read: {'; '.join(reasons[:3])}{'; ...' if len(reasons) > 3 else ''}; "
            "mend or remove them, or use --on_bad_image=skip"
        )


def _check_memory(count: int, shape) -> None:
    """Raises UsageError where the images, of which the split is a copy, do not fit into the memory."""
    needed = 2 * count * int(np.prod(shape))
    have = largest_memory()
    if have and needed > have:
        raise UsageError(
            f"{count:,} images of {shape[0]} x {shape[1]} need {needed / 2**30:.0f} GiB of memory, this machine (or container) has {have / 2**30:.0f}; "
            "give a smaller --image_size, or use python -m flowers.train, which reads images when their turn comes"
        )
