"""Images to the model's tensors and back: PIL, numpy and [B, H, W, C] tensors, of any mode and any size.

The model's tensor is [B, C, H, W] in [-1, 1], of whole latents. Everything else here is in [0, 1].
"""

from __future__ import annotations

import io
import logging
import os
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import PIL.ImageFile  # noqa: F401  # else imported by the first conversion, when no file may be open any more
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .atomic import given_name, write_file
from .errors import ImageError, brief, check_choice, in_one_line
from .file_names import text_of
from .image_formats import WORD_MAX, WRITERS_ERRORS, format_for, recognised, usual_words, words_of
from .regular_files import open_regular
from .tensor_kinds import check_given

logger = logging.getLogger("seamless_vae")

Fit = Literal["crop", "pad", "error"]

# ITU-R BT.601, by which PIL makes grey of colours too.
LUMA = (0.299, 0.587, 0.114)
BYTE_MAX = 255


@dataclass(frozen=True)
class FittedImage:
    """Images as the model takes them, and how to get back to what came in.

    Attributes:
        pixels: [B, channels, H', W'] in [-1, 1]; H' and W' are multiples of the model's downscale factor.
        alpha: opacity [B, H, W] in [0, 1], of the size that `restore` gives; None if the source had none.
        size: (H, W) that `restore` gives. With `fit="pad"`, exactly the size that came in.
    """

    pixels: Tensor
    alpha: Tensor | None
    size: tuple[int, int]

    def restore(self, decoded: Tensor) -> Tensor:
        """Decoded images [B, C, H', W'] without the padding: [B, C, H, W].

        Raises:
            ImageError: `decoded` is not of the size of `pixels`.
        """
        if decoded.shape[-2:] != self.pixels.shape[-2:]:
            raise ImageError(
                f"the decoded image is {_size(decoded.shape[-2:])}, but {_size(self.pixels.shape[-2:])} was encoded. "
                f"Decode the latent of this image."
            )
        return decoded[..., : self.size[0], : self.size[1]]


# The two ranges.


def to_model_range(image: Tensor) -> Tensor:
    """[0, 1] to the model's [-1, 1]."""
    return image * 2 - 1


def to_unit_range(pixels: Tensor, *, in_place: bool = False) -> Tensor:
    """The model's [-1, 1] to [0, 1], without clamping; into the memory of `pixels` if `in_place`."""
    return (pixels.add_(1) if in_place else pixels.add(1)).div_(2)


