import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image, ImageCms, ImageOps
from torchvision.transforms import RandomResizedCrop, v2

from se_lightning.data.files import decode
from se_lightning.data.files.decode import BadImage, eval_image, open_rgb, train_image


def picture(width=500, height=375, seed=0):
    """Return a smooth picture with texture and edges, as photographs have."""
    rng = np.random.default_rng(seed)
    layers = np.zeros((height, width, 3))
    for side, weight in ((4, 90), (16, 40), (64, 20), (250, 8)):
        coarse = rng.normal(0, weight, (side, side, 3))
        coarse = Image.fromarray((coarse + 128).clip(0, 255).astype(np.uint8))
        layers += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) - 128.0
    layers[height // 3 : height // 2, width // 4 : width // 2] += 60
    return Image.fromarray((layers + 128).clip(0, 255).astype(np.uint8))


def encoded(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 90} if kind == "JPEG" else {}) | options)
    return file.getvalue()


def pil_rgb(content):
    return Image.open(io.BytesIO(content)).convert("RGB")


def windows(height, width, count):
    image = torch.empty(3, height, width)
    torch.manual_seed(0)
    for _ in range(count):
        yield RandomResizedCrop.get_params(image, (0.08, 1), (3 / 4, 4 / 3))


def torchvisions(image, window, size, mode="bilinear"):
    mode = v2.InterpolationMode(mode)
    crop = v2.functional.resized_crop(image, *window, (size, size), mode, antialias=True)
    return v2.functional.pil_to_tensor(crop).float()


def whole(height, width):
    return 0, 0, height, width


class Window:
    """A window function that records its arguments."""

    def __init__(self, height, width):
        self.box, self.asked = (0, 0, height, width), []

    def __call__(self, *shape):
        self.asked.append(shape)
        return self.box


JPEG = encoded(picture())


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_training_at_full_scale_is_torchvisions_to_two_levels(subsampling, mode):
    content = encoded(picture(), subsampling=subsampling)
    image = pil_rgb(content)
    for window in windows(375, 500, 6):
        found = train_image(content, 224, lambda h, w, box=window: box, interpolation=mode)
        assert found.dtype == torch.uint8
        assert found.shape == (3, 224, 224)
        assert found.permute(1, 2, 0).is_contiguous()
        away = (found.float() - torchvisions(image, window, 224, mode)).abs()
        assert away.max() <= 2
        assert away.mean() < 0.3


def test_the_window_is_given_height_and_width_once():
    for content in (JPEG, encoded(picture(), "PNG"), JPEG[:-9] + b"\x00" * 9 + JPEG[-2:]):
        window = Window(375, 500)
        train_image(content, 8, window)
        assert window.asked == [(375, 500)]


def test_training_at_reduced_scale_stays_near_to_full_scale(monkeypatch):
    # On windows at multiples of 8 pixels, so that only the scale differs.
    content = encoded(picture(1601, 1203))
    image, scales = pil_rgb(content), set()
    original = simplejpeg.decode_jpeg

    def spy(*args, **options):
        pixels = original(*args, **options)
        scales.add(round(1601 / pixels.shape[1]))
        return pixels

    monkeypatch.setattr(decode.simplejpeg, "decode_jpeg", spy)
    for size in (400, 224, 100, 32):
        for window in windows(1203, 1601, 4):
            window = tuple(max(8, edge // 8 * 8) for edge in window)
            found = train_image(content, size, lambda h, w, box=window: box)
            away = (found.float() - torchvisions(image, window, size)).abs()
            assert away.mean() < 1.5
    assert scales == {1, 2, 4, 8}


def test_reduced_scale_moves_a_window_by_at_most_half_a_pixel():
    # On a ramp the mean gives the position: 1 level per 4 pixels.
    ramp = np.broadcast_to(np.arange(1024)[None, :, None] / 4, (1024, 1024, 3))
    content = encoded(Image.fromarray(ramp.astype(np.uint8)), quality=98)
    for left in range(100, 116):
        found = train_image(content, 32, lambda h, w, left=left: (0, left, 512, 512))
        assert abs(found.float().mean() - (left + 255.5 - 1.5) / 4) < 4 / 4 + 0.6


@pytest.mark.parametrize("size", [223, 224])
def test_no_image_is_decoded_smaller_than_needed(size, monkeypatch):
    seen = []
    original = decode._resize
    monkeypatch.setattr(
        decode,
        "_resize",
        lambda pixels, *rest: seen.append(pixels.shape) or original(pixels, *rest),
    )
    content = encoded(picture(1000, 1000))
    for side in (2 * size - 1, 2 * size, 2 * size + 1, 4 * size, 4 * size + 1):
        for top in range(9):
            train_image(content, size, lambda h, w, box=(top, top + 1, side, side): box)
    assert min(min(shape[:2]) for shape in seen) == size
    assert max(max(shape[:2]) for shape in seen) == 2 * size - 1


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "Gray"])
def test_the_decoded_rows_are_bit_identical(subsampling):
    image = np.array(picture(90, 83))
    if subsampling == "Gray":
        content = encoded(Image.fromarray(image).convert("L"))
    else:
        content = simplejpeg.encode_jpeg(image, colorsubsampling=subsampling)
    full = np.array(pil_rgb(content))
    for bottom in range(1, 84):
        found = decode._decode_box(content, (83, 90), 1, (0, 0, bottom, 90), 1000)
        assert np.array_equal(found, full[:bottom])


