"""Image files of strangers: read within limits, and brought to the input shape of a network."""

import contextlib
import functools
import io
import os
import threading
import warnings
from pathlib import Path

import numpy as np
import PIL.Image

from resnet_study.data.file_tree import read_member
from resnet_study.data.pixel_values import to_colors
from resnet_study.errors import UsageError
from resnet_study.strings import shorten

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
    ".gif", ".avif", ".jp2", ".j2k", ".jpx", ".heic", ".heif",
)  # fmt: skip
_KINDS = "PNG, JPEG, WebP, BMP, TIFF, GIF, AVIF or JPEG 2000"
# Those that OpenCV decodes, after Pillow has looked at them, and those that Pillow decodes itself.
_BY_OPENCV, _BY_PILLOW = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM"), ("GIF", "AVIF", "JPEG2000")
_HEIC = (
    b"heic",
    b"heix",
    b"hevc",
    b"hevx",
    b"heim",
    b"heis",
    b"mif1",
    b"msf1",
)  # the kind that a file of this family states
_ANY_HEIF = (b"mif1", b"msf1")  # of these, what the images within are is told behind
_EXTRA_SAMPLES, _ALPHAS = 338, (1, 2)  # tag of TIFF, and its values that mean alpha
_PHOTOMETRIC = 262  # tag of TIFF; 0 = the smallest value is white, 5 = inks
_LAB = (8, 9, 10)  # its values for lightness and two axes of colour
_BITS, _BANDS, _PLANES = 258, 277, 284  # tags of TIFF: bits of each band; bands; 2 = they lie one after the other
_EXIF_ORIENTATION = 0x0112
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # from one grey value of a PNG to the next, by how Pillow calls its pixels
_MOST_PIXELS = 89_478_485  # as Pillow has it; programs set its own to None
_LARGEST_FILE = 256 << 20  # bytes
_SWAPPED = (np.uint8, np.uint16, np.float32)  # what OpenCV brings from BGR to RGB
# By what a JPEG is decoded smaller, and how many times the sides of what is wanted it must keep, or the mean would be of too few pixels.
# Below that, other pixels come out (`benchmarks/README.md`); half is where most time is won, so it may be a little less there.
_REDUCTIONS = ((8, 2), (4, 2), (2, 1.5))
_RESIZES, _JPEG_SIZES = ("crop", "pad", "stretch", "nearest"), ("full", "reduced")
_JPEG_END = b"\xff\xd9"
_PNG = b"\x89PNG\r\n\x1a\n"
_BOMBS = (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError)


class _Quiet:
    """Silences the warnings of Pillow in any number of threads at once; `warnings.catch_warnings` is for one, and would leave them off."""

    def __init__(self):
        self._lock, self._inside, self._caught = threading.Lock(), 0, None

    def __enter__(self):
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.filterwarnings("ignore", module="PIL")

    def __exit__(self, *_):
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._caught.__exit__(None, None, None)


_QUIET = _Quiet()