def bytes_to_model_range(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bytes, 0 to 255, to the model's [-1, 1], computed in `dtype`."""
    return pixels.to(dtype).div_(BYTE_MAX / 2).sub_(1)


# Reading.


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read an image file, turned upright by its EXIF orientation. Of an animation, the first frame.

    Raises:
        ImageError: no such file, not an image, damaged, or of more than 2^30 pixels.
    """
    try:
        file = given_name(path)
    except OSError as error:
        raise ImageError(f"cannot read {path!r}: {in_one_line(error)}. Give the path of an image.") from None
    try:
        with open_regular(file) as opened, recognised(opened, file.name) as image:
            if getattr(image, "n_frames", 1) > 1:
                logger.warning("%s has %d frames; only the first is read.", file.name, image.n_frames)  # type: ignore[attr-defined]
            return upright(image)
    except ImageError:
        raise
    except Exception as error:  # Pillow's readers raise anything on damaged files
        if isinstance(error, OSError) and error.errno is not None:
            raise ImageError(f"cannot read {file}: {in_one_line(error)}. Give the path of an image.") from None
        raise ImageError(f"{file.name} is damaged: {in_one_line(error)}. Download or export it again.") from None


def upright(image: Image.Image) -> Image.Image:
    """The image turned and mirrored as its EXIF orientation says, if that can be read; black is 0."""
    image.load()
    try:
        turned = ImageOps.exif_transpose(image)
    except Exception as error:  # damaged EXIF makes Pillow raise anything
        logger.warning("the EXIF data of an image cannot be read (%s); it is not turned.", in_one_line(error))
        turned = image
    return usual_words(turned, image)


def from_pil(image: Image.Image, *, channels: int = 3, multiple: int = 8, fit: Fit = "pad") -> FittedImage:
    """A PIL image of any mode as a batch of one; see `from_image` for the arguments.

    Palettes, CMYK, YCbCr, HSV and LAB become RGB; transparency of every kind becomes alpha; 16-bit greyscale keeps
    its precision (modes I;16 and I are taken as 0 to 65535, F as 0 to 1; a TIFF of fewer bits as 0 to their largest
    number, and from white to black where it says so). Embedded colour profiles are not applied.

    Raises:
        ImageError: no image of Pillow's, values out of the mode's range, and what `from_image` raises.
    """
    if not isinstance(image, Image.Image):
        raise ImageError(f"this is a {type(image).__name__} and no image of Pillow's. Open it with open_image.")
    return from_image(_pil_values(upright(image)), channels=channels, multiple=multiple, fit=fit)


def from_numpy(array: np.ndarray, *, channels: int = 3, multiple: int = 8, fit: Fit = "pad") -> FittedImage:
    """An array [H, W], [H, W, C] or [B, H, W, C] of bool, uint8, uint16 or float in [0, 1]; see `from_image`.

    Raises:
        ImageError: another type or shape, floats outside [0, 1], and what `from_image` raises.
    """
    if not isinstance(array, np.ndarray):
        raise ImageError(f"an image is {type(array).__name__}; give a numpy array, or use from_image for a tensor.")
    if array.ndim not in (2, 3, 4):
        raise ImageError(f"an array of shape {array.shape} is not an image; give [H, W], [H, W, C] or [B, H, W, C].")
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim == 3:
        array = array[None]
    return from_image(_unit_range(array), channels=channels, multiple=multiple, fit=fit)


def from_image(image: Tensor, *, channels: int = 3, multiple: int = 8, fit: Fit = "pad") -> FittedImage:
    """A batch [B, H, W, C] in [0, 1], as ComfyUI's IMAGE, as the model takes it.

    Args:
        image: C is 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGBA). On any device. Bytes are taken as 0 to 255,
            booleans as black and white.
        channels: of the model. Grey is repeated for an RGB model, RGB becomes luma for a grey one; a model of 4
            channels gets the alpha, opaque if there is none.
        multiple: the model's downscale factor (`config.downscale_factor`).
        fit: what to do with sides that are not multiples of it. "pad" reflects at the right and the bottom, and
            `FittedImage.restore` takes that off again; "crop" keeps the centre, as ComfyUI does; "error" refuses.

    Raises:
        ImageError: a shape or a type that is not an image's, channels that cannot be adapted, or a size that does not
            fit.
    """
    if not isinstance(multiple, int) or multiple < 1:
        raise ImageError(f"multiple is {brief(multiple)}; give the model's downscale factor, such as 8.")
    image = _float_values(image)
    if image.ndim != 4 or 0 in image.shape:
        raise ImageError(f"a tensor of shape {tuple(image.shape)} is not a batch of images; give [B, H, W, C].")
    if image.shape[-1] > 4:
        raise ImageError(f"an image of {image.shape[-1]} channels has no known colours; give 1 to 4, channels last.")
    values = image.float().movedim(-1, 1)  # [B, C, H, W]
    alpha = values[:, -1].clamp(0, 1) if values.shape[1] in (2, 4) else None
    colours = values[:, :-1] if alpha is not None else values
    values = _adapt_channels(colours, alpha, channels)

    height, width = (int(side) for side in values.shape[-2:])
    check_choice("fit", fit, get_args(Fit), ImageError)
    if fit == "error" and (height % multiple or width % multiple):
        nearest = ((multiple * max(1, side // multiple), multiple * -(-side // multiple)) for side in (height, width))
        (h0, h1), (w0, w1) = nearest
        raise ImageError(
            f"an image of {width}x{height} is not a multiple of {multiple}. "
            f"Resize it to {w0}x{h0} or {w1}x{h1}, or choose the fit crop or pad."
        )
    if fit == "crop":
        top, new_height = _centre(height, multiple)
        left, new_width = _centre(width, multiple)
        if not new_height or not new_width:
            raise ImageError(
                f"an image of {width}x{height} has less than {multiple}x{multiple} pixels, so nothing is left to "
                f"crop. Choose the fit pad, or enlarge it."
            )
        window = (..., slice(top, top + new_height), slice(left, left + new_width))
        values = values[window]
        alpha = None if alpha is None else alpha[window]
        height = new_height
        width = new_width
    padded = reflect_to(values, -(-height // multiple) * multiple, -(-width // multiple) * multiple)
    return FittedImage(to_model_range(padded).contiguous(), alpha, (height, width))


def reflect_to(x: Tensor, height: int, width: int) -> Tensor:
    """Extend [..., H, W] at the bottom and the right by reflection, as often as the size asks for."""
    for dim, length in ((-2, height), (-1, width)):
        if length > x.shape[dim]:
            last = x.shape[dim] - 1
            places = torch.arange(length, device=x.device) % max(1, 2 * last)
            x = x.index_select(dim, torch.where(places > last, 2 * last - places, places))
    return x


def _centre(length: int, multiple: int) -> tuple[int, int]:
    return length % multiple // 2, length // multiple * multiple


def _adapt_channels(colours: Tensor, alpha: Tensor | None, channels: int) -> Tensor:
    given = colours.shape[1]
    if channels == 4:
        opacity = torch.ones_like(colours[:, :1]) if alpha is None else alpha[:, None]
        return torch.cat([colours.expand(-1, 3, -1, -1), opacity], dim=1)
    if channels == given:
        return colours
    if channels == 3 and given == 1:
        return colours.expand(-1, 3, -1, -1)
    if channels == 1:
        return (colours * colours.new_tensor(LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    raise ImageError(f"an image cannot be converted to {channels} channels; only models with 1, 3 or 4 take images.")


def _pil_values(image: Image.Image) -> Tensor:
    """[1, H, W, C] in [0, 1] with 1 to 4 channels."""
    mode = image.mode
    if mode.startswith("I;16"):
        words = words_of(image)
        grey = words.astype(np.float32) / WORD_MAX
        clear = image.info.get("transparency")  # of a PNG: the grey that is not seen
        values = grey[..., None] if clear is None else np.stack([grey, words != clear], axis=-1, dtype=np.float32)
        return torch.from_numpy(values)[None]
    if mode in ("I", "F"):
        top = WORD_MAX if mode == "I" else 1
        return _unit_floats(np.asarray(image), f"an image of mode {mode}", "Scale it first.", top)[None, ..., None]
    if mode == "LAB":
        image = _lab_to_rgb(image)
    elif image.has_transparency_data:
        image = image.convert("LA" if mode in ("L", "LA", "La", "1") else "RGBA")
    elif mode == "1":
        image = image.convert("L")
    elif mode not in ("L", "RGB"):
        image = image.convert("RGB")
    values = np.array(image, dtype=np.float32) / BYTE_MAX
    return torch.from_numpy(values if values.ndim == 3 else values[..., None])[None]


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    try:
        from PIL import ImageCms

        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    except (ImportError, ImageCms.PyCMSError) as error:
        raise ImageError(
            f"a LAB image cannot be converted here ({in_one_line(error)}). Convert it to RGB first."
        ) from None
    assert converted is not None
    return converted


def _float_values(image: Tensor) -> Tensor:
    """A batch of images as floats in [0, 1], of any type that has a known range."""
    check_given(image, "the image", ImageError)
    if image.is_floating_point():
        return image.float()
    if image.dtype in (torch.bool, torch.uint8):
        return image.float() / (BYTE_MAX if image.dtype == torch.uint8 else 1)
    raise ImageError(f"an image of {image.dtype} has no known range; give bytes, or floats in [0, 1].")


def _unit_range(array: np.ndarray) -> Tensor:
    if array.dtype == np.bool_:
        return torch.from_numpy(array.astype(np.float32))
    if array.dtype.type in (np.uint8, np.uint16):  # in any order of bytes
        return torch.from_numpy(array.astype(np.float32) / (BYTE_MAX if array.dtype.type is np.uint8 else WORD_MAX))
    if not np.issubdtype(array.dtype, np.floating):
        raise ImageError(f"an array of {array.dtype} has no known range; give uint8, uint16, or floats in [0, 1].")
    return _unit_floats(array, "an array of floats", "Divide by its white, or give uint8.")


def _unit_floats(array: np.ndarray, what: str, remedy: str, top: float = 1) -> Tensor:
    """Floats in [0, top] as float32 in [0, 1]. What is beyond by no more than rounding is cut off.

    Rounding adds up where an image was resized or its colours were converted: it is a few steps of the type, and at
    least half a step of an 8-bit image.
    """
    values = array.astype(np.float64) / top
    beyond = max(4 * np.finfo(array.dtype).eps if np.issubdtype(array.dtype, np.floating) else 0, 0.5 / BYTE_MAX)
    if values.size and not (values.min() >= -beyond and values.max() <= 1 + beyond):  # NaN is neither
        low = array.min()
        high = array.max()
        raise ImageError(f"{what} has values from {low:.9g} to {high:.9g}; 0 to {top} are taken. {remedy}")
    return torch.from_numpy(values.clip(0, 1).astype(np.float32))


# Giving back.


def to_image(pixels: Tensor) -> Tensor:
    """Model's pixels [B, C, H, W] in [-1, 1] to a batch [B, H, W, C] clamped to [0, 1], as ComfyUI's IMAGE: float32."""
    return to_unit_range(pixels.float()).clamp_(0, 1).movedim(1, -1).contiguous()


def to_numpy(pixels: Tensor, dtype: npt.DTypeLike = np.uint8) -> np.ndarray:
    """Model's pixels [B, C, H, W] in [-1, 1] to an array [B, H, W, C] of uint8, uint16, or floats in [0, 1].

    Raises:
        ImageError: pixels that are not finite, or another dtype.
    """
    if not torch.isfinite(pixels).all():
        raise ImageError("the decoded image has values that are not finite. Decode in float32 or bfloat16.")
    values = to_image(pixels.detach()).cpu().numpy()
    try:
        kind = np.dtype(dtype).type
    except (TypeError, ValueError):
        kind = np.void
    if issubclass(kind, np.floating):
        return values.astype(dtype)
    if kind not in (np.uint8, np.uint16):
        raise ImageError(f"an image cannot be given as {brief(dtype)}; choose uint8, uint16 or a float type.")
    return (values * np.iinfo(kind).max).round().astype(dtype)


def to_pil(pixels: Tensor, alpha: Tensor | None = None) -> list[Image.Image]:
    """Model's pixels [B, C, H, W] in [-1, 1] to PIL images: mode L, RGB or RGBA by the channels, 1, 3 or 4.

    Args:
        alpha: opacity [B, H, W] in [0, 1] to go with 1 or 3 channels: mode LA or RGBA.

    Raises:
        ImageError: another number of channels, an alpha that does not match, or pixels that are not finite.
    """
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3, 4):
        raise ImageError(
            f"a tensor of shape {tuple(pixels.shape)} is not a batch of images; give [B, 1, 3 or 4, H, W]."
        )
    if alpha is not None:
        if pixels.shape[1] == 4 or alpha.shape != (pixels.shape[0], *pixels.shape[2:]):
            raise ImageError(
                f"an alpha of shape {tuple(alpha.shape)} does not go with pixels of {tuple(pixels.shape)}; "
                f"give [B, H, W] beside 1 or 3 channels."
            )
        pixels = torch.cat([pixels, to_model_range(alpha[:, None].to(pixels))], dim=1)
    return [Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each) for each in to_numpy(pixels)]


def write_image(image: Image.Image, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
    """Save an image in the format of the path's ending, whole or not at all.

    Args:
        overwrite: False raises if the path exists, even if it was made meanwhile.

    Raises:
        ImageError: an ending of no known format, a mode or a size that the format lacks, or a path that cannot be
            written.
    """
    name = os.path.basename(text_of(path))
    form = format_for(image, name)
    try:
        write_file(path, lambda file: image.save(file, format=form), overwrite=overwrite)
    except FileExistsError:
        raise ImageError(f"{path} exists already. Give another name, or ask for it to be overwritten.") from None
    except OSError as error:
        if error.errno is None:  # Pillow's own, about the mode or the size
            raise ImageError(f"{name}: {in_one_line(error)}. Save it as PNG.") from None
        raise ImageError(
            f"cannot write {path}: {in_one_line(error)}. Check the name, the folder and the free space."
        ) from None
    except WRITERS_ERRORS as error:
        raise ImageError(f"{name}: {type(error).__name__}: {in_one_line(error)}. Save it as PNG.") from None


def check_writable(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Raise ImageError unless images of this mode can be saved in the format of the path's ending.

    Args:
        image: one of the mode, of any size.
    """
    name = os.path.basename(text_of(path))
    form = format_for(image, name)
    try:
        image.save(io.BytesIO(), format=form)
    except (OSError, *WRITERS_ERRORS) as error:
        raise ImageError(f"{name}: {in_one_line(error)}. Save it as PNG.") from None


def _size(shape: torch.Size | tuple[int, ...]) -> str:
    return f"{shape[-1]}x{shape[-2]}"