def test_the_rows_below_the_window_are_not_decoded():
    assert decode._with_rows(JPEG, 16) is not None
    short = decode._with_rows(JPEG, 32)
    assert simplejpeg.decode_jpeg_header(bytes(short))[:2] == (32, 500)
    assert decode._with_rows(encoded(picture(), progressive=True), 16) is None


# Unreadable files.

everywhere = pytest.mark.parametrize(
    "window", [whole, lambda h, w: (0, 0, 20, 20), lambda h, w: (h - 9, w - 9, 9, 9)]
)


@everywhere
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("lost", [1, 2, 3, 4, 5, 10, 300, 10_000])
def test_a_truncated_jpeg_is_refused_wherever_the_window_lies(lost, options, window):
    content = encoded(picture(), **options)[:-lost]
    with pytest.raises(OSError, match="truncated"):
        pil_rgb(content)
    with pytest.raises(BadImage, match=r"^truncated JPEG$"):
        train_image(content, 16, window)
    with pytest.raises(BadImage, match=r"^truncated JPEG$"):
        eval_image(content, 32, 16)


@everywhere
def test_the_end_of_a_thumbnail_is_not_taken_for_the_end_of_the_image(window):
    exif = Image.Exif()
    exif[0x9286] = encoded(picture(40, 30))  # a whole JPEG in a comment
    content = encoded(picture(), exif=exif)
    assert content.count(b"\xff\xd9") == 2
    train_image(content, 16, window)
    with pytest.raises(BadImage, match=r"^truncated JPEG$"):
        train_image(content[:-2], 16, window)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "^empty file$"),
        (
            b"hello, this is no image",
            r"^not an image in JPEG, .*\(it starts with b'hello, this '\)$",
        ),
        (b"<html><body>404", "^not an image"),
        (JPEG[:200], "truncated JPEG"),
        (JPEG[:2], "truncated JPEG"),
        (JPEG[:2] + b"hello", "truncated JPEG"),
        (bytes(1000), "^not an image"),
        (encoded(picture(), "PNG")[:-3000], "^truncated PNG$"),
        (encoded(picture(), "GIF")[:-3000], "^truncated GIF$"),
        (encoded(picture(), "WEBP")[:-3000], "WebP"),
        (encoded(picture(), "BMP")[:-3000], "truncated image"),
        (encoded(Image.new("F", (9, 9)), "TIFF"), "floating-point"),
    ],
)
def test_non_images_are_refused_with_the_reason(content, reason):
    with pytest.raises(BadImage, match=reason):
        train_image(content, 16, whole)
    with pytest.raises(BadImage, match=reason):
        eval_image(content, 16, 16)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "PCX", "TGA", "SGI", "ICNS", "JPEG2000"])
def test_formats_that_data_sets_do_not_use_are_refused_unread(kind, monkeypatch):
    content = encoded(picture(128, 128), kind)
    monkeypatch.setattr("subprocess.Popen", None)  # Pillow would start Ghostscript for EPS
    for read in (lambda: train_image(content, 16, whole), lambda: eval_image(content, 32, 16)):
        with pytest.raises(BadImage, match=r"^not an image in JPEG, PNG, .*it starts with"):
            read()


