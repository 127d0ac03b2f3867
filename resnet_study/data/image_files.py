"""Image files of strangers: read within limits, and brought to the input shape of a network."""

import io
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import PIL.Image

from resnet_study.errors import UsageError, shorten

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM")
_EXIF_ORIENTATION = 0x0112
_LARGEST_FILE = 256 << 20  # bytes
_BOMBS = (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError)


def read_image(file: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Reads an image of any size, grey, RGB or RGBA, 8 or 16 bits, and brings it to the input shape of a network.

    The largest centred part with the aspect of `shape` is cut out and shrunk by area, or enlarged. What is transparent becomes
    white. An image is turned as its camera was held.

    Args:
        file: PNG, JPEG, WebP, BMP, TIFF or PPM; of an animation the first image is read.
        shape: (height, width, channels), channels 1 or 3.

    Returns:
        uint8 of that shape, RGB or grey.

    Raises:
        UsageError: the file is missing, may not be read, has too many bytes or pixels, is no image, is damaged, or is cut off; the
            message says which.

    Example:
        from resnet_study.data.image_files import read_image

        image = read_image("examples/cat.jpg", (32, 32, 3))
        print(image.shape, image.dtype)  # (32, 32, 3) uint8
    """
    import cv2

    image = _decode(Path(file), _read_content(Path(file)))
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


def _read_content(file: Path) -> bytes:
    """The bytes of a file that may be an image; raises UsageError as `read_image` does."""
    try:
        if not file.is_file():  # a pipe would be waited for
            if file.is_dir():
                raise UsageError(f"{file} must be an image file, received a folder; leave it out")
            if file.exists():
                raise UsageError(f"{file} must be an image file, received a pipe or a device; leave it out")
            if os.path.lexists(file):
                raise UsageError(f"{file} must be an image file, received a link that leads nowhere; leave it out")
            raise UsageError(f"expected an image file, received '{file}', which does not exist; check the name")
        size = file.stat().st_size
        if size > _LARGEST_FILE:
            raise UsageError(f"{file} has {size:,} bytes, expected at most {_LARGEST_FILE:,}; give a smaller image")
        content = file.read_bytes()
    except PermissionError as error:
        raise UsageError(f"{file} may not be read by you; mend its rights or leave it out") from error
    except OSError as error:
        raise UsageError(f"{file} could not be read ({error.strerror or error}); leave it out") from error
    if not content:
        raise UsageError(f"{file} is empty; give PNG, JPEG, WebP, BMP or TIFF")
    return content


def _decode(file: Path, content: bytes) -> np.ndarray:
    """The image as OpenCV gives it: grey, BGR or with alpha, of any integer type; raises UsageError as `read_image` does."""
    import cv2

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            # Pillow reads the header first and refuses what declares more pixels than any camera makes, then what is cut off.
            # OpenCV would show that in grey.
            with PIL.Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
                opened.load()
                # How the camera was held. Of TIFF, OpenCV heeds it itself.
                orientation = 1 if opened.format == "TIFF" else opened.getexif().get(_EXIF_ORIENTATION, 1)
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if image is None:
            raise ValueError("OpenCV cannot decode it")
    # A damaged image can raise nearly anything.
    except Exception as error:
        is_cut = (
            "truncated" in str(error).lower()
            or (content.startswith(b"RIFF") and len(content) < 8 + int.from_bytes(content[4:8], "little"))  # WebP
            or (content.startswith(b"\x89PNG") and b"IEND" not in content)
        )
        if is_cut:
            reason = "is cut off: its end is missing; copy it again or leave it out"
        elif isinstance(error, PIL.UnidentifiedImageError):
            reason = "is no image of a kind that is read; give PNG, JPEG, WebP, BMP or TIFF"
        elif isinstance(error, _BOMBS):
            reason = f"has too many pixels, expected at most {PIL.Image.MAX_IMAGE_PIXELS:,}; give a smaller image"
        else:
            reason = f"is damaged ({shorten(str(error))}); mend it or leave it out"
        raise UsageError(f"{file} {reason}") from error
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def read_images(paths, shape: tuple[int, int, int], read_one) -> tuple[list[Path], np.ndarray]:
    """Reads the images of files and folders.

    Args:
        paths: files, or folders whose images are taken in the order of their names; what cannot be read there is left out, and named.
        shape: (height, width, channels).
        read_one: reads one file, as `read_image`.

    Returns:
        (files that were read, images uint8 [n, height, width, channels]).

    Raises:
        UsageError: nothing could be read, or not a file that was named itself.
    """
    read, failures = [], []
    for path in map(Path, paths):
        if not path.is_dir():
            read.append((path, read_one(path, shape)))
            continue
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise UsageError(
                f"{path} must hold images ({', '.join(IMAGE_SUFFIXES)}), received a folder without any; give another"
            )
        for file in found:
            try:
                read.append((file, read_one(file, shape)))
            except UsageError as error:
                failures.append(error)
    if not read:
        raise (
            failures[0]
            if failures
            else UsageError("--mode=predict needs --images FILE_OR_FOLDER..., received none; give some")
        )
    for error in failures:
        print(f"left out: {error}", file=sys.stderr)
    files, images = zip(*read, strict=True)
    return list(files), np.stack(images)
