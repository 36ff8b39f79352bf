"""The 1,797 handwritten digits that the package carries, enlarged to what the networks take.

Source: the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI
Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0), the same 1,797 that
scikit-learn's `load_digits` serves. digits-licence.txt tells what was changed.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

Images = npt.NDArray[np.uint8]

CLASSES = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
SIDE = {"lfc": 28, "cnv": 32}
"""Side in pixels of the picture that each kind of network takes."""


def load(part: Literal["training", "held-out"], kind: str) -> tuple[Images, Images]:
    """Images and labels of one part of the digits; every third one (index % 3 == 2) is held out.

    Images are uint8: (n, 784) grey for kind "lfc", (n, 3072) planar RGB for kind "cnv".
    Labels are uint8 (n,), 0 to 9. n is 1,198 in training, 599 held out.
    """
    originals, labels = table()
    chosen = (np.arange(len(labels)) % 3 == 2) == (part == "held-out")
    grey = enlarge(originals[chosen], SIDE[kind]).reshape(chosen.sum(), -1)
    return (np.tile(grey, 3) if kind == "cnv" else grey), labels[chosen]


def table() -> tuple[Images, Images]:
    """All digits as published: ink of 0 to 16 as uint8 (1797, 8, 8), and labels (1797,)."""
    rows = np.loadtxt(Path(__file__).with_name("digits.csv.gz"), dtype=np.uint8, delimiter=",")
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1]


def enlarge(originals: Images, side: int) -> Images:
    """Digits (n, 8, 8) with ink of 0 to 16 as grey pictures (n, side, side), ink bright on black.

    A margin of one original pixel, since the digits touch their frame and 3x3 convolutions see
    little of a border. Bicubic, since LFC sees nothing but the outline of what is 128 or brighter.
    """
    grey = (originals.astype(np.uint16) * 255 // 16).astype(np.uint8)
    framed = np.pad(grey, ((0, 0), (1, 1), (1, 1)))
    size = (side, side)
    pictures = (Image.fromarray(digit).resize(size, Image.Resampling.BICUBIC) for digit in framed)
    return np.stack([np.asarray(picture) for picture in pictures])
