"""Decoding of image files to uint8 tensors: fast in training, exactly as in Pillow in evaluation.

Training decodes ordinary JPEGs with libjpeg-turbo, at reduced scale if the crop is large enough,
and without the rows below the crop. Pillow decodes everything else: other formats, other color
spaces, and files that libjpeg-turbo refuses. So Pillow alone decides whether a file is readable.

Images above Pillow's limit against decompression bombs are refused.
"""

import struct
from collections.abc import Callable, Iterator

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from se_lightning.data.files.pillow import BadImage, open_rgb, orientation, turned

__all__ = ["BadImage", "check_interpolation", "eval_image", "open_rgb", "train_image"]

Box = tuple[int, int, int, int]  # top, left, height, width, in pixels

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_MAX_RESIZED = 2**26  # pixels (200 MB) of an image resized for evaluation
_SCAN = 0xDA  # the marker of JPEG's compressed pixels


def train_image(
    content: bytes,
    size: int,
    window: Callable[[int, int], Box],
    *,
    upright: bool = False,
    interpolation: str = "bilinear",
) -> Tensor:
    """Decode an image, crop a window and resize it, antialiased, to a square.

    At full scale the result is that of torchvision on a PIL image, within one or two gray levels.
    JPEGs are decoded at 1/2, 1/4 or 1/8 scale if the window still has ``size`` pixels on each
    side; its edges are rounded to pixels of that scale. Below the window, missing bytes are
    detected, but wrong ones are not.

    Args:
        content: The file.
        size: Side of the result, pixels.
        window: Function of the image's height and width that returns the window: top, left,
            height, width. Called once.
        upright: Apply the EXIF orientation first; torchvision and timm do not.
        interpolation: ``"bilinear"`` or ``"bicubic"``.

    Shape:
        (3, size, size) uint8, in the memory format channels_last.

    Raises:
        BadImage: If the content is not a complete image.
        ValueError: If the window is not inside the image, or the interpolation is unknown.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (40, 30), "red").save(file, "PNG")
        >>> train_image(file.getvalue(), 2, lambda height, width: (0, 0, height, width))[:, 0, 0]
        tensor([255,   0,   0], dtype=torch.uint8)
    """
    check_interpolation(interpolation)
    box = pixels = None
    shape = _jpeg_shape(content)
    if shape is not None:
        turn = _jpeg_turn(content) if upright else 1
        box = _ask(window, *(shape[::-1] if turn >= 5 else shape))
        pixels = _decode_box(content, shape, turn, box, size)
    if pixels is None:
        image = np.array(open_rgb(content, upright))
        top, left, height, width = box or _ask(window, *image.shape[:2])
        pixels = image[top : top + height, left : left + width]
    return _resize(pixels, size, interpolation)


def eval_image(
    content: bytes,
    resize: int,
    crop: int,
    *,
    upright: bool = False,
    interpolation: str = "bilinear",
) -> Tensor:
    """Decode an image, resize its shorter side and crop the center, bit for bit as torchvision.

    Args:
        content: The file.
        resize: Shorter side after resizing, pixels.
        crop: Side of the result, pixels, at most ``resize``.
        upright: Apply the EXIF orientation first; torchvision and timm do not.
        interpolation: ``"bilinear"`` or ``"bicubic"``.

    Shape:
        (3, crop, crop) uint8, in the memory format channels_last.

    Raises:
        BadImage: If the content is not a complete image, or the image is so thin that resizing its
            shorter side would give more than 67 million pixels.
        ValueError: If ``crop`` is not from 1 to ``resize``, or the interpolation is unknown.
    """
    check_interpolation(interpolation)
    if not 0 < crop <= resize:
        raise ValueError(f"`crop` (={crop}) must be from 1 to `resize` (={resize}).")
    image = open_rgb(content, upright)
    width, height = (int(resize * side / min(image.size)) for side in image.size)
    if width * height > max(_MAX_RESIZED, 4 * resize**2):
        raise BadImage(
            f"too thin: its {image.width}x{image.height} pixels would be resized to "
            f"{width}x{height}"
        )
    image = image.resize((width, height), _FILTERS[interpolation])
    # Round half to even, as torchvision does.
    top, left = round((height - crop) / 2), round((width - crop) / 2)
    image = image.crop((left, top, left + crop, top + crop))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _jpeg_turn(content: bytes) -> int:
    if all(content[at + 4 : at + 10] != b"Exif\0\0" for _, at in _segments(content)):
        return 1
    return orientation(content)


