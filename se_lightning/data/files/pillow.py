"""Reading of image files with Pillow.

Only the formats of data sets are read, recognized by their content. Pillow knows many more, among
them EPS, for which it starts another program. Its warnings are not shown.
"""

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError

__all__ = ["BadImage", "open_rgb", "orientation", "turned"]

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_KINDS = {b"\xff\xd8": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"RIFF": "WebP"}
_ORIENTATION = 0x112  # EXIF's tag
# Exceptions of Pillow on damaged files.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError),
    *(AttributeError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError),
)


class BadImage(ValueError):  # noqa: N818 - the name is clear without "Error"
    """Content that is not a complete image; the message gives the reason, without the file."""


def open_rgb(content: bytes, upright: bool = False) -> Image.Image:
    """Read an image, or its first frame, as RGB with Pillow.

    Transparency is dropped. For 16-bit gray the upper byte is used, as Pillow does for 16-bit
    color; its conversion of gray would make nearly all of it white.

    Args:
        content: The file.
        upright: Apply the EXIF orientation.

    Raises:
        BadImage: If the content is not a complete image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(content), formats=_FORMATS)
            image.load()
            rgb = _rgb(image)
        except _DAMAGE as error:
            raise BadImage(_why(content, error)) from error
        turn = _turn(image) if upright else 1
    return rgb if turn == 1 else Image.fromarray(turned(np.asarray(rgb), turn))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # I;16 and variants; I for 16-bit PGM
        grey = np.asarray(image).clip(0, 0xFFFF) >> 8
        image = Image.fromarray(grey.astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, without a defined white")
    return image.convert("RGB")


def _why(content: bytes, error: Exception) -> str:
    kind = next((name for magic, name in _KINDS.items() if content.startswith(magic)), "image")
    if not content:
        return "empty file"
    if isinstance(error, Image.DecompressionBombError):
        return f"too large: {error}"
    if isinstance(error, UnidentifiedImageError):
        if kind == "image":
            return f"not an image in {', '.join(_FORMATS)} (it starts with {content[:12]!r})"
        return f"damaged or truncated {kind}: its header cannot be read"
    return f"truncated {kind}" if "truncated" in str(error).lower() else f"damaged {kind}: {error}"


def _turn(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8: 1 is upright, 5 to 8 swap height and width."""
    try:
        turn = image.getexif().get(_ORIENTATION, 1)
    except _DAMAGE:  # the image itself may be fine
        return 1
    return turn if turn in range(1, 9) else 1


def orientation(content: bytes) -> int:
    """Return the EXIF orientation of a file, 1 to 8; 1 if it cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _turn(Image.open(io.BytesIO(content), formats=_FORMATS))
        except _DAMAGE:  # open_rgb will raise
            return 1


def turned(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Return a view of pixels (h, w, 3), turned upright from an EXIF orientation."""
    if turn >= 5:
        pixels = pixels.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
