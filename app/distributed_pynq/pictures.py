"""Pictures as people have them, turned into the records that the networks take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageEnhance, ImageOps, UnidentifiedImageError

from .errors import InputError

Bytes = npt.NDArray[np.uint8]

SUFFIXES = {".png", ".jpg", ".jpeg"}
# What makes a picture of each EXIF orientation upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def record(path: Path, kind: str) -> Bytes:
    """A PNG or JPEG file as a record: uint8 (3073,) for kind "cnv", (784,) for "lfc".

    A photo is turned the way its camera was held. Raises InputError naming an unreadable file.
    """
    try:
        with Image.open(path, formats=["PNG", "JPEG"]) as picture:
            return (_cnv if kind == "cnv" else _lfc)(_eight_bits(_upright(picture)))
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: unreadable picture, neither PNG nor JPEG at offset 0") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: unreadable picture ({error})") from error


def _upright(picture: Image.Image) -> Image.Image:
    """A picture turned as its EXIF says.

    ImageOps.exif_transpose would write that anew as well, and fails on tags that Pillow cannot.
    """
    try:
        turn = TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        # Broken EXIF makes Pillow raise all kinds of errors, and says nothing about the pixels.
        turn = None
    # Not unless it must: it reads the whole picture, and a JPEG is better read small.
    return picture if turn is None else picture.transpose(turn)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Deep grey cut down to the eight bits that everything later assumes."""
    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))


def _cnv(picture: Image.Image) -> Bytes:
    """The steps of BNN-PYNQ's `image_to_cifar`, to the byte: its label is 1, alpha is left out."""
    picture.thumbnail((32, 32), Image.Resampling.LANCZOS)
    field = Image.new("RGBA", (32, 32), (255, 255, 255, 0))
    field.paste(picture, ((32 - picture.width) // 2, (32 - picture.height) // 2))
    planes = np.asarray(field)[:, :, :3].transpose(2, 0, 1)
    return np.concatenate([np.ones(1, np.uint8), planes.ravel()])


def _lfc(picture: Image.Image) -> Bytes:
    """Ink bright on black, 28x28, as in MNIST; a 28x28 picture stays as it is.

    Contrast, brightness and the cut to the ink are those of BNN-PYNQ's webcam notebook. That then
    fills all 28x28 pixels with the ink, where the networks were trained on MNIST's layout: ink in a
    20x20 box whose centre of mass is the centre of the field. MNIST's layout it is here: lfcW1A1
    gets 96 % of the first 2,000 MNIST digits right when they come as pictures ten times as large,
    and 60 % with the notebook's.
    """
    paper = Image.new("RGBA", picture.size, "white")
    grey = Image.alpha_composite(paper, picture.convert("RGBA")).convert("L")
    if _border(grey) < 128:
        grey = ImageOps.invert(grey)
    if grey.size == (28, 28):
        return np.asarray(ImageOps.invert(grey)).ravel()
    grey = ImageEnhance.Brightness(ImageEnhance.Contrast(grey).enhance(3)).enhance(4)
    ink = ImageOps.invert(grey)
    return _centred(ink.crop(ink.getbbox())).ravel()


def _border(grey: Image.Image) -> float:
    """Median of a picture's outermost pixels: of what was written on."""
    pixels = np.asarray(grey)
    return float(np.median(np.concatenate([*pixels[[0, -1]], *pixels[:, [0, -1]].T])))


def _centred(ink: Image.Image) -> Bytes:
    """Ink fitted into 20x20 and laid with its centre of mass on the centre of 28x28."""
    scale = 20 / max(ink.size)
    width, height = (max(1, round(side * scale)) for side in ink.size)
    fitted = ink.resize((width, height), Image.Resampling.LANCZOS)
    weights = np.asarray(fitted, dtype=float)
    mass = weights.sum() or 1.0
    x, y = (weights.sum(axis) @ np.arange(weights.shape[1 - axis]) / mass for axis in (0, 1))
    field = Image.new("L", (28, 28))
    field.paste(fitted, (round(13.5 - x), round(13.5 - y)))
    return np.asarray(field)
