"""What pixels of any kind of number mean as 0..255: range, bands and transparency, by one rule for all images.

    8 bits              as they are
    16 bits             0..65535; 0..4095 where no value is above that (12 bits, as X-ray devices have them), 0..255 likewise
    other numbers       from the least to the greatest of the image; NaN and infinity become black, an image of one value grey (128)
    a range is given    all but 8 bits: from its lower to its upper end; what is outside becomes black or white
    bands               1 = grey, 2 = grey and alpha, 3 = RGB, 4 = RGB and alpha, or RGB and a band that is left out, as the file says
    alpha               what is transparent shows white; where all of an image is transparent, alpha is left out

What a rule changed is told once.
"""

import numpy as np

from resnet_study.errors import UsageError, say_once

BACKGROUND = 255  # white
_STRIP = 1 << 20  # numbers that are computed at a time
_DEPTHS = {255: "8", 4095: "12"}  # largest value: bits


def to_colors(image: np.ndarray, has_alpha: bool, name: str, value_range: tuple[float, float] | None) -> np.ndarray:
    """Brings an image to 0..255 without transparency.

    Args:
        image: [height, width] or [height, width, bands], any numbers.
        has_alpha: whether the last of 2 or 4 bands is alpha.
        name: of the file, for messages.
        value_range: what becomes black and white, for all but uint8; None = see the module.

    Returns:
        uint8 [height, width, 1 or 3].

    Raises:
        UsageError: no value is a number.
    """
    image = image[..., None] if image.ndim == 2 else image
    bands = 1 if image.shape[-1] <= 2 else 3
    colors, alpha = image[..., :bands], image[..., bands : bands + 1]
    colors = _to_bytes(colors, name, value_range)
    if not alpha.shape[-1]:
        return colors
    if not has_alpha:
        _note("bands", f"{name} has more bands than colours: the first {bands} are read")
        return colors
    opaque = np.iinfo(alpha.dtype).max if alpha.dtype.kind == "u" else 1.0
    if not alpha.any():
        _note("transparent", f"{name} is transparent everywhere: its colours are read as if it were not")
        return colors
    if (alpha < opaque).any():
        _note("alpha", f"{name} has transparent parts: these are read as white")
    shown = np.empty_like(colors)
    for rows in _strips(colors):
        opacity = alpha[rows] / opaque
        shown[rows] = np.rint(colors[rows] * opacity + BACKGROUND * (1 - opacity))
    return shown


def _strips(image):
    """Slices of rows. In float64, a whole photograph would take gigabytes, and a server reads several at a time."""
    rows = max(1, _STRIP // max(1, image[0].size))
    return [slice(start, start + rows) for start in range(0, len(image), rows)]


def _note(kind, text):
    say_once(f"note: {text}", kind)


def _to_bytes(colors, name, value_range):
    if colors.dtype == np.uint8:
        return colors
    if value_range is None and colors.dtype == np.uint16:
        top = next((top for top in _DEPTHS if colors.max() <= top), None)
        if top is None:
            return np.uint8(colors >> 8)
        told = f"{name} has 16 bits and no value above {top}: such images are read as {_DEPTHS[top]} bits, 0..{top}"
        _note(f"range {top}", f"{told}; --value_range=LOW,HIGH sets another range for all")
        value_range = (0, top)
    finite = np.isfinite(colors)
    if not finite.any():
        raise UsageError(f"{name} must hold numbers, received NaN or infinity in every pixel; leave it out")
    if not finite.all():
        _note("nan", f"{name} has values that are no numbers: these are read as black")
    low, high = map(float, value_range or (colors[finite].min(), colors[finite].max()))
    if low == high:
        _note(
            "flat",
            f"{name} has the one value {low:g}: such images are read as grey, 128; --value_range=LOW,HIGH sets a range",
        )
        return np.full(colors.shape, 128, np.uint8)
    if value_range is None:
        _note("scaled", f"{name} has neither 8 nor 16 bits: such images are read from their least value (black) to their greatest "
                  f"(white), here {low:g}..{high:g}; --value_range=LOW,HIGH sets one range for all")  # fmt: skip
    scaled = np.empty(colors.shape, np.uint8)
    for rows in _strips(colors):
        values = (np.where(finite[rows], colors[rows].astype(np.float64), low) - low) * (255 / (high - low))
        scaled[rows] = np.rint(np.clip(values, 0, 255))
    return scaled
