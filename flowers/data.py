"""What goes in: a folder of images, one folder per class, or a data set such as CIFAR -> training, validation and test part.

load_images(config)           -> FlowerData            this file; the parts, with their classes in order

image_part.py                 the images of one part, each read when it is needed; broken ones
augmentation.py               rotation, shear, zoom and flip of one image
batches.py                    augmented batches as tf.data
leaks.py                      images that are in two parts
"""

import dataclasses

import numpy as np

import cifar10_input
from flowers.image_part import ImagePart, make_part
from flowers.leaks import find_leaks
from flowers.oxford102 import fetch_flowers
from flowers.settings import FlowerParameters
from hyper_parameters import apply_preset
from resnet_study.data.folder_data import check_broken, find_known, find_parts, list_classes
from resnet_study.data.splits import ALL_CLASSES, EACH_CLASS, hold_out
from resnet_study.errors import UsageError, say_once
from resnet_study.files import is_kind, read_json
from resnet_study.run_folder import RunFolder


@dataclasses.dataclass(frozen=True)
class FlowerData:
    """A data set in its parts.

    Attributes:
        training, validation, test: its parts; `test` is None if there are no test images.
        class_folders: names of the class folders, in the order of the labels.
        class_names: names to show, in the same order.
        found: where it was found.
        broken: reasons for the files left out at the start because they could not be read.
        leaks: pairs of images with equal content in two parts, at most 20 of them.
        leak_count: number of such pairs; None = not looked for.
        unlabelled, fingerprint, sample: see `resnet_study.data.labelled_files.LabelledFiles`.
        own_parts: the parts that the images come in; the others are drawn.
        split_rounding: how the parts were rounded, see `resnet_study.data.splits.hold_out`; `data.json` of a run keeps it.
    """

    training: ImagePart
    validation: ImagePart
    test: ImagePart | None
    class_folders: tuple[str, ...]
    class_names: tuple[str, ...]
    found: str
    broken: tuple[str, ...] = ()
    leaks: tuple[tuple[str, str], ...] = ()
    leak_count: int | None = None
    split_rounding: str = ALL_CLASSES
    unlabelled: tuple[str, ...] = ()
    fingerprint: str = ""
    sample: dict[str, int] = dataclasses.field(default_factory=dict, repr=False)
    own_parts: tuple[str, ...] = ()

    @property
    def multi_label(self) -> bool:
        """Whether an image can have several labels."""
        return self.training.labels.ndim == 2

    @property
    def skipped(self) -> list[str]:
        """The reasons for all files left out so far."""
        parts = [part for part in (self.training, self.validation, self.test) if part]
        return [*self.broken, *(reason for part in parts for reason in part.broken.values())]


