"""Image files of strangers: every kind is read upright and in its colours; what cannot be used is refused with one cause."""

import concurrent.futures
import io
import struct
import sys
import warnings
import zlib

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.PngImagePlugin
import pytest
from conftest import SPECIAL_FILES

from resnet_study import errors
from resnet_study.data import image_files, pixel_values
from resnet_study.data.image_files import read_image
from resnet_study.errors import UsageError
from resnet_study.predict_files import list_images

SHAPE = (32, 32, 3)


def encode(kind, size=(60, 50)):
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(40, 60), (40, 60, 3), (60, 40, 4), (1, 1), (200, 10, 3)])
def test_images_of_every_kind_are_read(tmp_path, shape):
    for depth, kind in ((np.uint8, "8"), (np.uint16, "16")):
        path = tmp_path / f"{kind}.png"
        cv2.imwrite(str(path), np.full(shape, np.iinfo(depth).max, depth))
        for channels in (1, 3):
            image = read_image(path, (32, 32, channels))
            assert image.shape == (32, 32, channels) and image.dtype == np.uint8 and image.min() == 255


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_stand_upright_however_the_camera_was_held(tmp_path, kind):
    quarters = np.kron(np.uint8([[0, 80], [160, 240]]), np.ones((16, 16), np.uint8))
    for orientation in range(1, 9):
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        PIL.Image.fromarray(quarters).convert("RGB").save(tmp_path / "held", kind, exif=exif, quality=95)
        with PIL.Image.open(tmp_path / "held") as opened:
            upright = np.asarray(PIL.ImageOps.exif_transpose(opened))
        difference = read_image(tmp_path / "held", (32, 32, 3)).astype(int) - upright
        assert abs(difference).max() < 30, orientation


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_large_jpeg_is_decoded_smaller_where_that_is_asked_for(tmp_path, mode):
    """However its camera was held; it differs, and by little. What is small, cut off or no JPEG is treated as ever."""
    path, exif = tmp_path / "photo.jpg", PIL.Image.Exif()
    exif[0x0112] = 6
    colours = cv2.resize(
        np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8), (300, 200), interpolation=cv2.INTER_CUBIC
    )
    photo = PIL.Image.fromarray(colours).convert(mode)
    photo.save(path, exif=exif, quality=95)
    for resize in ("crop", "pad", "stretch"):
        full, reduced = (read_image(path, SHAPE, None, resize, size) for size in ("full", "reduced"))
        # Of 300 x 200 pixels, 75 x 50 would be too few for 32 x 32: half of each side.
        assert 0 < np.abs(full.astype(int) - reduced).mean() < 2, resize
    for shape, resize in (((200, 101, 3), "crop"), (SHAPE, "nearest")):  # turned, it is 300 high and 200 wide
        same = [read_image(path, shape, None, resize, size) for size in ("full", "reduced")]
        np.testing.assert_array_equal(*same)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UsageError, match="is cut off"):
        read_image(cut, SHAPE, jpeg_size="reduced")
    if mode != "CMYK":
        photo.save(tmp_path / "photo.png")
        same = [read_image(tmp_path / "photo.png", SHAPE, jpeg_size=size) for size in ("full", "reduced")]
        np.testing.assert_array_equal(*same)


def test_colours_are_rgb(tmp_path):
    cv2.imwrite(str(tmp_path / "red.png"), np.full((5, 5, 3), (0, 0, 255), np.uint8))  # OpenCV writes BGR
    assert read_image(tmp_path / "red.png", (32, 32, 3))[0, 0].tolist() == [255, 0, 0]


def test_an_image_is_cropped_padded_or_stretched(tmp_path):
    wide = np.full((20, 60, 3), 100, np.uint8)
    wide[:, :20], wide[:, 40:] = 200, 200
    cv2.imwrite(str(tmp_path / "wide.png"), wide)
    crop, pad, stretch = (
        read_image(tmp_path / "wide.png", (60, 60, 3), resize=way)[..., 0] for way in ("crop", "pad", "stretch")
    )
    assert (crop == 100).all()
    assert not pad[:20].any() and not pad[40:].any() and (pad[20:40] == wide[..., 0]).all()
    assert stretch.min() > 90 and (stretch[:, 5] == 200).all() and (stretch[:, 30] == 100).all()
    for shape in ((7, 13, 1), (9, 8, 3), (1, 1, 3)):
        assert {read_image(tmp_path / "wide.png", shape, resize=way).shape for way in ("pad", "stretch")} == {shape}


