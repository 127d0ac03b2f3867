"""Images made worse: to measure how much of it a network bears, by `corrupt`; and in training, so that it bears more, by `worsen`.

`worsen` makes none of the corruptions that are measured, but such as have similar causes. The five severities are those that Hendrycks & Dietterich 2019 (arXiv:1903.12261) chose for CIFAR-10-C; severity 0 is the
image itself. We compute them with OpenCV on the whole pixels that a network is given, so single pixels differ from the published
files of CIFAR-10-C: other random numbers, and blur and brightness with the edges and the rounding of OpenCV.
"""

import cv2
import numpy as np

from resnet_study.errors import UsageError

# corruption -> (what the number means, its values at severities 1 .. 5)
CORRUPTIONS = {
    "noise": ("Gaussian noise, standard deviation in shares of the pixel range", (0.04, 0.06, 0.08, 0.09, 0.10)),
    "blur": ("Gaussian blur, standard deviation in pixels", (0.4, 0.6, 0.7, 0.8, 1.0)),
    "brightness": ("brightness added, in shares of the pixel range", (0.05, 0.10, 0.15, 0.20, 0.30)),
    "jpeg": ("JPEG quality", (80, 65, 58, 50, 40)),
}
# How often `worsen` changes light, resolution, adds noise and compresses, by the setting `corrupt_mix`.
_MIXES = {"even": (0.5, 0.5, 0.5, 0.5), "compressed": (0.5, 0.5, 0.25, 0.75)}
SEVERITIES = range(1 + len(CORRUPTIONS["noise"][1]))


def corrupt(images: np.ndarray, corruption: str, severity: int, seed: int = 0) -> np.ndarray:
    """Corrupts every image; a pure function of its arguments.

    Args:
        images: uint8 [n, height, width, channels], channels RGB or one grey.
        corruption: key of `CORRUPTIONS`.
        severity: 0 (unchanged) .. 5.
        seed: of the noise.

    Returns:
        uint8 of the same shape.

    Raises:
        UsageError: unknown corruption or severity, or other images.

    Example:
        from resnet_study.data.corruptions import corrupt
        from resnet_study.data.toy_data import load_digits

        noisy = corrupt(load_digits().test.images, "noise", 3)
    """
    if corruption not in CORRUPTIONS or severity not in SEVERITIES:
        raise UsageError(
            f"expected a corruption of {', '.join(CORRUPTIONS)} at severity 0 .. {SEVERITIES[-1]}, received {corruption} at {severity}"
        )
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UsageError(
            f"expected images uint8 [n, height, width, 1 or 3], received {images.dtype} {list(images.shape)}"
        )
    if severity == 0 or not len(images):
        return images
    value = CORRUPTIONS[corruption][1][int(severity) - 1]
    if corruption == "noise":
        cv2.setRNGSeed(seed)  # it is used by the next line and nowhere else
        noise = cv2.randn(np.empty(images.shape, np.float32).reshape(len(images), -1), 0, 255 * value)
        return np.uint8(np.clip(np.rint(images + noise.reshape(images.shape)), 0, 255))
    change = {"blur": _blur, "brightness": _brighten, "jpeg": _compress}[corruption]
    # OpenCV drops the axis of a single channel.
    return np.stack([change(image, value).reshape(image.shape) for image in images])


def worsen(image: np.ndarray, share: float, rng: np.random.Generator, mix: str = "even") -> np.ndarray:
    """With a probability makes an image worse as cameras and web pages do: light, then resolution, noise and compression, of random strength.

    Args:
        image: uint8 [height, width, channels], channels RGB or one grey.
        share: probability that anything happens, 0..1.
        rng: what is drawn from, so that the result follows from its seed.
        mix: "even" = each of the four in half of the cases, compressed as WebP; "compressed" = noise in a quarter, and three quarters are
            compressed, as WebP or, in colour, as JPEG whose brightness and colours have qualities of their own.

    Returns:
        uint8 of the same shape.

    Example:
        import numpy as np
        from resnet_study.data.corruptions import worsen

        print(worsen(np.zeros((32, 32, 3), np.uint8), 1.0, np.random.default_rng(0)).shape)  # (32, 32, 3)
    """
    drawn, light, smaller, noisy, compressed = rng.random(5) < (share, *_MIXES[mix])
    gain, offset, height, width, deviation, quality = rng.random(6)
    if not drawn:
        return image
    shape = image.shape
    changed = np.float32(image)
    if light:
        changed = changed * (0.6 + 0.8 * gain) + 255 * (offset - 0.5) / 2
    if smaller:
        size = [max(1, round(length * (0.5 + part / 2))) for part, length in ((width, shape[1]), (height, shape[0]))]
        changed = cv2.resize(cv2.resize(changed, size, interpolation=cv2.INTER_AREA), shape[1::-1]).reshape(shape)
    if noisy:  # of one distribution for all pixels; the measured one is Gaussian
        changed = changed + rng.uniform(-1, 1, shape) * (255 * 0.2 * deviation)
    changed = np.uint8(np.clip(np.rint(changed), 0, 255))
    if compressed:
        colors = changed[..., ::-1] if shape[2] == 3 else np.repeat(changed, 3, axis=2)
        of_colors, as_jpeg = (rng.random(), rng.random() < 0.5) if mix == "compressed" else (0.0, False)
        if as_jpeg and shape[2] == 3:  # the measured one has one quality and halves the resolution of the colours
            options = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
            options += [cv2.IMWRITE_JPEG_LUMA_QUALITY, round(15 + 80 * quality)]
            options += [cv2.IMWRITE_JPEG_CHROMA_QUALITY, round(15 + 80 * of_colors)]
            _, content = cv2.imencode(".jpg", colors, options)
        else:
            _, content = cv2.imencode(".webp", colors, [cv2.IMWRITE_WEBP_QUALITY, round(5 + 75 * quality)])
        changed = cv2.imdecode(content, cv2.IMREAD_COLOR)[..., ::-1][..., : shape[2]]
    return changed


def worsen_batch(
    images: np.ndarray, share: float, seed: tuple[int, ...], first: int = 0, mix: str = "even"
) -> np.ndarray:
    """`worsen` for images uint8 [num_images, height, width, channels], each a pure function of `seed` and its place, from `first` on."""
    rngs = (np.random.default_rng((*seed, first + place)) for place in range(len(images)))
    worse = [worsen(image, share, rng, mix) for image, rng in zip(images, rngs, strict=True)]
    return np.stack(worse) if worse else images


def _blur(image, sigma):
    return cv2.GaussianBlur(image, None, sigma)


def _brighten(image, amount):
    """Adds to V of HSV, as CIFAR-10-C does, so that the hue stays; a grey image is its own V."""
    if image.shape[-1] == 1:
        return cv2.add(image, np.full_like(image, round(255 * amount)))
    hsv = cv2.cvtColor(np.float32(image) / 255, cv2.COLOR_RGB2HSV)
    hsv[..., 2] = np.minimum(hsv[..., 2] + amount, 1)
    return np.uint8(np.rint(255 * cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)))


def _compress(image, quality):
    # JPEG keeps brightness finer than colour, so the order of the channels matters: OpenCV's is BGR.
    _, content = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(content, cv2.IMREAD_UNCHANGED)[..., ::-1] if image.shape[-1] == 3 else cv2.imdecode(content, 0)