def load_images(config: FlowerParameters, run: RunFolder | None = None) -> FlowerData:
    """Lists the images of `config.data_dir`, see `resnet_study.data.labelled_files`, splits them where they are not split yet, and reads them if they are few.

    Args:
        config: settings.
        run: whose parts are meant, if it has begun: they are rounded as they were then. None = those of a new run.

    Returns:
        The data set.

    Raises:
        UsageError: no such folder, no images, classes that do not fit together, or broken images that are not to be
            skipped; the message names them.

    Example:
        from flowers.data import load_images
        from flowers.settings import FlowerParameters

        data = load_images(FlowerParameters(data_dir="flowers102", image_size=64))
        images, labels = data.validation.load(range(10))
    """
    if config.dataset == "oxford102":
        config = dataclasses.replace(config, dataset="folder", data_dir=config.data_dir or str(fetch_flowers()))
    if config.dataset != "folder":
        return _load_published(config)
    rounding = ALL_CLASSES if run is None else _stored_rounding(run)
    found = list_classes(config)
    classes = list(found.classes)
    if config.classes > len(classes):
        raise UsageError(
            f"--classes must be at most the {len(classes)} classes of {found.place}, received {config.classes}"
        )
    classes = classes[: config.classes or None]
    if config.faithful:
        classes = sorted(classes)
    parts, broken = {}, []
    draws_test = "test" not in found.parts and (not found.has_parts or run is None or _holds_test(run))
    for part, (files, labels) in _split(found, classes, config, rounding, draws_test).items():
        if files:
            parts[part], reasons = make_part(files, labels, config)
            broken += reasons
    check_broken(broken, config, found.place)
    for text in broken:
        say_once(f"skipped: {text}")
    for part in ("training", "validation"):
        if not len(parts.get(part, ())):
            raise UsageError(f"{found.place} must hold {part} images, received none that can be read; add some")
    known = find_known(parts["training"].labels)
    lost = [name for label, name in enumerate(classes) if label not in known]
    if lost:
        raise UsageError(
            f"every class of {found.place} needs training images that can be read, received none for {', '.join(lost[:5])}; mend or "
            "add some, or remove the class"
        )
    shown = dict(zip(found.classes, found.class_names, strict=True))
    leaks = find_leaks(parts, config.find_leaks)
    return FlowerData(
        parts["training"], parts["validation"], parts.get("test"), tuple(classes), tuple(shown[name] for name in classes), found.place,
        tuple(broken), *leaks, rounding, found.unlabelled, found.fingerprint(), found.sample(),
        tuple(found.parts),
    )  # fmt: skip


def _split(found, classes, config, rounding, draws_test) -> dict[str, tuple[list[str], np.ndarray]]:
    """Files and labels of each part: those that the images have, or that are drawn where there is none for validation."""
    rank, parts = {name: label for label, name in enumerate(classes)}, {}
    for part, members in find_parts(found, config).items():
        members = found.in_order(members, rank)
        parts[part] = [file for file, _ in members], found.number_labels(members, rank)
    if "validation" in parts:
        return parts
    fractions = {"validation_fraction": config.validation_fraction}
    if config.test_fraction and draws_test:
        fractions["test_fraction"] = config.test_fraction
    files, labels = parts["training"]
    held_out = hold_out(labels, fractions, config.split_seed, classes, rounding)
    rest = np.setdiff1d(np.arange(len(files)), np.concatenate(held_out))
    for part, indices in zip(("training", "validation", "test"), (rest, *held_out), strict=False):
        parts[part] = [files[index] for index in indices], labels[indices]
    return parts


def _stored_rounding(run: RunFolder) -> str:
    """How the parts of a run were rounded: `data.json` says it since there is one rule for all data sets."""
    if not run.data.is_file():
        return ALL_CLASSES
    rounding = read_json(run.data, {}).get("split_rounding", EACH_CLASS)
    if rounding not in (ALL_CLASSES, EACH_CLASS):
        raise UsageError(
            f"{run.data} must have a split_rounding of {ALL_CLASSES} or {EACH_CLASS}, received another; restore it or start a new run"
        )
    return rounding


def _holds_test(run: RunFolder) -> bool:
    """Whether a run has test images, if it has begun: earlier versions held none out of a folder train/ without another part beside it."""
    kept = read_json(run.data, {}).get("images") if run.data.is_file() else None
    return not is_kind(kept, {"test": int}) or kept["test"] > 0


def _load_published(config: FlowerParameters) -> FlowerData:
    """A data set of `cifar10_input`, by the same reader and split."""
    names = ("dataset", "data_dir", "validation_fraction", "split_seed")
    settings = apply_preset("fast", {name: getattr(config, name) for name in names})
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
        files = tuple(f"{config.dataset} {name} image {index}" for index in range(len(split)))
        images = np.repeat(split.images, 3, axis=-1) if split.images.shape[-1] == 1 else split.images
        return ImagePart(files, split.labels, shape, images)

    parts = [make(*part) for part in (("training", training), ("validation", validation), ("test", data.test))]
    return FlowerData(*parts, class_names, class_names, data.found)