def damaged_png():
    content = bytearray(encode("PNG"))
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    return bytes(content)


def list_tags(tags):
    """The directory of a TIFF, of (tag, type, count, value or place)."""
    return struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)


def five_bands():
    """A TIFF of one pixel and five bands."""
    tags = [
        (256, 4, 1, 1),
        (257, 4, 1, 1),
        (258, 3, 1, 8),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (277, 3, 1, 5),
        (279, 4, 1, 5),
    ]
    return b"II*\0" + struct.pack("<I", 16) + bytes(8) + list_tags(tags)


def planes(bits):
    """A TIFF of one pixel, red, green and blue one after the other, each of so many bits."""
    size = bits // 8
    tags = [
        (256, 4, 1, 1),
        (257, 4, 1, 1),
        (258, 3, 3, 26),
        (262, 3, 1, 2),
        (273, 4, 3, 32),
        (277, 3, 1, 3),
        (278, 4, 1, 1),
        (279, 4, 3, 44),
        (284, 3, 1, 2),
    ]
    head = b"II*\0" + struct.pack("<I", 56) + bytes([200, 200, 40, 40, 20, 20]).ljust(18, b"\0")
    lists = struct.pack("<3H3I3I", *(bits,) * 3, *(8 + size * band for band in range(3)), *(size,) * 3)
    return head + lists + list_tags(tags)


def lab_tiff():
    buffer = io.BytesIO()
    PIL.Image.new("LAB", (8, 8)).save(buffer, "TIFF")
    return buffer.getvalue()


CAUSES = {
    "missing": (None, "expected an image file, received '.*strange', which does not exist; check the name"),
    "empty": (b"", "strange is empty; give PNG"),
    "text": (b"not an image", "strange is no image of a kind that is read; give PNG, JPEG, WebP, BMP, TIFF, GIF, AVIF or JPEG 2000"),
    "pcx": (encode("PCX"), "strange is no image of a kind that is read; give PNG"),
    "five bands": (five_bands(), "strange is a TIFF that is damaged, or has more than four bands, .*; save it with three bands"),
    "planes": (planes(16), "strange has its bands of 16 bits one after the other, which .*; save it with interleaved bands"),
    "lab": (lab_tiff(), "strange has its colours as CIE Lab, which .*; save it as RGB"),
    "a film": (bytes(4) + b"ftypisom" + bytes(40), "strange is cut off, or no image of a kind that is read; copy it again, or give PNG"),
    "damaged": (damaged_png(), r"strange is damaged \(broken data stream when reading image file\); mend it"),
    "pixels": (b"P6 30000 30000 255\n", "strange has too many pixels, expected at most 89,478,485; give a smaller image"),
    "a bomb": (b"P6 30000 3000 255\n", "strange has too many pixels, expected at most 89,478,485; give a smaller image"),
}  # fmt: skip


def test_bands_of_eight_bits_may_lie_one_after_the_other(tmp_path):
    (tmp_path / "x").write_bytes(planes(8).replace(bytes([200, 200, 40, 40, 20, 20]), bytes([200, 40, 20, 0, 0, 0])))
    assert read_image(tmp_path / "x", (8, 8, 3))[0, 0].tolist() == [200, 40, 20]
    # Of one band it makes no difference.
    PIL.Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "y.tif", tiffinfo={284: 2})
    assert read_image(tmp_path / "y.tif", (8, 8, 1)).shape == (8, 8, 1)


def test_the_limit_of_pillow_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)  # as programs for large images set it
    (tmp_path / "x").write_bytes(encode("PNG"))
    assert read_image(tmp_path / "x", SHAPE).shape == SHAPE
    (tmp_path / "x").write_bytes(CAUSES["a bomb"][0])
    with pytest.raises(UsageError, match="too many pixels, expected at most 89,478,485"):
        read_image(tmp_path / "x", SHAPE)


@pytest.mark.parametrize("cause", CAUSES)
def test_one_cause_each(tmp_path, cause):
    content, message = CAUSES[cause]
    if content is not None:
        (tmp_path / "strange").write_bytes(content)
    with pytest.raises(UsageError, match=f"{message}[^;]*$"):
        read_image(tmp_path / "strange", SHAPE)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM"])
