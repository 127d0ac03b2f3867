"""Data sets that need no download: the 1,797 real digits of scikit-learn, and drawn images."""

import numpy as np

from resnet_study.data.image_data import ImageData, Split

SYNTHETIC_CLASSES = (
    "disc", "square", "triangle", "ring", "cross", "bars", "columns", "checks", "diamond", "star",
)  # fmt: skip


def load_digits() -> ImageData:
    """Reads the 1,797 handwritten digits of scikit-learn (8 x 8, 17 grey levels).

    Returns:
        ImageData, images uint8 [n, 32, 32, RGB], enlarged by cubic interpolation; 360 of them are the test part.

    Example:
        from resnet_study.data.toy_data import load_digits

        data = load_digits()
        print(data.test.images.shape)  # (360, 32, 32, 3)
    """
    import cv2
    import sklearn.datasets
    from sklearn.model_selection import train_test_split

    digits = sklearn.datasets.load_digits()
    grey = [
        cv2.resize(np.uint8(np.rint(image * 255 / 16)), (32, 32), interpolation=cv2.INTER_CUBIC)
        for image in digits.images
    ]
    images = np.repeat(np.stack(grey)[..., None], 3, axis=-1)
    train, test = train_test_split(np.arange(len(images)), test_size=360, stratify=digits.target, random_state=0)
    everything = Split(images, digits.target.astype(np.int32))
    return ImageData(everything.take(train), everything.take(test), tuple("0123456789"), "scikit-learn")


def draw_synthetic(count: int, seed: int) -> ImageData:
    """Draws images of ten shapes in random colours, places and sizes, with noise.

    Args:
        count: of images.
        seed: of the draws.

    Returns:
        ImageData, images uint8 [n, 32, 32, RGB]; a fifth, but at least 10, is the test part.
    """
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
