"""Pictures become the records that BNN-PYNQ makes of them."""

import gzip
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from distributed_pynq import pictures
from distributed_pynq.errors import InputError


def image_to_cifar(path):
    """Record that BNN-PYNQ's image_to_cifar writes for a file, by its published steps."""
    image = Image.open(path)
    image.thumbnail((32, 32), Image.Resampling.LANCZOS)
    background = Image.new("RGBA", (32, 32), (255, 255, 255, 0))
    background.paste(image, (int((32 - image.size[0]) / 2), int((32 - image.size[1]) / 2)))
    pixels = np.array(background)
    return np.concatenate([[1], *(pixels[:, :, plane].flatten() for plane in range(3))])


def photo(size, mode="RGB"):
    """Smooth colours with some noise, as a photo has them."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    planes = np.stack([255 * x / width, 255 * y / height, 255 * (x + y) / (width + height)], axis=2)
    noise = np.random.default_rng(1).normal(0, 9, planes.shape)
    colours = Image.fromarray(np.clip(planes + noise, 0, 255).astype(np.uint8))
    if mode in ("RGBA", "LA"):
        colours.putalpha(Image.fromarray((255 * x / width).astype(np.uint8)))
    return colours.convert(mode)


@pytest.mark.parametrize("size", [(32, 32), (300, 200), (201, 333), (9, 20), (1, 1), (2000, 3)])
@pytest.mark.parametrize(
    ("mode", "suffix"),
    [(mode, "png") for mode in ("RGB", "RGBA", "L", "LA", "P", "1")]
    + [(mode, "jpg") for mode in ("RGB", "L", "CMYK")],
)
def test_cnv_record_is_that_of_image_to_cifar(tmp_path, size, mode, suffix):
    path = tmp_path / f"photo.{suffix}"
    photo(size, mode).save(path)
    record = pictures.record(path, "cnv")
    assert record.dtype == np.uint8
    assert np.array_equal(record, image_to_cifar(path))


def test_deep_grey_keeps_its_shades(tmp_path):
    shades = np.repeat(np.arange(0, 65536, 2048, dtype=np.uint16), 32).reshape(32, 32)
    Image.fromarray(shades).save(tmp_path / "deep.png")
    record = pictures.record(tmp_path / "deep.png", "cnv")
    assert np.array_equal(record[1:], np.tile((shades >> 8).astype(np.uint8).ravel(), 3))


@pytest.mark.parametrize("kind", ["cnv", "lfc"])
def test_photo_is_turned_the_way_its_camera_was_held(tmp_path, kind):
    side = 32 if kind == "cnv" else 28
    upright = photo((side, side))
    turned = Image.Exif()
    turned[0x0112] = 6
    upright.save(tmp_path / "upright.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=turned)
    assert np.array_equal(
        pictures.record(tmp_path / "turned.png", kind),
        pictures.record(tmp_path / "upright.png", kind),
    )


def exif(*entries):
    """EXIF of entries (tag, type, count, four bytes), which need not fit one another."""
    packed = b"".join(struct.pack(">HHL4s", *entry) for entry in entries)
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + packed + b"\0\0\0\0"


def orientation(number):
    return (0x0112, 3, 1, struct.pack(">H2x", number))


@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_every_orientation_is_that_of_pillow(tmp_path, number, suffix):
    photo((32, 20)).save(tmp_path / f"held.{suffix}", exif=exif(orientation(number)))
    with Image.open(tmp_path / f"held.{suffix}") as held:
        ImageOps.exif_transpose(held).save(tmp_path / "upright.png")
    assert np.array_equal(
        pictures.record(tmp_path / f"held.{suffix}", "cnv"),
        pictures.record(tmp_path / "upright.png", "cnv"),
    )


@pytest.mark.parametrize(
    ("block", "turned"),
    [
        (exif(orientation(6), (0x0100, 9, 1, b"\xff\xff\xff\xff")), True),
        (exif(orientation(6), (0x0128, 2, 4, b"two\0")), True),
        (exif(orientation(6), (0x011A, 2, 4, b"dpi\0")), True),
        (exif((0x0112, 2, 4, b"six\0")), False),
        (b"Exif\0\0no TIFF at all", False),
    ],
    ids=["width below 0", "unit in words", "resolution in words", "orientation in words", "noise"],
)
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_broken_exif_does_not_spoil_the_pixels(tmp_path, block, turned, suffix):
    photo((32, 20)).save(tmp_path / f"broken.{suffix}", exif=block)
    with Image.open(tmp_path / f"broken.{suffix}") as broken:
        upright = broken.transpose(Image.Transpose.ROTATE_270) if turned else broken
        upright.save(tmp_path / "upright.png", exif=b"")
    assert np.array_equal(
        pictures.record(tmp_path / f"broken.{suffix}", "cnv"),
        pictures.record(tmp_path / "upright.png", "cnv"),
    )


def digit(ink=255):
    """A "7" as MNIST lays it out: ink bright on black."""
    grey = np.zeros((28, 28), np.uint8)
    grey[5:8, 6:22] = ink
    for row in range(8, 25):
        grey[row, 20 - row // 2 : 23 - row // 2] = ink
    return grey


@pytest.mark.parametrize("paper", ["black", "white"])
def test_mnist_picture_stays_as_it_is(tmp_path, paper):
    pixels = digit() if paper == "black" else 255 - digit()
    Image.fromarray(pixels).save(tmp_path / "7.png")
    assert np.array_equal(pictures.record(tmp_path / "7.png", "lfc"), digit().ravel())


def test_ink_on_transparent_paper(tmp_path):
    ink = Image.new("RGBA", (28, 28), (0, 0, 0, 0))
    ink.putalpha(Image.fromarray(digit()))
    ink.save(tmp_path / "7.png")
    assert np.array_equal(pictures.record(tmp_path / "7.png", "lfc"), digit().ravel())


@pytest.mark.parametrize("offset", [(0, 0), (300, 40), (10, 250)])
def test_ink_is_found_and_centred_wherever_it_is(tmp_path, offset):
    paper = Image.new("L", (640, 480), 200)
    large = Image.fromarray(digit()).resize((168, 168))
    paper.paste(50, (60 + offset[0], 40 + offset[1]), large.point(lambda v: 255 * (v > 127)))
    paper.save(tmp_path / "7.jpg", quality=95)
    seen = pictures.record(tmp_path / "7.jpg", "lfc").reshape(28, 28)
    rows, _ = np.nonzero(seen >= 128)
    assert 19 <= rows.max() - rows.min() + 1 <= 21
    weights = seen / seen.sum()
    centre = [(weights.sum(1) @ np.arange(28)), (weights.sum(0) @ np.arange(28))]
    assert np.allclose(centre, 13.5, atol=0.6)


def test_empty_paper_has_no_ink(tmp_path):
    Image.new("RGB", (100, 80), "white").save(tmp_path / "nothing.png")
    assert not pictures.record(tmp_path / "nothing.png", "lfc").any()


@pytest.mark.parametrize("kind", ["cnv", "lfc"])
@pytest.mark.parametrize("content", ["empty", "text", "truncated", "gif", "bomb"])
def test_unreadable_picture_is_named(tmp_path, kind, content):
    path = tmp_path / "picture.png"
    photo((300, 200)).save(path, format="GIF" if content == "gif" else "PNG")
    whole = path.read_bytes()
    # The header's width and height, made 65,535 each.
    bomb = whole[:16] + b"\0\0\xff\xff" * 2 + whole[24:]
    path.write_bytes(
        {
            "empty": b"",
            "text": b"hello",
            "truncated": whole[: len(whole) // 2],
            "gif": whole,
            "bomb": bomb,
        }[content]
    )
    with pytest.raises(InputError, match=rf"^{path}: unreadable picture"):
        pictures.record(path, kind)


def test_enlarged_mnist_digits_become_what_they_were(tmp_path, shared):
    packed = (shared / "data" / "mnist" / "t10k-images-idx3-ubyte.gz").read_bytes()
    pixels = np.frombuffer(gzip.decompress(packed), np.uint8, 784 * 50, 16)
    agreement = []
    for original in pixels.reshape(50, 28, 28):
        large = Image.fromarray(255 - original).resize((280, 280))
        large.save(tmp_path / "digit.png")
        seen = pictures.record(tmp_path / "digit.png", "lfc").reshape(28, 28)
        agreement.append(np.mean((seen >= 128) == (original >= 128)))
    assert np.mean(agreement) > 0.92
