"""Reading of image files with Pillow.

Only the formats of data sets are read, recognized by their content. Pillow knows many more, among
them EPS, for which it starts another program. Its warnings are not shown.
"""

import contextlib
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
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # the chunks of a PNG that make its pixels
# Texts that Pillow reads an orientation from.
_TURNS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
# Exceptions of Pillow on damaged files.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError),
    *(AttributeError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError),
)


class BadImage(ValueError):  # noqa: N818 - the name is clear without "Error"
    """Content that is not a complete image; the message gives the reason, without the file."""


def open_rgb(content: bytes, upright: bool = False) -> Image.Image:
    """Read an image, or its first frame, as RGB with Pillow.

    Transparency is dropped, and so is everything in a PNG that is not pixels: Pillow refuses large
    or damaged texts and color profiles, which it does not apply. For 16-bit gray the upper byte is
    used, as Pillow does for 16-bit color; its conversion of gray would make nearly all of it white.

    Args:
        content: The file.
        upright: Apply the EXIF orientation.

    Raises:
        BadImage: If the content is not a complete image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = _loaded(content)
            rgb = _rgb(image)
        except _DAMAGE as error:
            raise BadImage(_why(content, error)) from error
        turn = _turn(image) if upright else 1
    return rgb if turn == 1 else Image.fromarray(turned(np.asarray(rgb), turn))


def _loaded(content: bytes) -> Image.Image:
    """Open and decode an image, a PNG if necessary without the texts and profiles in it."""
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
        image.load()
        return image
    except Image.DecompressionBombError:
        raise
    except _DAMAGE:
        if not content.startswith(b"\x89PNG"):
            raise
        for turns in (True, False):
            with contextlib.suppress(*_DAMAGE):
                image = Image.open(io.BytesIO(_bare_png(content, turns=turns)), formats=("PNG",))
                image.load()
                return image
        raise


def _bare_png(content: bytes, *, turns: bool) -> bytes:
    """Return a PNG without the chunks that do not change its pixels or, if asked, turn them."""
    parts, at, kind = [content[:8]], 8, b""
    while at + 8 <= len(content) and kind != b"IEND":
        kind = content[at + 4 : at + 8]
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        turning = kind == b"eXIf" or content.startswith(_TURNS, at + 8)
        if kind in _PIXELS or (turns and turning):
            parts.append(content[at:end])
        at = end
    return b"".join(parts)


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