def test_a_file_without_its_end_is_cut_off(tmp_path, kind):
    content = encode(kind)
    for length in (len(content) // 2, len(content) - 100, len(content) - 9):
        (tmp_path / "strange").write_bytes(content[:length])
        with pytest.raises(UsageError, match=r"strange is cut off: its end is missing; copy it again or leave it out$"):
            read_image(tmp_path / "strange", SHAPE)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("folder", "must be an image file, received a folder; leave it out"),
        ("pipe", "must be an image file, received a pipe or a device; leave it out"),
        ("dangling", "must be an image file, received a link that leads nowhere; leave it out"),
        ("loop", "must be an image file, received a link that leads nowhere; leave it out"),
        ("sparse", "has 10,737,418,240 bytes, expected at most 268,435,456; give a smaller image"),
    ],
)
def test_what_is_no_file_is_named(tmp_path, kind, message):
    SPECIAL_FILES[kind](tmp_path / "strange")
    with pytest.raises(UsageError, match=f"strange {message}$"):
        read_image(tmp_path / "strange", SHAPE)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied"), "may not be read by you; mend its rights or leave it out$"),
        (OSError(5, "Input/output error"), r"could not be read \(Input/output error\); leave it out$"),
    ],
)
def test_a_file_that_may_not_or_cannot_be_read(tmp_path, monkeypatch, error, message):
    def fail(_):
        raise error

    (tmp_path / "strange").write_bytes(encode("PNG"))
    monkeypatch.setattr(image_files.Path, "read_bytes", fail)  # root may read everything
    with pytest.raises(UsageError, match=f"strange {message}"):
        read_image(tmp_path / "strange", SHAPE)


