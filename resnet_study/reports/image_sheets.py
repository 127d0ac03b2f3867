"""Sheets of images: rows with labels, what augmentation makes of them, samples of each class."""

import numpy as np

import cifar10_input
from resnet_study.data.corruptions import worsen_batch
from resnet_study.reports.canvas import make_panels, wrap_title
from resnet_study.reports.fonts import wrap
from resnet_study.strings import shorten


def draw_grid(rows, row_labels, title):
    """Draws rows of images, a label before each row.

    Args:
        rows: lists of images uint8 [height, width, RGB or grey], of any length.
        row_labels: one each.
        title: of the figure.

    Returns:
        matplotlib figure.

    Example:
        from resnet_study.data.toy_data import load_digits
        from resnet_study.reports.image_sheets import draw_grid

        data = load_digits()
        draw_grid([data.train.images[:5], data.test.images[:5]], ["training", "test"], "digits").savefig("digits.png")
    """
    labels = [wrap(shorten(label, 48), 22) for label in row_labels]
    columns = max(map(len, rows), default=0) or 1
    before = 0.1 * max(
        (len(line) for label in labels for line in label.split("\n")), default=0
    )  # inches that labels take
    cell = min(1, (8 - before) / columns)
    pitch = max(1, 0.17 / cell * max((label.count("\n") + 1 for label in labels), default=1))  # of rows, in images
    figure, axes = make_panels(figsize=(8, cell * pitch * len(rows) + 0.5))
    figure.suptitle(wrap_title(title, 8))
    for number, (label, row) in enumerate(zip(labels, rows, strict=True)):
        axes.annotate(label, (0, pitch * (number + 0.5)), (-5, 0), textcoords="offset points", ha="right", va="center")
        for column, image in enumerate(row):
            show(axes, image, (column, pitch * (number + 0.5) - 0.5))
    axes.axis("off")
    # The labels lie within the axes, since the layout measures what lies beside them before it knows how large the images are.
    axes.set(xlim=(-before / cell, columns), ylim=(pitch * len(rows) or 1, 0), anchor="N")
    return figure


def show(axes, image, cell=None):
    """Shows a uint8 image, RGB or grey.

    Args:
        axes: of matplotlib.
        image: uint8 [height, width, RGB or grey].
        cell: (x, y), the corner of the unit square in whose middle the image lies, so that one pair of axes holds a hundred; an
            axes for each takes ten times as long to draw. `None`: the image has the axes to itself.
    """
    extent = None
    if cell:
        height, width = 0.46 * np.array(image.shape[:2]) / max(image.shape[:2])
        x, y = cell[0] + 0.5, cell[1] + 0.5
        extent = (x - width, x + width, y + height, y - height)
    # The map of colours and its limits concern grey images.
    axes.imshow(image, interpolation="nearest", cmap="gray", vmin=0, vmax=255, extent=extent)


def draw_variants(rows, kind: str, variant: str):
    """Draws training images, the first of each row, beside what the augmentation makes of them, columns `variant` 1, 2, ..."""
    figure = draw_grid(rows, [""] * len(rows), f"augmentation: {kind}")
    figure.suptitle(wrap(f"augmentation: {kind}", 100), fontsize=9)
    columns = ["original", *(f"{variant} {number}" for number in range(1, len(rows[0])))]
    for column, title in enumerate(columns):
        figure.axes[0].text(column + 0.5, -0.02, title, fontsize=8, ha="center", va="bottom")
    return figure


def name_not_shown(config) -> str:
    """What the training does to images beside what the sheet of augmentation shows, for its title; settings of either program."""
    others = [
        f"{name} {value:g}" for name in ("rand_augment", "mixup", "cutmix") if (value := getattr(config, name, 0))
    ]
    return f"; not shown: {', '.join(others)}" if others else ""


def draw_augmentation(training, config):
    """Some training images, each beside variants as the augmentation of the run makes them: figure 5 of Liang 2020."""
    chosen = np.arange(min(5, len(training)))
    colour = training.images[:5000].mean(axis=(0, 1, 2))
    variants = []
    for epoch in range(9):
        # The augmentation of the run itself, on raw pixels: the draws of the batches with which the epochs begin.
        step = epoch * len(training) // config.train_batch_size
        plan = cifar10_input.plan_batch(step, training.labels, config)
        draws = [
            np.resize(values, (len(chosen), *values.shape[1:]))
            for values in (plan.offsets, plan.flips, plan.centers, plan.angles)
        ]
        if config.flip == "alternate":  # which follows from the image and the epoch, and not from a draw
            draws[1] = cifar10_input.alternate_flips(config.seed, len(training), chosen, epoch)
        images = training.images[chosen]
        if config.augment:
            images = worsen_batch(images, config.corrupt, (config.seed, 8, step), mix=config.corrupt_mix)
            # Training augments normalised images, in which zero is the mean colour: so the cut squares and zero padding show it.
            mean = images.mean(axis=(1, 2, 3), keepdims=True) if config.normalization == "image_standard" else colour
            images = cifar10_input.augment(np.float32(images - mean), *draws, config).numpy() + mean
        variants.append(np.uint8(np.clip(np.rint(images), 0, 255)))
    rows = [[training.images[i], *(images[row] for images in variants)] for row, i in enumerate(chosen)]
    kind = (
        (f"{config.corrupt:.0%} made worse ({config.corrupt_mix}), " if config.corrupt else "")
        + (f"rotate by up to {config.rotation:g} degrees, " if config.rotation else "")
        + f"pad {config.padding_size} ({config.padding_mode}), crop, flip {config.flip}"
        + (f", {config.cutout} x {config.cutout} cut out" if config.cutout else "")
        if config.augment
        else "switched off"
    )
    return draw_variants(rows, kind + name_not_shown(config), "epoch")


def draw_samples(training, names, dataset):
    """Draws the first ten training images of each class, at most 20 classes: figures 3 and 5 of Lu & Song.

    Args:
        training: `cifar10_input.Split`, or `flowers.image_part.ImagePart`.
        names: of the classes.
        dataset: for the title.
    """
    labels = training.labels
    members = [labels[:, k] if labels.ndim == 2 else labels == k for k in range(min(20, len(names)))]
    rows = [training.load(np.flatnonzero(member)[:10])[0] for member in members]
    shown = "" if len(rows) == len(names) else f", {len(rows)} of {len(names)} classes"
    return draw_grid(rows, names[: len(rows)], f"training images of {dataset}{shown}")
