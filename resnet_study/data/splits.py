"""One rule for every data set that is split here: each class by its share, drawn by a seed."""

import itertools

import numpy as np

from resnet_study.errors import UsageError

# How the sizes of the parts are rounded. Runs of flowers that began before there was one rule rounded each class by itself.
ALL_CLASSES, EACH_CLASS = "all_classes", "each_class"


def _by_rarest(labels, least: int) -> np.ndarray:
    """One class for each image to split by, int [n]: of several labels, 0 or 1, int [n, classes], the rarest, so that rare classes are shared
    out too. Classes that would have fewer than `least` images are taken together with the most frequent one.
    """
    labels = np.asarray(labels)
    if labels.ndim == 1:
        return labels
    counts = labels.sum(axis=0)
    rarest = np.where(labels.any(axis=1), np.where(labels, counts, len(labels) + 1).argmin(axis=1), labels.shape[1])
    sizes = np.bincount(rarest)
    return np.where(sizes[rarest] < least, sizes.argmax(), rarest)


def hold_out(
    labels, fractions: dict[str, float], seed: int, class_names, rounding=ALL_CLASSES, keeps_last: bool = True
) -> list[np.ndarray]:
    """Draws parts to hold out, such as for validation, with the same share of each class.

    Args:
        labels: int [n], 0-based; or of images with several 0 and 1, int [n, classes], which are split by the rarest of each.
        fractions: setting -> share of each class, in 0..1; at least one image of each class unless it is 0.
        seed: of the draw. A class of which equally many are held out gives the same images, whatever the rounding.
        class_names: for messages.
        rounding: "all_classes" = the total of a part is rounded, and classes with the largest remainders are rounded up;
            "each_class" = each class to the nearest number, a half to the even one, and at least to 1.
        keeps_last: whether, of several labels, an image that is the last of a class is not held out.

    Returns:
        For each fraction the rising indices, int64; no index is in two parts.

    Raises:
        UsageError: nothing of a class would be left.

    Example:
        from resnet_study.data.splits import hold_out

        labels = [0] * 15 + [1] * 15
        validation, test = hold_out(labels, {"validation_fraction": 0.1, "test_fraction": 0.2}, 0, ["cat", "dog"])
        print(len(validation), len(test))  # 3 6
    """
    given, labels = np.asarray(labels), _by_rarest(labels, len(fractions) + 1)
    rng = np.random.default_rng(seed)
    present, sizes = np.unique(labels, return_counts=True)
    if rounding == EACH_CLASS:
        counts = [[max(1, round(fraction * int(size))) for size in sizes] for fraction in fractions.values()]
    else:
        counts = [_apportion(sizes, fraction) for fraction in fractions.values()]
    parts = [[] for _ in fractions]
    for label, *ends in zip(present, *np.cumsum(counts, axis=0), strict=True):
        members = np.flatnonzero(labels == label)
        if ends[-1] >= len(members):
            # At least one of each class is held out for each part.
            smaller = f", or a smaller {' and '.join(f'--{name}' for name in fractions)}" * (
                len(members) > len(fractions)
            )
            column = (
                " (each image has a class of its own; in a table of --labels these may be in another column)"
                if len(sizes) > 1 and (sizes == 1).all()
                else ""
            )
            raise UsageError(
                f"class '{[*class_names, 'none'][label]}' has {len(members)} image(s), of which {ends[-1]} would be held out{column}; give more images{smaller}, "
                "or leave the class out"
            )
        drawn = np.split(rng.permutation(members), ends)
        for part, held_out in zip(parts, drawn, strict=False):  # the last piece is what is left
            part.append(held_out)
    parts = [np.sort(np.concatenate(part)) for part in parts]
    return _keep_last(parts, given.astype(bool), labels) if given.ndim == 2 and keeps_last else parts


def _keep_last(parts, labels, groups) -> list[np.ndarray]:
    """Parts in which another image stands for the first one of each class whose images are all held out.

    Classes that are drawn together with a frequent one may be of one image. The other image is of the same group, and leaves none of its
    classes without a training image; where there is none, the part is smaller by one.

    Args:
        parts: indices.
        labels: bool [n, classes].
        groups: what the images were drawn by, int [n].
    """
    parts, stays = [part.copy() for part in parts], np.ones(len(labels), bool)
    stays[np.concatenate(parts)] = False
    for label in np.flatnonzero(labels.any(axis=0)):
        if labels[stays, label].any():
            continue
        last = np.flatnonzero(labels[:, label])[0]
        (number,) = (number for number, part in enumerate(parts) if last in part)
        spare = labels[stays].sum(axis=0) > 1
        others = np.flatnonzero(stays & (groups == groups[last]) & ~(labels & ~spare).any(axis=1))[:1]
        stays[last], stays[others] = True, False
        parts[number] = np.sort(np.append(parts[number][parts[number] != last], others))
    return parts


def draw_fold(labels, folds: int, fold: int, seed: int, class_names) -> np.ndarray:
    """The images of one of several parts of equal size, each with the same share of each class, as scikit-learn's StratifiedKFold draws them.

    Args:
        labels: as of `hold_out`.
        folds: number of parts, at least 2.
        fold: which, 1-based.
        seed: of the draw.
        class_names: for messages.

    Returns:
        Rising indices, int64; each index is in one part.

    Raises:
        UsageError: a class has fewer images than there are parts.
    """
    from sklearn.model_selection import StratifiedKFold

    labels = np.asarray(labels)
    sizes = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=len(class_names))
    if sizes.min() < folds:
        raise UsageError(
            f"--folds={folds} needs {folds} images of each class or more, received {sizes.min()} of '{class_names[sizes.argmin()]}'; "
            "give more images, or fewer --folds"
        )
    labels = _by_rarest(labels, folds)
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed).split(labels, labels)
    return next(itertools.islice(parts, fold - 1, None))[1]


def _apportion(sizes: np.ndarray, fraction: float) -> list[int]:
    """`fraction` of each size, rounded so that the sum is right too: largest remainders are rounded up. At least 1, unless it is 0."""
    shares = sizes * fraction
    counts = np.floor(shares).astype(int)
    up = np.argsort(counts - shares, kind="stable")[: max(0, round(shares.sum()) - counts.sum())]
    counts[up] += 1
    return np.maximum(fraction > 0, counts).tolist()
