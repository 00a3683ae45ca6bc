"""Check of the images that a network gets."""

from torch import Tensor

__all__ = ["check_images"]


def check_images(x: Tensor, in_channels: int, min_size: int, image_size: int | None = None) -> None:
    """Refuse images that the network cannot take."""
    if x.ndim != 4 or x.shape[1] != in_channels:
        raise ValueError(
            f"The network takes images (N, {in_channels}, H, W), got {list(x.shape)}; set "
            f"`in_channels` (={in_channels}) to the number of image channels."
        )
    if min_size > 1 and min(x.shape[2:]) < min_size:
        raise ValueError(
            f"The network takes images of at least {min_size}x{min_size} pixels, got "
            f"{x.shape[2]}x{x.shape[3]}; enlarge them, or use a network for small images such as "
            "se_resnet20."
        )
    if image_size is not None and (x.shape[2], x.shape[3]) != (image_size, image_size):
        raise ValueError(
            f"The network was built for images of {image_size}x{image_size} pixels, got "
            f"{x.shape[2]}x{x.shape[3]}; set `image_size` (={image_size}) to their size."
        )
