"""Image files of strangers: read within limits, and brought to the input shape of a network."""

import io
import sys
import warnings
from pathlib import Path

import numpy as np
import PIL.Image

from resnet_study.errors import UsageError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM")
_EXIF_ORIENTATION = 0x0112
_LARGEST_FILE = 256 << 20  # bytes of a file


def read_image(file: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Reads a image of any size, grey, RGB or RGBA, 8 or 16 bits, and brings it to the input shape of a net.

    The largest centred part with the aspect of the net is cut out and shrunk by area, or enlarged. What is transparent
    becomes white.

    Args:
        file: image file.
        shape: (height, width, channels), channels 1 or 3.

    Returns:
        uint8 of that shape, RGB or grey.

    Raises:
        UsageError: the file cannot be read or decoded.
    """
    import cv2

    file = Path(file)
    if not file.is_file():  # a pipe would be waited for
        raise UsageError(f"{file} must be a image file, received a folder, a pipe or nothing; leave it out")
    try:
        if file.stat().st_size > _LARGEST_FILE:
            raise ValueError(f"it has more than {_LARGEST_FILE:,} bytes")
        content = file.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            # Pillow reads the header first and refuses what declares more pixels than any camera makes, then what is cut off.
            # OpenCV would show that in grey.
            with PIL.Image.open(io.BytesIO(content), formats=_IMAGE_FORMATS) as opened:
                opened.load()
                # How the camera was held. Of TIFF, OpenCV heeds it itself.
                orientation = 1 if opened.format == "TIFF" else opened.getexif().get(_EXIF_ORIENTATION, 1)
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if image is None:
            raise ValueError("OpenCV cannot decode it")
        if orientation in (5, 6, 7, 8):
            image = image.swapaxes(0, 1)
        if orientation in (2, 3, 6, 7):
            image = image[:, ::-1]
        if orientation in (3, 4, 7, 8):
            image = image[::-1]
        image = np.ascontiguousarray(image)
    # A damaged image can raise nearly anything; whatever it is, the file cannot be used.
    except Exception as error:
        unknown = isinstance(error, PIL.UnidentifiedImageError)
        reason = "its kind is not known" if unknown else " ".join(str(error).split())[:200]
        raise UsageError(
            f"{file} is damaged, too large or no image ({reason}); give PNG, JPEG, WebP, BMP or TIFF"
        ) from error
    if image.dtype != np.uint8:
        image = (
            cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)
            if image.dtype != np.uint16
            else np.uint8(image >> 8)
        )
    image = image[..., None] if image.ndim == 2 else image
    if image.shape[-1] in (2, 4):
        alpha = image[..., -1:] / 255.0
        image = np.uint8(np.rint(image[..., :-1] * alpha + 255 * (1 - alpha)))
    image = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image[..., ::-1]
    height, width, channels = shape
    scale = min(image.shape[0] / height, image.shape[1] / width)
    cut = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = ((have - want) // 2 for have, want in zip(image.shape, cut, strict=False))
    image = np.ascontiguousarray(image[top : top + cut[0], left : left + cut[1]])
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC)
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] if channels == 1 else image


def read_images(paths, shape, read_one) -> tuple[list[Path], np.ndarray]:
    """The files of `predict`, and their images, uint8 [n, *shape]."""
    read, failures = [], []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise UsageError(
                    f"{path} must hold images ({', '.join(IMAGE_SUFFIXES)}), received a folder without any"
                )
            for file in found:
                try:
                    read.append((file, read_one(file, shape)))
                except UsageError as error:
                    failures.append(error)
        elif path.exists():
            read.append((path, read_one(path, shape)))
        else:
            raise UsageError(f"expected image files or folders, received '{path}', which does not exist")
    if not read:
        raise failures[0] if failures else UsageError("--mode=predict needs --images FILE_OR_FOLDER..., received none")
    for error in failures:
        print(f"left out: {error}", file=sys.stderr)
    files, images = zip(*read, strict=True)
    return list(files), np.stack(images)