def read_image(
    file: Path,
    shape: tuple[int, int, int],
    value_range: tuple[float, float] | None = None,
    resize: str = "crop",
    jpeg_size: str = "full",
) -> np.ndarray:
    """Reads an image of any size, grey, RGB or RGBA, 8 or 16 bits, and brings it to the input shape of a network.

    It is shrunk by area, or enlarged. An image is turned as its camera was held. What values and transparency become is said in `pixel_values`.

    Args:
        file: PNG, JPEG, WebP, BMP, TIFF, PPM, GIF, AVIF, JPEG 2000, or HEIC with the extra `heic`, perhaps within a `.zip`; of an animation
            the first image is read.
        shape: (height, width, channels), channels 1 or 3.
        value_range: what becomes black and white where pixels do not have 8 bits; None = see `pixel_values`.
        resize: crop = the largest centred part with the aspect of `shape`; pad = all of it, in the middle, on black; stretch = all of it, without its
            aspect; nearest = the same by its nearest pixels, as Keras' `flow_from_directory` does.
        jpeg_size: full = a JPEG is decoded as it is; reduced = at 1/2, 1/4 or 1/8 of its sides where that leaves 1.5 to 2 times those of
            `shape`, which is faster; not with nearest.

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
    return decode_image(read_content(Path(file)), str(file), shape, value_range, resize, jpeg_size)


def decode_image(
    content: bytes,
    name: str,
    shape: tuple[int, int, int],
    value_range: tuple[float, float] | None = None,
    resize: str = "crop",
    jpeg_size: str = "full",
    most_pixels: int | None = None,
) -> np.ndarray:
    """The image that the bytes of a file are, see `read_image`.

    Args:
        content: of the file.
        name: what messages call it.
        shape, value_range, resize, jpeg_size: see `read_image`.
        most_pixels: an image with more is refused before it is decoded; None = 89 million.

    Returns:
        uint8 of that shape, RGB or grey.

    Raises:
        UsageError: see `read_image`.
    """
    import cv2

    is_shape = (
        len(shape) == 3
        and all(isinstance(size, int | np.integer) and size > 0 for size in shape)
        and shape[2] in (1, 3)
    )
    if not is_shape:
        raise UsageError(f"shape must be (height, width, 1 or 3), received {shape}; give such as (32, 32, 3)")
    for value, known, told in ((resize, _RESIZES, "resize"), (jpeg_size, _JPEG_SIZES, "jpeg_size")):
        if value not in known:
            raise UsageError(f"{told} must be one of {', '.join(known)}, received {value!r}; give one of these")
    wanted = shape if jpeg_size == "reduced" and resize != "nearest" else None
    image = to_colors(*decode_pixels(name, content, most_pixels, wanted), name, value_range)
    image = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
    height, width, channels = shape
    scales = image.shape[0] / height, image.shape[1] / width
    if resize == "nearest":
        image = np.asarray(PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.NEAREST))
    else:
        if resize == "crop":
            image = _centre(image, (max(1, round(height * min(scales))), max(1, round(width * min(scales)))))
        if resize == "pad":
            height, width = (max(1, round(size / max(scales))) for size in image.shape[:2])
        if (
            min(scales) < 1 < max(scales) and resize == "stretch"
        ):  # OpenCV shrinks by area only where neither side grows
            smaller = min(image.shape[1], width), min(image.shape[0], height)
            image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
            scales = (1, 1)
        shrinks = (min if resize == "crop" else max)(scales) > 1
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
        image = _centre(image, shape)
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] if channels == 1 else image


def _centre(image, size):
    """The middle of an image in a size, with black where it has nothing."""
    missing = [max(0, want - have) for have, want in zip(image.shape[:2], size, strict=False)]
    if any(missing):
        image = np.pad(image, [*((gap // 2, gap - gap // 2) for gap in missing), (0, 0)])
    top, left = ((have - want) // 2 for have, want in zip(image.shape, size[:2], strict=False))
    return np.ascontiguousarray(image[top : top + size[0], left : left + size[1]])


def read_content(file: Path) -> bytes:
    """The bytes of a file that may be an image; raises UsageError as `read_image` does."""
    try:
        content = read_member(str(file), _LARGEST_FILE)
        if content is not None:
            return content
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
    return content


def decode_pixels(
    file: str, content: bytes, most_pixels: int | None = None, wanted: tuple[int, ...] | None = None
) -> tuple[np.ndarray, bool]:
    """The pixels as they are stored: grey or RGB, perhaps with a further band, of any kind of number; and whether that band is alpha.
    Raises UsageError as `decode_image` does, which has the same arguments. A JPEG that is far larger than `wanted`, (height, width, ...), comes
    reduced.
    """
    import cv2

    if not content:
        raise UsageError(f"{file} is empty; give {_KINDS}")
    formats = _BY_OPENCV + _BY_PILLOW
    if content[4:8] == b"ftyp" and _is_heic(content[8 : int.from_bytes(content[:4], "big")]):
        formats = _register_heic(file)
    try:
        # Pillow reads the header first and refuses what declares more pixels than any camera makes, then what is cut off.
        # OpenCV would show that in grey. A JPEG that has its end is decoded once, by OpenCV: that is half of the time.
        with _QUIET, PIL.Image.open(io.BytesIO(content), formats=formats) as opened:
            if opened.width * opened.height > (most_pixels or _MOST_PIXELS):
                raise PIL.Image.DecompressionBombError
            # Phones and stereo cameras put several JPEG images into one file, which Pillow calls MPO; the first is meant.
            kind = "JPEG" if opened.format == "MPO" else opened.format
            tile, size = opened.tile, opened.size  # which are gone, and smaller, after loading
            if kind == "JPEG":
                opened.draft(opened.mode, (1, 1))
            if kind != "JPEG" or not content.rstrip(b"\0").endswith(_JPEG_END):
                opened.load()
            if kind == "TIFF" and opened.tag_v2.get(_PHOTOMETRIC) in _LAB:
                raise UsageError(
                    f"{file} has its colours as CIE Lab, which OpenCV does not read rightly; save it as RGB"
                )
            planar = kind == "TIFF" and opened.tag_v2.get(_PLANES) == 2 and opened.tag_v2.get(_BANDS, 1) > 1
            if planar and opened.tag_v2.get(_BITS, (8,))[0] != 8:
                raise UsageError(
                    f"{file} has its bands of {opened.tag_v2[_BITS][0]} bits one after the other, which neither OpenCV nor Pillow reads rightly; save it "
                    "with interleaved bands"
                )
            has_alpha = kind != "TIFF" or opened.tag_v2.get(_EXTRA_SAMPLES, (0,))[0] in _ALPHAS
            orientation = 1
            if kind != "TIFF":  # of which OpenCV heeds how the camera was held itself
                with contextlib.suppress(Exception):  # an EXIF block that is damaged spoils no pixels
                    orientation = opened.getexif().get(_EXIF_ORIENTATION, 1)
            photometric = opened.tag_v2.get(_PHOTOMETRIC) if kind == "TIFF" else None
            is_inverted, is_separated = photometric == 0, photometric == 5
            is_associated = (
                kind == "TIFF" and len(opened.getbands()) == 4 and opened.tag_v2.get(_EXTRA_SAMPLES, (0,))[0] == 1
            )
            by_pillow = kind not in _BY_OPENCV or _is_beyond_opencv(opened, tile, has_alpha)
            image = _as_array(opened, tile) if by_pillow else None
            flags = _choose_flags(opened.mode, size, orientation, wanted if kind == "JPEG" else None)
        if image is None:
            _silence_opencv()
            image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
            if image is None:
                raise ValueError("OpenCV cannot decode it")
            if is_separated:  # whose four inks have become three colours
                image = image[..., :3]
            if is_inverted and image.dtype == np.uint16:  # those of 1 and 8 bits it turns round itself
                image = 65535 - image
            if image.ndim == 3 and image.shape[-1] > 2:
                swap = cv2.COLOR_BGR2RGB if image.shape[-1] == 3 else cv2.COLOR_BGRA2RGBA
                image = (
                    cv2.cvtColor(image, swap)
                    if image.dtype in _SWAPPED
                    else image[..., [2, 1, 0, *range(3, image.shape[-1])]]
                )
            if is_associated and image.dtype == np.uint16:  # of 8 bits it is Pillow that divides by alpha
                image[..., :3] = np.minimum(65535, image[..., :3] * (65535 / np.maximum(1, image[..., 3:])))
    except UsageError:
        raise
    # A damaged image can raise nearly anything.
    except Exception as error:
        # Texts that are too long for Pillow, before the pixels or behind them, are no part of the image.
        too_long = str(error).startswith(("Decompressed data too large", "Too much memory"))
        if too_long and (without := _drop_texts(content)) != content:
            return decode_pixels(file, without, most_pixels, wanted)
        is_cut = (
            "truncated" in str(error).lower()
            or (content.startswith(b"RIFF") and len(content) < 8 + int.from_bytes(content[4:8], "little"))  # WebP
            or (content.startswith(b"\x89PNG") and b"IEND" not in content)
        )
        if is_cut:
            reason = "is cut off: its end is missing; copy it again or leave it out"
        elif isinstance(error, PIL.UnidentifiedImageError) and content.startswith((b"II*\0", b"MM\0*")):
            reason = "is a TIFF that is damaged, or has more than four bands, two of 16 bits, or colours in floating point; save it with three bands of 8 or 16 bits"
        elif isinstance(error, PIL.UnidentifiedImageError) and content[4:8] == b"ftyp":  # AVIF, HEIC, films
            reason = f"is cut off, or no image of a kind that is read; copy it again, or give {_KINDS}"
        elif isinstance(error, PIL.UnidentifiedImageError):
            reason = f"is no image of a kind that is read; give {_KINDS}"
        elif isinstance(error, _BOMBS):
            reason = f"has too many pixels, expected at most {most_pixels or _MOST_PIXELS:,}; give a smaller image"
        else:
            reason = f"is damaged ({shorten(str(error))}); mend it or leave it out"
        raise UsageError(f"{file} {reason}") from error
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image), has_alpha


@functools.cache
def _silence_opencv() -> None:
    """Has OpenCV print no line for each tag of a TIFF that it does not know, unless somebody has said what it is to print."""
    import cv2

    usual = cv2.utils.logging.getLogLevel() == cv2.utils.logging.LOG_LEVEL_WARNING
    if usual and "OPENCV_LOG_LEVEL" not in os.environ:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _drop_texts(content: bytes) -> bytes:
    """A PNG without the texts within it; anything else as it is."""
    if not content.startswith(_PNG):
        return content
    kept, place = [_PNG], len(_PNG)
    while place + 8 <= len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")
        if content[place + 4 : place + 8] not in (b"tEXt", b"zTXt", b"iTXt"):
            kept.append(content[place:end])
        place = end
    return b"".join(kept)


def _choose_flags(mode: str, size, orientation: int, wanted) -> int:
    """How OpenCV is to decode an image of which `wanted` pixels, (height, width, ...), are needed; None = all."""
    import cv2

    if wanted is None:
        return cv2.IMREAD_UNCHANGED
    sides = size if orientation in (5, 6, 7, 8) else size[::-1]
    scale = min(have / want for have, want in zip(sides, wanted, strict=False))
    factor = next((factor for factor, kept in _REDUCTIONS if scale >= factor * kept), None)
    if factor is None:
        return cv2.IMREAD_UNCHANGED
    kind = "GRAYSCALE" if mode == "L" else "COLOR"
    return getattr(cv2, f"IMREAD_REDUCED_{kind}_{factor}") | cv2.IMREAD_IGNORE_ORIENTATION


def _is_beyond_opencv(opened, tile, has_alpha: bool) -> bool:
    """Whether OpenCV would give other pixels: it knows no transparent grey value of a PNG, and no PPM whose white is neither 255 nor 65535."""
    if (
        opened.format == "TIFF"
    ):  # of 8 bits, whose colours libtiff multiplies by alpha, and whose alpha of grey it drops
        bits, photometric = opened.tag_v2.get(_BITS, (1,))[0], opened.tag_v2.get(_PHOTOMETRIC)
        return (has_alpha and bits == 8) or bits in (2, 4) or (bits == 1 and photometric == 3)
    if opened.format == "PPM":
        return tile[0][0] == "ppm_plain" or (tile[0][0] == "ppm" and tile[0][3][-1] != 65535)
    return opened.format == "PNG" and opened.mode in ("1", "L", "I;16") and "transparency" in opened.info


def _as_array(opened, tile) -> np.ndarray:
    """The first image as Pillow decodes it: grey of 8 or 16 bits, RGB, or RGBA. `tile` is as it was before loading."""
    if opened.mode == "I":  # a PGM, brought to 16 bits
        return np.asarray(opened).astype(np.uint16)
    if opened.mode == "I;16" and "transparency" in opened.info:  # one grey value, which Pillow knows of 8 bits only
        grey = np.asarray(opened)
        return np.stack([grey, np.where(grey == opened.info["transparency"], 0, 65535).astype(np.uint16)], axis=-1)
    if opened.format == "PNG" and tile[0][3] in _GREY_STEPS and "transparency" in opened.info:
        opened.info["transparency"] *= _GREY_STEPS[tile[0][3]]  # Pillow scales the pixels alone
    if opened.has_transparency_data:
        opened = opened.convert("RGBA")
    elif opened.mode not in ("L", "I;16", "RGB"):
        opened = opened.convert("RGB")
    return np.asarray(opened)


def _is_heic(brands: bytes) -> bool:
    """Whether a file is HEIC. `brands`: the kind that it states, a version, and the kinds that it is compatible with, of four bytes each."""
    known = [brands[start : start + 4] for start in range(8, min(len(brands), 8 + 4 * 64), 4)]
    return brands[:4] in _HEIC and not (brands[:4] in _ANY_HEIF and {b"avif", b"avis"} & set(known))


def _register_heic(file: str) -> tuple[str, ...]:
    """Makes Pillow read HEIC; returns its name of that format."""
    try:
        import pillow_heif
    except ImportError as error:
        raise UsageError(
            f"{file} is HEIC, which needs the extra heic (pip install pillow-heif); install it, or save the image as JPEG"
        ) from error
    pillow_heif.register_heif_opener()
    return ("HEIF",)