def _jpeg_shape(content: bytes) -> tuple[int, int] | None:
    """Return height and width of an ordinary JPEG, gray or YCbCr; None leaves it to Pillow."""
    if content[:2] != b"\xff\xd8":
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(content)
    except (ValueError, KeyError):  # KeyError: a subsampling unknown to simplejpeg
        return None
    limit = Image.MAX_IMAGE_PIXELS
    ordinary = colors in ("YCbCr", "Gray") and not (limit and height * width > 2 * limit)
    return (height, width) if ordinary else None


def _decode_box(
    content: bytes, shape: tuple[int, int], turn: int, box: Box, size: int
) -> np.ndarray | None:
    """Return the pixels (h, w, 3) in a box of the upright image; None if the JPEG is refused.

    The scale is a power of two that leaves both sides at least ``size``; 7/8, 5/8 and 3/8 would
    be slower than the next larger power.
    """
    top, left, bottom, right = box[0], box[1], box[0] + box[2], box[1] + box[3]
    scale, short = 1, None
    while scale < 8 and min(box[2:]) >= 2 * scale * size:
        scale *= 2
    height, width = shape
    # Whole blocks, and the row below, which chroma upsampling of the last block may need; otherwise
    # the rows above would change.
    rows = (bottom // 16 + 1) * 16
    if turn == 1 and rows < height and (short := _with_rows(content, rows)):
        height = rows
    try:
        pixels = simplejpeg.decode_jpeg(
            short or content,
            min_height=-(-height // scale),
            min_width=-(-width // scale),
            strict=short is None,  # missing rows always cause a warning
        )
    except ValueError:
        return None
    top, left, bottom, right = ((edge + scale // 2) // scale for edge in (top, left, bottom, right))
    return np.ascontiguousarray(turned(pixels, turn)[top:bottom, left:right])


def _segments(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield marker and position of each segment of a JPEG's header, up to the first scan."""
    at = 2
    while at + 10 < len(content) and content[at] == 0xFF:
        yield content[at + 1], at
        if content[at + 1] == _SCAN:
            return
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")


def _with_rows(content: bytes, rows: int) -> bytearray | None:
    """Return a JPEG's content with a smaller height in its header; None if that is unsafe.

    The decoder then stops early, which saves an eighth of the time over random crops.
    """
    frame = at = marker = 0
    for marker, at in _segments(content):
        if marker in (0xC0, 0xC1):  # baseline or extended; not progressive
            frame = at
    if marker != _SCAN:
        return None
    one_scan = frame and content[at + 4] == content[frame + 9]  # with all components
    # Only the end marker shows that no row is cut off, as the last ones are not decoded.
    if not one_scan or content.rfind(b"\xff\xd9", at) < 0:
        return None
    short = bytearray(content)
    struct.pack_into(">H", short, frame + 5, rows)
    return short


def _resize(pixels: np.ndarray, size: int, interpolation: str) -> Tensor:
    # With the batch dimension added first, torch recognizes channels_last, which is twice as fast.
    images = torch.from_numpy(pixels).unsqueeze(0).permute(0, 3, 1, 2)
    return interpolate(images, (size, size), mode=interpolation, antialias=True)[0]


def _ask(window: Callable[[int, int], Box], height: int, width: int) -> Box:
    top, left, box_height, box_width = box = window(height, width)
    inside = 0 <= top < top + box_height <= height and 0 <= left < left + box_width <= width
    if not inside:
        raise ValueError(
            f"`window` must be inside the image of {height}x{width} pixels, but returned (top, "
            f"left, height, width) = {box}."
        )
    return box


def check_interpolation(name: str) -> None:
    """Check the name of an interpolation."""
    if name not in _FILTERS:
        raise ValueError(f"`interpolation` (={name!r}) must be one of {', '.join(_FILTERS)}.")
