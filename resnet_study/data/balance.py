"""Classes with few images and many: what is said of them, and the weights or the sampling that make up for it."""

import functools
import json
import math
from pathlib import Path

import numpy as np

from resnet_study.data import streams
from resnet_study.data.image_data import read_file
from resnet_study.errors import UsageError
from resnet_study.strings import composed, shorten

_FEW = 20  # training images of a class
_UNEVEN = 10  # times the images of the smallest class
_LARGEST_FILE = 16 << 20  # bytes


def describe_balance(labels: np.ndarray, names, weighted: bool) -> list[str]:
    """Lines that warn of classes with few training images, and of classes that have many times the images of others.

    Args:
        labels: int [n], of the training images; or 0 and 1, int [n, classes].
        names: of all classes.
        weighted: whether something makes up for it already.

    Example:
        import numpy as np
        from resnet_study.data.balance import describe_balance

        print(len(describe_balance(np.repeat([0, 1], [500, 30]), ["cat", "dog"], False)))  # 1
    """
    counts = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=len(names))
    lines, few = [], np.flatnonzero(counts < _FEW)
    if len(few):
        shown = ", ".join(
            f"{names[label]} ({counts[label]})" for label in few[np.argsort(counts[few], kind="stable")][:5]
        )
        lines.append(f"note: {len(few):,} class(es) have fewer than {_FEW} training images: {shown}{', ...' if len(few) > 5 else ''}; "
                     "what is learnt of them is little and measured badly")  # fmt: skip
    least, most = counts.argmin(), counts.argmax()
    if counts[most] >= _UNEVEN * counts[least] and not weighted and labels.ndim == 1:
        lines.append(
            f"note: {names[most]} has {counts[most]:,} training images, {names[least]} has {counts[least]:,}; --class_weight=balanced "
            "or --balanced_sampling lets all classes count alike"
        )
    return lines


def class_weights(setting: str, labels: np.ndarray, names, folders, kept=None) -> np.ndarray | None:
    """The factor of the loss of each class.

    Args:
        setting: "" = none; "balanced" = in inverse proportion to its training images, 1 in the mean over these where no class is without; or a JSON file
            {class: factor} with every class by its name or its folder's.
        labels: int [n], of the training images.
        names, folders: of all classes; the latter may be empty.
        kept: the factors that a run that goes on read from its file when it began.

    Returns:
        float32 [classes], or None.

    Raises:
        UsageError: the file cannot be read, or has no positive number for each class.
    """
    if not setting:
        return None
    if setting == "balanced":
        counts = np.maximum(1, np.bincount(labels, minlength=len(names)))
        return np.float32(len(labels) / (len(names) * counts))
    if kept:
        return np.float32(kept)
    place = Path(setting).expanduser()
    if not place.is_file():
        raise UsageError(
            f"--class_weight must be balanced or a JSON file, received '{setting}', which does not exist; check the name"
        )
    try:
        told = json.loads(read_file(place, _LARGEST_FILE))
        if not isinstance(told, dict):
            raise ValueError("it is no dictionary")
        told = {composed(name): factor for name, factor in told.items()}
        pairs = zip(map(composed, names), map(composed, folders or names), strict=True)
        values = [told.get(name, told.get(folder)) for name, folder in pairs]
        missing = [name for name, value in zip(names, values, strict=True) if value is None]
        if missing:
            raise ValueError(f"it has none for {missing[0]}")
        weights = np.array(values, np.float32)
        if not (np.isfinite(weights).all() and (weights > 0).all()):
            raise ValueError("some are not positive numbers")
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(
            f'{place} must hold {{"class": factor, ...}} for every class, received {shorten(str(error))}; mend it'
        ) from error
    return weights


@functools.lru_cache(maxsize=4)
def balanced_order(seed: int, epoch: int, labels: bytes) -> tuple[np.ndarray, np.ndarray]:
    """An epoch in which every class comes equally often: images of rare classes several times, of large ones some, others in each epoch.

    Args:
        seed: of the run.
        epoch: 0-based.
        labels: int32 [n] of the training images, as bytes, so that the answer can be kept.

    Returns:
        (indices int64 [n]; a number of each draw, by which those of one image differ, over all epochs, int64 [n]).

    Example:
        import numpy as np
        from resnet_study.data.balance import balanced_order

        labels = np.int32([0] * 90 + [1] * 10)
        indices, _ = balanced_order(0, 0, labels.tobytes())
        print(np.bincount(labels[indices]))  # [50 50]
    """
    numbers = np.frombuffer(labels, np.int32)
    rng = np.random.default_rng((seed, streams.BALANCED_EPOCH, epoch))
    members = [np.flatnonzero(numbers == label) for label in np.unique(numbers)]
    share = math.ceil(len(numbers) / len(members))
    draws = [
        np.concatenate([rng.permutation(images) for _ in range(math.ceil(share / len(images)))])[:share]
        for images in members
    ]
    # Each image counts its own draws, of which an epoch has at most so many; a number that most classes never have would leave them some variants only.
    rounds = [epoch * math.ceil(share / len(images)) + np.arange(share) // len(images) for images in members]
    order = rng.permutation(share * len(members))[: len(numbers)]
    return np.concatenate(draws)[order], np.concatenate(rounds)[order]