def test_a_picture_of_several_from_a_phone_is_a_jpeg():
    content = encoded(picture(200, 170), "MPO", save_all=True, append_images=[picture()])
    assert Image.open(io.BytesIO(content)).format == "MPO"
    assert close(content, pil_rgb(content))


@pytest.mark.parametrize("side", [(1, 300_000), (300_000, 1)])
def test_a_thin_image_is_refused_before_it_fills_the_memory(side, monkeypatch):
    content = encoded(Image.new("1", side), "PNG")
    assert train_image(content, 32, lambda h, w: (0, 0, 1, 1)).shape == (3, 32, 32)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(BadImage, match=r"too thin: its \d+x\d+ pixels would be resized to \d+x"):
        eval_image(content, 256, 224)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_damaged_bytes_give_an_image_or_a_reason(kind):
    rng = np.random.default_rng(0)
    whole_file = encoded(picture(60, 50), kind)
    for trial in range(150):
        content = bytearray(whole_file)
        within = len(content) if trial % 2 else min(len(content), 300)  # the header, more often
        for _ in range(rng.integers(1, 9)):
            content[rng.integers(within)] = rng.integers(256)
        for upright in (False, True):
            with contextlib.suppress(BadImage):
                assert train_image(bytes(content), 8, whole, upright=upright).shape == (3, 8, 8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_pillows_limit_against_bombs_holds_and_below_it_there_is_no_noise(kind, monkeypatch):
    content = encoded(picture(), kind)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500 * 375 // 2)
    train_image(content, 16, whole)  # where Pillow warns; pytest makes it an error
    eval_image(content, 32, 16)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500 * 375 // 2 - 1)
    for read in (lambda: train_image(content, 16, whole), lambda: eval_image(content, 32, 16)):
        with pytest.raises(BadImage, match="too large"):
            read()


# Readable color spaces and formats.


def close(content, expected, size=101):
    """Return whether training and evaluation decode that PIL image, with crops and skipped rows."""
    for window in (whole(expected.height, expected.width), (3, 5, 70, 80), (90, 60, 79, 75)):
        found = train_image(content, size, lambda h, w, box=window: box)
        if (found.float() - torchvisions(expected, window, size)).abs().max() > 2:
            return False
    return np.array_equal(np.asarray(open_rgb(content)), np.asarray(expected))


def cmyk():
    rgb = np.asarray(picture(200, 170))
    return Image.fromarray(np.dstack([255 - rgb, rgb[..., :1] // 3]), "CMYK")


def test_cmyk_jpegs_equal_pillows_with_and_without_adobes_marker():
    image = cmyk()
    adobe = encoded(image)
    at = adobe.index(b"\xff\xee\x00\x0eAdobe")
    plain = adobe[:at] + adobe[at + 16 :]
    ycck = adobe[: at + 15] + b"\x02" + adobe[at + 16 :]  # the same numbers in another color space
    for content in (adobe, plain, ycck):
        assert close(content, pil_rgb(content))
    away = np.asarray(open_rgb(adobe)).astype(float) - np.asarray(image.convert("RGB"))
    assert abs(away).mean() < 8
    assert not np.array_equal(np.asarray(open_rgb(ycck)), np.asarray(open_rgb(adobe)))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "RGB"])
def test_pngs_of_each_kind_equal_pillows(mode):
    image = picture(200, 170).convert("RGBA")
    image.putalpha(100)
    image = image.convert("RGB").quantize(64) if mode == "P" else image.convert(mode)
    content = encoded(image, "PNG")
    assert Image.open(io.BytesIO(content)).mode == mode
    assert close(content, pil_rgb(content))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunks(png, *chunks, last=False):
    """Insert chunks after the header of a PNG, or before its end."""
    at = len(png) - 12 if last else 33
    return png[:at] + b"".join(chunk(kind, data) for kind, data in chunks) + png[at:]


LARGE = b"x" * 2_000_000
ODD = {
    "compressed text": [(b"zTXt", b"Comment\0\0" + zlib.compress(LARGE))],
    "international text": [(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(LARGE))],
    "profile": [(b"iCCP", b"icc\0\0" + zlib.compress(LARGE))],
    "many texts": [(b"tEXt", b"Comment%d\0" % i + LARGE) for i in range(34)],
    "method": [(b"iCCP", b"icc\0\7" + zlib.compress(b"x"))],
    "empty profile": [(b"iCCP", b"")],
    "short gamma": [(b"gAMA", b"")],
    "short time": [(b"sRGB", b""), (b"pHYs", b"1")],
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_what_is_in_a_png_beside_its_pixels_does_not_make_it_bad(mode, odd, last):
    plain = encoded(picture(60, 40).convert(mode), "PNG")
    png = with_chunks(plain, *ODD[odd], last=last)
    assert np.array_equal(open_rgb(png), pil_rgb(plain))
    with pytest.raises(BadImage, match=r"truncated|damaged"):
        open_rgb(png[: png.index(b"IDAT") + 60])


@pytest.mark.parametrize("kind", ["eXIf", "zTXt", "iTXt"])
def test_a_png_with_a_large_text_keeps_its_orientation(kind):
    exif = Image.Exif()
    exif[0x112] = 6
    data = exif.tobytes()[6:]
    hexed = b"\nexif\n%8d\n" % (len(data) + 6) + (b"Exif\0\0" + data).hex().encode()
    turned = {
        "eXIf": data,
        "zTXt": b"Raw profile type exif\0\0" + zlib.compress(hexed),
        "iTXt": b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>',
    }[kind]
    png = with_chunks(encoded(picture(60, 40), "PNG"), *ODD["profile"], (kind.encode(), turned))
    assert open_rgb(png, upright=True).size == (40, 60)
    assert open_rgb(png).size == (60, 40)


def test_a_palette_with_transparency_is_read_without_noise():
    content = encoded(picture(200, 170).quantize(16), "PNG", transparency=bytes(range(16)))
    assert train_image(content, 8, whole).shape == (3, 8, 8)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_gray_keeps_the_upper_byte(kind):
    grey = np.asarray(picture(200, 170).convert("L")).astype(np.uint16)
    wide = grey << 8 | 0x7F
    if kind == "PPM":
        content = b"P5 200 170 65535\n" + wide.astype(">u2").tobytes()
    else:
        content = encoded(Image.fromarray(wide), kind)
    expected = Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    assert close(content, expected)


@pytest.mark.parametrize("kind", ["WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_other_formats_equal_pillows(kind):
    content = encoded(picture(200, 170), kind)
    assert close(content, pil_rgb(content))


@pytest.mark.parametrize("options", [{"progressive": True}, {"keep_rgb": True}, {"quality": 100}])
def test_jpegs_of_each_kind_equal_pillows(options):
    content = encoded(picture(200, 170), **options)
    assert close(content, pil_rgb(content))


def test_a_gray_jpeg_equals_pillows():
    content = encoded(picture(200, 170).convert("L"))
    assert close(content, pil_rgb(content))


def test_garbage_after_a_jpegs_end_is_ignored():
    content = encoded(picture(200, 170))
    assert close(content + b"garbage" * 99, pil_rgb(content))
    assert close(content + b"\xff\xd9\xff\xd8" * 9, pil_rgb(content))


def test_images_with_a_few_wrong_bytes_are_read_if_pillow_reads_them():
    content = encoded(picture(200, 170))
    middle = content.index(b"\xff\xda") + 5000
    content = content[:middle] + b"\xff\xd0" + content[middle + 2 :]
    with pytest.raises(ValueError, match="Corrupt"):
        simplejpeg.decode_jpeg(content)
    assert close(content, pil_rgb(content))


def test_icc_profiles_and_comments_before_the_scan_are_ignored():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = encoded(picture(200, 170), icc_profile=profile, comment=b"\xff\xda\xff\xc0" * 9)
    assert close(content, pil_rgb(content))
    padded = content[:2] + b"\xff" * 3 + content[2:]  # fill bytes: legal, and rare
    assert close(padded, pil_rgb(content))


def test_a_single_pixel_fills_the_image():
    for kind in ("JPEG", "PNG"):
        content = encoded(Image.new("RGB", (1, 1), (200, 200, 200)), kind)
        expected = torch.full((3, 16, 16), 200, dtype=torch.uint8)
        assert torch.equal(train_image(content, 16, whole), expected)
        assert torch.equal(eval_image(content, 20, 16), expected)


@pytest.mark.parametrize("side", range(2, 10))
def test_a_jpeg_smaller_than_a_block_is_read_at_full_scale(side):
    content = encoded(picture().resize((side, side)), subsampling=0)
    found = train_image(content, 9, whole).float()
    away = (found - torchvisions(pil_rgb(content), whole(side, side), 9)).abs()
    assert away.max() <= 2


def test_the_first_of_several_frames_is_read():
    frames = [picture(200, 170, seed).quantize(64) for seed in range(3)]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {} if kind == "GIF" else {"lossless": True}
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert Image.open(io.BytesIO(content)).n_frames == 3
        assert close(content, frames[0].convert("RGB"))


# EXIF's orientation.


def oriented(orientation, width=500, height=375, kind="JPEG"):
    exif = Image.Exif()
    exif[0x112] = orientation
    return encoded(picture(width, height), kind, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_each_orientation_is_turned_upright_if_asked(orientation, kind):
    content = oriented(orientation, 200, 170, kind)
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    height, width = image.height, image.width
    assert np.array_equal(np.asarray(open_rgb(content, upright=True)), np.asarray(image))
    for window in windows(height, width, 4):
        ask = Window(height, width)
        ask.box = window
        found = train_image(content, 90, ask, upright=True)
        assert ask.asked == [(height, width)]
        assert (found.float() - torchvisions(image, window, 90)).abs().max() <= 2
    oracle = v2.Compose([v2.Resize(64), v2.CenterCrop(50), v2.PILToTensor()])
    assert torch.equal(eval_image(content, 64, 50, upright=True), oracle(image))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_is_turned_upright_at_reduced_scale(orientation):
    content = oriented(orientation, 960, 720)
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    window = (80, 160, 480, 320)
    found = train_image(content, 80, lambda h, w: window, upright=True)
    assert (found.float() - torchvisions(image, window, 80)).abs().mean() < 1.5


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_orientation_is_ignored_as_torchvision_does_unless_asked(kind):
    content = oriented(6, 200, 170, kind)
    assert close(content, pil_rgb(content))


def test_damaged_exif_data_and_invalid_orientations_are_ignored():
    for content in (
        oriented(9),
        oriented(0),
        oriented(6).replace(b"Exif\0\0MM\0*", b"Exif\0\0XX\0*"),
    ):
        upright = train_image(content, 16, whole, upright=True)
        assert torch.equal(upright, train_image(content, 16, whole))
        assert torch.equal(eval_image(content, 20, 16, upright=True), eval_image(content, 20, 16))


# Evaluation.


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("width", "height"), [(500, 375), (375, 501), (33, 470), (256, 256), (100, 90), (2000, 11)]
)
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (65, 64), (64, 64), (33, 8)])
def test_evaluation_equals_torchvision_bit_for_bit(width, height, resize, crop, mode):
    content = encoded(picture(width, height))
    oracle = v2.Compose(
        [
            v2.Resize(resize, v2.InterpolationMode(mode), antialias=True),
            v2.CenterCrop(crop),
            v2.PILToTensor(),
        ]
    )
    found = eval_image(content, resize, crop, interpolation=mode)
    assert torch.equal(found, oracle(pil_rgb(content)))
    assert found.permute(1, 2, 0).is_contiguous()
    found += 1  # it does not share memory


# Arguments.


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"`interpolation` \(='lanczos'\) must be one of bilinear"):
        train_image(JPEG, 8, whole, interpolation="lanczos")
    with pytest.raises(ValueError, match="`interpolation`"):
        eval_image(JPEG, 8, 8, interpolation="nearest")
    with pytest.raises(ValueError, match=r"`crop` \(=9\) must be from 1 to `resize` \(=8\)"):
        eval_image(JPEG, 8, 9)


@pytest.mark.parametrize("box", [(0, 0, 376, 1), (-1, 0, 5, 5), (0, 490, 9, 11), (0, 0, 0, 5)])
def test_a_window_outside_the_image_is_refused(box):
    for content in (JPEG, encoded(picture(), "PNG")):
        with pytest.raises(ValueError, match="`window` must be inside the image of 375x500 pixels"):
            train_image(content, 8, lambda h, w: box)