def test_a_long_reason_ends_at_a_word(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ValueError("a reason of very many words " * 20)

    (tmp_path / "strange").write_bytes(encode("PNG"))
    monkeypatch.setattr(image_files.PIL.Image, "open", fail)
    with pytest.raises(UsageError, match=r"damaged \(.*many words a\.\.\.\); mend it or leave it out$"):
        read_image(tmp_path / "strange", SHAPE)


def draw():
    """Left half darker in red, lower half more green, blue 90; uint8 [64, 96, RGB]."""
    rows, columns = np.mgrid[:64, :96]
    return np.stack([30 + 200 * (columns >= 48), 20 + 120 * (rows >= 32), np.full((64, 96), 90)], axis=-1).astype(
        np.uint8
    )


def read(path):
    return read_image(path, (64, 96, 3))


@pytest.mark.parametrize(("ending", "kind"), [("gif", "GIF"), ("avif", "AVIF"), ("jp2", "JPEG2000"), ("jfif", "JPEG"), ("jpe", "JPEG")])  # fmt: skip
def test_kinds_that_people_have(tmp_path, ending, kind):
    PIL.Image.fromarray(draw()).save(tmp_path / f"a.{ending}", kind, quality=95)
    image = read(tmp_path / f"a.{ending}").astype(int)
    assert abs(image[[5, 5, 60, 60], [5, 90, 5, 90]] - draw()[[5, 5, 60, 60], [5, 90, 5, 90]]).max() <= 3
    assert list_images([tmp_path]).files == [str(tmp_path / f"a.{ending}")]


def test_heic_names_the_extra_where_it_is_missing(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(
        UsageError, match=r"a\.heic is HEIC, which needs the extra heic .*; install it, or save the image as JPEG$"
    ):
        read(tmp_path / "a.heic")


def ramp(kind, top):
    return (np.tile(np.linspace(0, 1, 96), (64, 1)) * top).astype(kind)


def save_array(array, path):
    PIL.Image.fromarray(array).save(path)
    return path


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_twelve_bits_in_sixteen_are_a_ramp_from_black_to_white(tmp_path, capsys, ending):
    errors._said.clear()
    image = read(save_array(ramp(np.uint16, 4095), tmp_path / f"a.{ending}"))
    assert abs(image[..., 0] - ramp(float, 255)).max() <= 1
    read(save_array(ramp(np.uint16, 4000), tmp_path / f"b.{ending}"))
    told = capsys.readouterr().out
    assert "are read as 12 bits, 0..4095; --value_range=LOW,HIGH" in told and len(told.splitlines()) == 1
    fixed = read_image(tmp_path / f"a.{ending}", (64, 96, 3), (0, 8190))
    assert abs(fixed[..., 0] - ramp(float, 127.5)).max() <= 1 and not capsys.readouterr().out


def test_floating_point_images(tmp_path, capsys):
    errors._said.clear()
    hole = ramp(np.float32, 7)
    hole[3, 50] = np.nan
    image = read(save_array(hole, tmp_path / "nan.tif"))
    assert image[3, 50, 0] == 0 and image[4, 95, 0] == 255 and abs(image[9, :, 0] - ramp(float, 255)[9]).max() <= 1
    assert "no numbers: these are read as black" in capsys.readouterr().out
    assert (read(save_array(np.full((9, 9), 1e3, np.float32), tmp_path / "flat.tif")) == 128).all()
    assert "has the one value 1000: such images are read as grey" in capsys.readouterr().out
    with pytest.raises(UsageError, match="received NaN or infinity in every pixel"):
        read(save_array(np.full((9, 9), np.nan, np.float32), tmp_path / "none.tif"))


def test_strips_give_the_same_bytes_as_the_whole(monkeypatch):
    rng = np.random.default_rng(0)
    holes = rng.normal(0, 9, (40, 30, 3)).astype(np.float32)
    holes[3, 4, 1] = np.nan
    kinds = [(holes, False), (rng.integers(0, 4000, (40, 30, 4)).astype(np.uint16), True), (rng.integers(0, 256, (40, 30, 2), np.uint8), True)]  # fmt: skip
    whole = [pixel_values.to_colors(image, has_alpha, "x", None) for image, has_alpha in kinds]
    monkeypatch.setattr(pixel_values, "_STRIP", 200)
    for (image, has_alpha), expected in zip(kinds, whole, strict=True):
        np.testing.assert_array_equal(pixel_values.to_colors(image, has_alpha, "x", None), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_damaged_exif_block_spoils_no_pixels(tmp_path, kind):
    PIL.Image.fromarray(draw()).save(tmp_path / "x", kind, exif=b"Exif\0\0no tiff at all", quality=95)
    PIL.Image.fromarray(draw()).save(tmp_path / "y", kind, quality=95)
    np.testing.assert_array_equal(read(tmp_path / "x"), read(tmp_path / "y"))


def test_transparency_and_bands(tmp_path, capsys):
    errors._said.clear()
    palette = PIL.Image.fromarray(draw()).quantize(4)
    palette.save(tmp_path / "all.png", transparency=bytes(4))
    np.testing.assert_array_equal(read(tmp_path / "all.png"), draw())
    half = np.dstack([draw(), np.uint8(255 * (draw()[..., 0] > 100))])
    PIL.Image.fromarray(half).save(tmp_path / "half.png")
    assert (read(tmp_path / "half.png")[:, :40] == 255).all() and (
        read(tmp_path / "half.png")[:, 60:] == draw()[:, 60:]
    ).all()
    cv2.imwrite(str(tmp_path / "infrared.tif"), np.dstack([draw()[..., ::-1], np.zeros((64, 96), np.uint8)]))
    np.testing.assert_array_equal(read(tmp_path / "infrared.tif"), draw())
    told = capsys.readouterr().out
    assert "is transparent everywhere" in told and "read as white" in told and "the first 3 are read" in told


@pytest.mark.parametrize("behind", [False, True])
def test_a_long_text_is_no_reason_to_refuse_an_image(tmp_path, behind):
    notes = PIL.PngImagePlugin.PngInfo()
    notes.add(b"zTXt", b"notes\0\0" + zlib.compress(b"x" * (2 << 20)), after_idat=behind)
    PIL.Image.fromarray(draw()).save(tmp_path / "a.png", pnginfo=notes)
    np.testing.assert_array_equal(read(tmp_path / "a.png"), draw())


def test_a_transparent_grey_value_is_white(tmp_path):
    image = PIL.Image.fromarray(np.repeat(np.uint8([[0, 100]]), 8, axis=0).repeat(4, axis=1))
    image.save(tmp_path / "x.png", transparency=0)
    assert read_image(tmp_path / "x.png", (8, 8, 1))[0, ::7, 0].tolist() == [255, 100]


def test_a_tiff_of_16_bits_may_begin_with_white(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    PIL.Image.fromarray(65535 - ramp).save(tmp_path / "x.tif", tiffinfo={262: 0})
    PIL.Image.fromarray(ramp).save(tmp_path / "y.tif")
    received, expected = (read_image(tmp_path / name, (8, 8, 1)) for name in ("x.tif", "y.tif"))
    np.testing.assert_array_equal(received, expected)


@pytest.mark.parametrize(("white", "kind"), [(15, np.uint8), (255, np.uint8), (1023, ">u2"), (65535, ">u2")])
def test_white_of_a_pgm_or_ppm_is_white(tmp_path, white, kind):
    ramp = np.linspace(0, white, 64).round().astype(kind)
    for letter, values in (("P5", ramp), ("P6", ramp.repeat(3))):
        (tmp_path / "x.ppm").write_bytes(f"{letter} 8 8 {white}\n".encode() + values.tobytes())
        received = read_image(tmp_path / "x.ppm", (8, 8, 1)).ravel().astype(int)
        np.testing.assert_allclose(received, 255 * ramp.astype(float) / white, atol=1)


@pytest.mark.parametrize("white", [7, 255, 1000, 65535])
def test_white_of_a_pgm_in_text_is_white(tmp_path, white):
    ramp = np.linspace(0, white, 64).round().astype(int)
    for end in ("", "\n"):
        (tmp_path / "x.pgm").write_text(f"P2 8 8 {white}\n{' '.join(map(str, ramp))}{end}")
        received = read_image(tmp_path / "x.pgm", (8, 8, 1)).ravel().astype(int)
        np.testing.assert_allclose(received, 255 * ramp / white, atol=1)


def small_tiff(bits, photometric, pixels, **more):
    """An 8 x 8 TIFF. `bits`: of each band; `pixels`: its packed pixels; `more`: further tags, "t" and the number, of 16-bit values."""
    tags = {256: [8], 257: [8], 258: bits, 259: [1], 262: [photometric], 273: [0], 277: [len(bits)], 278: [8]}
    tags |= {279: [len(pixels)]} | {int(name[1:]): values for name, values in more.items()}
    start = 8 + 2 + 12 * len(tags) + 4
    tags[273] = [start + sum(2 * len(values) for values in tags.values() if len(values) > 2)]
    entries = aside = b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}H", *values)
        place = packed.ljust(4, b"\0") if len(values) <= 2 else struct.pack("<I", start + len(aside))
        entries += struct.pack("<HHI", tag, 3, len(values)) + place
        aside += packed if len(values) > 2 else b""
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + aside + pixels


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_tiff_may_have_few_bits(tmp_path, bits):
    steps = (1 << bits) - 1
    values = np.arange(64) % (steps + 1)
    packed = np.packbits((values[:, None] >> np.arange(bits - 1, -1, -1)) & 1).tobytes()
    for photometric, expected in ((1, values * 255 // steps), (0, 255 - values * 255 // steps)):
        (tmp_path / "x.tif").write_bytes(small_tiff([bits], photometric, packed))
        np.testing.assert_array_equal(read_image(tmp_path / "x.tif", (8, 8, 1)).ravel(), expected)
    colors = np.random.default_rng(0).integers(0, 256, (3, steps + 1))
    (tmp_path / "x.tif").write_bytes(small_tiff([bits], 3, packed, t320=(257 * colors).ravel().tolist()))
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif", (8, 8, 3)).reshape(64, 3), colors.T[values])


def small_png(bits, transparent):
    """An 8 x 8 grey PNG of which the left half has the value 1, the right half 0; the value `transparent` is."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    values = np.array([1, 1, 1, 1, 0, 0, 0, 0])
    row = b"\0" + np.packbits((values[:, None] >> np.arange(bits - 1, -1, -1)) & 1).tobytes()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, 0, 0, 0, 0)) + chunk(
        b"tRNS", struct.pack(">H", transparent)
    )
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(8 * row)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("bits", "step"), [(1, 255), (2, 85), (4, 17), (8, 1)])
def test_a_transparent_grey_of_few_bits_becomes_white(tmp_path, bits, step):
    for transparent, expected in ((1, [255, 0]), (0, [step, 255])):
        (tmp_path / "x.png").write_bytes(small_png(bits, transparent))
        assert read_image(tmp_path / "x.png", (8, 8, 1))[0, [0, 7], 0].tolist() == expected


def test_stretching_averages_over_the_side_that_shrinks(tmp_path):
    stripes = np.tile(np.uint8([[0, 255]]), (20, 100))
    cv2.imwrite(str(tmp_path / "x.png"), stripes)  # 20 high, 200 wide
    for image in (read_image(tmp_path / "x.png", (40, 20, 1), resize="stretch"), read_image(tmp_path / "x.png", (16, 20, 1), resize="stretch")):  # fmt: skip
        assert np.abs(image.astype(int) - 128).max() <= 1
    cv2.imwrite(str(tmp_path / "x.png"), stripes.T)
    assert np.abs(read_image(tmp_path / "x.png", (20, 40, 1), resize="stretch").astype(int) - 128).max() <= 1


@pytest.mark.parametrize("extra", [1, 2])
def test_colors_of_a_tiff_of_16_bits_may_be_multiplied_by_alpha(tmp_path, extra):
    """Half transparent, on white."""
    color, alpha = 145 * 257, 32768
    pixel = [color * alpha // 65535 if extra == 1 else color] * 3 + [alpha]
    pixels = np.tile(np.array(pixel, "<u2"), 64).tobytes()
    (tmp_path / "x.tif").write_bytes(small_tiff([16] * 4, 2, pixels, t338=[extra]))
    assert np.abs(read_image(tmp_path / "x.tif", (8, 8, 3)).astype(int) - 200).max() <= 1


def test_what_opencv_says_of_a_tag_is_not_printed(tmp_path, capfd):
    (tmp_path / "x.tif").write_bytes(small_tiff([16], 1, bytes(range(128)), t33550=[1]))
    read_image(tmp_path / "x.tif", (8, 8, 3))
    assert capfd.readouterr() == ("", "")


def test_threads_that_read_images_leave_warnings_as_they_were(tmp_path):
    PIL.Image.new("RGB", (9, 9)).save(tmp_path / "x.png")
    before = list(warnings.filters)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: read_image(tmp_path / "x.png", (8, 8, 3)), range(400)))
    assert warnings.filters == before


def test_jpegs_of_phones_are_decoded_smaller_as_well():
    """They hold a second image, which Pillow calls MPO, or bytes behind their end."""
    buffer = io.BytesIO()
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (320, 480, 3), np.uint8))
    image.save(buffer, "MPO", save_all=True, append_images=[image.resize((48, 32))])
    plain = encode("JPEG", (320, 480))
    for content in (plain, buffer.getvalue(), plain + b"SEFT" * 8):
        shapes = [
            image_files.decode_pixels("photo.jpg", content, None, wanted)[0].shape for wanted in (None, (32, 32, 3))
        ]
        assert shapes == [(320, 480, 3), (80, 120, 3)]


@pytest.mark.parametrize(
    ("mode", "color"), [("RGBA", (200, 100, 50, 128)), ("RGBA", (200, 100, 50, 0)), ("LA", (200, 128))]
)
def test_a_tiff_is_as_transparent_as_a_png(tmp_path, mode, color):
    image = PIL.Image.new(mode, (32, 32), color)
    images = []
    for ending in ("png", "tif"):
        image.save(tmp_path / f"a.{ending}")
        images.append(read_image(tmp_path / f"a.{ending}", SHAPE))
    np.testing.assert_allclose(images[0].astype(int), images[1], atol=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": "center"}, "resize must be one of crop, pad, stretch, nearest, received 'center'"),
        ({"jpeg_size": "half"}, "jpeg_size must be one of full, reduced, received 'half'"),
        ({"shape": (3, 32, 32)}, r"shape must be \(height, width, 1 or 3\), received \(3, 32, 32\)"),
        ({"shape": (32, 32)}, "shape must be"),
        ({"shape": (0, 32, 3)}, "shape must be"),
    ],
)
def test_what_no_image_can_be_brought_to_is_refused(tmp_path, options, message):
    (tmp_path / "a.png").write_bytes(encode("PNG"))
    with pytest.raises(UsageError, match=message):
        read_image(tmp_path / "a.png", **{"shape": SHAPE} | options)


def test_inks_of_a_tiff_are_read_as_colours(tmp_path, capsys):
    errors._said.clear()
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)).convert("CMYK")
    image.save(tmp_path / "inks.tif")
    difference = read_image(tmp_path / "inks.tif", SHAPE).astype(int) - np.asarray(image.convert("RGB"))
    assert abs(difference).max() <= 2 and capsys.readouterr() == ("", "")


def test_avif_may_state_what_holds_for_all_images_of_its_family(tmp_path):
    content = encode("AVIF", (32, 32))
    assert b"avif" in content[16 : int.from_bytes(content[:4], "big")]
    (tmp_path / "a.avif").write_bytes(content)
    (tmp_path / "b.avif").write_bytes(content[:8] + b"mif1" + content[12:])
    np.testing.assert_array_equal(read_image(tmp_path / "b.avif", SHAPE), read_image(tmp_path / "a.avif", SHAPE))


def test_one_path_is_one_path(tmp_path):
    (tmp_path / "a.png").write_bytes(encode("PNG"))
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        assert list_images(path).files == [str(tmp_path / "a.png")]
