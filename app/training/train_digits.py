#!/usr/bin/env python3
"""Train the parameter sets `digits` and pack them into distributed_pynq/digits-params.tar.xz.

    pip install -r app/training/requirements.txt
    python app/training/train_digits.py [NETWORK...]

Each network learns from the training part of the digits with straight-through estimators
(Courbariaux et al., "Binarized Neural Networks", 2016, https://arxiv.org/abs/1602.02830), is
folded into the integers that its overlay works with, written in BNN-PYNQ's folder format, and then
judged as a board would run it: by the files, bit for bit, on the held-out part. Recipes were chosen
on a split of the training part. Seeds are fixed: the same machine gives the same archive again, in
about 20 minutes of one core.
"""

import argparse
import lzma
import shutil
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

APP = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(APP), str(APP / "standin")]

import overlays  # noqa: E402
from distributed_pynq import digits  # noqa: E402
from overlays import classes as classes_of  # noqa: E402
from overlays.parameters import Shape  # noqa: E402

ARCHIVE = APP / "distributed_pynq" / "digits-params.tar.xz"
EPOCHS = {"lfcW1A1": 150, "lfcW1A2": 150, "cnvW1A1": 25, "cnvW1A2": 25, "cnvW2A2": 35}
BATCH = 64
RATE = 0.003
SEED = 1797
EPSILON = 1e-5
CUTS = {1: (0.0,), 2: (-0.5, 0.5)}
"""Where real numbers are cut into one bit's levels (-1, 1) and two bits' (-1, 0, 1)."""
SPREAD = {1: 0.1, 2: 0.8}
"""Range of fresh weights: near the cuts, so that few gradients change a level early on."""
NEVER = 0x7FFF
"""The threshold of rows without a class: no accumulator exceeds it."""


class Quantise(torch.autograd.Function):
    """The nearest of the levels of one or two bits; the gradient passes straight through."""

    @staticmethod
    def forward(ctx, x: Tensor, bits: int) -> Tensor:
        """The levels of x."""
        ctx.save_for_backward(x)
        return sum((x > cut).float() for cut in CUTS[bits]) * (2 / bits) - 1

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient where x lies among the levels, none beyond."""
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1), None


class Layer(nn.Module):
    """A quantised weight matrix and the batch norm of its sums.

    The batch norm shifts but has no scale of its own. Its thresholds are therefore always crossed
    upwards, as an overlay does it, and no weights need to change their sign for that.
    """

    def __init__(self, shape: Shape, rows: int, bits: int) -> None:
        super().__init__()
        self.shape = shape
        self.bits = bits
        columns = shape.channels * shape.kernel**2
        self.latent = nn.Parameter(SPREAD[bits] * torch.empty(rows, columns).uniform_(-1, 1))
        self.shift = nn.Parameter(torch.zeros(rows))
        self.register_buffer("mean", torch.zeros(rows))
        self.register_buffer("variance", torch.ones(rows))

    @property
    def weights(self) -> Tensor:
        """The matrix (rows, columns) that the overlay multiplies with."""
        return Quantise.apply(self.latent, self.bits)

    def accumulate(self, x: Tensor) -> Tensor:
        """Sums of weights times inputs, by vectors (n, channels) or windows of (n, channels, y, x).

        Exact although they are floats, since they stay far below 2**24.
        """
        if self.shape.kernel == 1:
            return F.linear(x, self.weights)
        kernel = (self.shape.kernel, self.shape.kernel, self.shape.channels)
        return F.conv2d(x, self.weights.unflatten(1, kernel).permute(0, 3, 1, 2))

    def normalise(self, sums: Tensor) -> Tensor:
        """Sums in standard deviations from their mean, shifted."""
        return F.batch_norm(
            sums, self.mean, self.variance, None, self.shift, self.training, eps=EPSILON
        )

    def thresholds(self, bits: int) -> npt.NDArray[np.float64]:
        """The sums (rows, bits) above which an activation of so many bits takes its next level."""
        mean, variance, shift = (
            x.detach().double().numpy()[:, None] for x in (self.mean, self.variance, self.shift)
        )
        return mean + np.sqrt(variance + EPSILON) * (np.array(CUTS[bits]) - shift)


class Model(nn.Module):
    """A network that computes as its overlay does, but for gradients and the batch norm."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.network = overlays.NETWORKS[name]
        self.kind = name[:3]
        *hidden, last = self.network.shapes
        bits = self.network.weight_bits
        self.hidden = nn.ModuleList(Layer(shape, shape.rows, bits) for shape in hidden)
        self.last = Layer(last, len(digits.CLASSES), bits)

    def forward(self, grey: Tensor) -> Tensor:
        """Scores (n, classes) of pictures (n, 1, side, side) of 0 to 255."""
        x = self.see(grey)
        for layer in self.hidden:
            if layer.shape.kernel == 1:
                x = x.flatten(1)
            x = layer.normalise(layer.accumulate(x))
            if layer.shape.pool:
                x = F.max_pool2d(x, 2)
            x = Quantise.apply(x, self.network.activation_bits)
        sums = self.last.accumulate(x)
        return sums / x.shape[1] ** 0.5 if self.kind == "cnv" else self.last.normalise(sums)

    def see(self, grey: Tensor) -> Tensor:
        """Pictures as the overlay's first layer takes them: padded bits, or 8 bits three times."""
        bright = (grey >= 128).float()
        if self.kind == "cnv":
            return ((grey - 128 + bright).clamp(max=127) / 128).expand(-1, 3, -1, -1)
        bits = 2 * bright.flatten(1) - 1
        return F.pad(bits, (0, self.network.shapes[0].channels - bits.shape[1]), value=-1)

    def loss(self, grey: Tensor, labels: Tensor) -> Tensor:
        """How far the scores are from what the choice of a class asks for.

        CNV takes the largest score. LFC gives a bit a class: the right one must be set, no other.
        """
        scores = self(grey)
        if self.kind == "cnv":
            return F.cross_entropy(scores, labels)
        signs = 2 * F.one_hot(labels, scores.shape[1]) - 1
        return (1 - signs * scores).clamp(min=0).square().mean()


def augment(grey: Tensor) -> Tensor:
    """Pictures (n, 1, side, side) distorted, bent, faded and made noisy, each in its own way."""
    count, _, side, _ = grey.shape

    def jitter(amount: float, *shape: int) -> Tensor:
        return amount * torch.empty(count, *shape).uniform_(-1, 1)

    grid = F.affine_grid(torch.eye(2, 3) + jitter(0.15, 2, 3), grey.shape, align_corners=False)
    bend = F.interpolate(jitter(0.08, 2, 4, 4), (side, side), mode="bicubic").permute(0, 2, 3, 1)
    distorted = F.grid_sample(grey, grid + bend, align_corners=False)
    faded = distorted * (1 + jitter(0.2, 1, 1, 1)) + 20 * torch.randn_like(grey)
    return faded.round().clamp(0, 255)


def train(name: str, grey: Tensor, labels: Tensor, progress: Progress) -> Model:
    """A model trained on pictures (n, 1, side, side) of 0 to 255 and their labels (n,)."""
    torch.manual_seed(SEED)
    model = Model(name)
    batches = len(grey) // BATCH
    optimiser = torch.optim.Adam(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS[name] * batches)
    for _ in progress.track(range(EPOCHS[name]), description=name):
        for chosen in torch.randperm(len(grey))[: batches * BATCH].split(BATCH):
            optimiser.zero_grad()
            model.loss(augment(grey[chosen]), labels[chosen]).backward()
            optimiser.step()
            schedule.step()
            for layer in (*model.hidden, model.last):
                layer.latent.data.clamp_(-1, 1)
    return model.eval()


def write(model: Model, folder: Path) -> None:
    """Write a trained model as parameter set of its overlay, in BNN-PYNQ's folder format."""
    network = model.network
    folder.mkdir(parents=True)
    (folder / "classes.txt").write_text("\n".join(digits.CLASSES) + "\n")
    layers = (*model.hidden, model.last)
    for index, (layer, pe, simd) in enumerate(zip(layers, network.pe, network.simd, strict=True)):
        memories = {"weights": weight_words(layer, simd)}
        if layer is not model.last:
            memories["thres"] = threshold_words(model, layer, network.activation_bits)
        elif model.kind == "lfc":
            memories["thres"] = threshold_words(model, layer, 1)
        for memory, words in memories.items():
            # Row nf * PE + pe is the nf-th of element pe.
            for element in range(pe):
                words[element::pe].astype("<u8").tofile(folder / f"{index}-{element}-{memory}.bin")


def weight_words(layer: Layer, simd: int) -> npt.NDArray[np.uint64]:
    """A layer's weights, `simd` to a word: uint64 (rows, columns / simd)."""
    weights = layer.weights.detach().numpy().astype(np.int64)
    codes = (weights > 0) if layer.bits == 1 else (weights & 3)
    lanes = np.zeros((layer.shape.rows, weights.shape[1] // simd, simd), np.uint64)
    lanes[: len(codes)] = codes.reshape(len(codes), -1, simd)
    return np.bitwise_or.reduce(lanes << np.arange(0, simd * layer.bits, layer.bits, np.uint64), 2)


def threshold_words(model: Model, layer: Layer, bits: int) -> npt.NDArray[np.uint64]:
    """A layer's thresholds in the units its overlay counts in: uint64 (rows, bits).

    Accumulators are integers, so they exceed a threshold if they exceed the integer below it.
    """
    sums = layer.thresholds(bits)
    if model.kind == "cnv" and layer is model.hidden[0]:
        sums *= 256  # of pixels between -1 and 1
    elif model.network.activation_bits == 1:
        sums = (sums + layer.latent.shape[1]) / 2  # matching bits instead
    words = np.full((layer.shape.rows, bits), NEVER, np.int64)
    words[: len(sums)] = np.floor(sums)
    return words.view(np.uint64)


def judge(folder: Path, part: Literal["training", "held-out"]) -> tuple[int, int]:
    """How many images of a part the parameter set in `folder` classifies right, and of how many."""
    overlay = overlays.load(folder)
    images, labels = digits.load(part, folder.name[:3])
    if folder.name.startswith("cnv"):
        scores = overlay.scores(np.insert(images, 0, labels, axis=1))
        found = classes_of.cnv_many(scores, len(digits.CLASSES))
    else:
        found = classes_of.lfc_many(overlay.words(images), len(digits.CLASSES))
    return int((found == labels).sum()), len(labels)


def pack(root: Path, archive: Path) -> None:
    """Pack the files below `root`, the same files always into the same bytes."""
    # Weights look random, yet which byte of an 8-byte word it is tells xz which ones are zero.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "pb": 3}]
    with (
        lzma.open(archive, "wb", filters=filters) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            entry = tarfile.TarInfo(path.relative_to(root).as_posix())
            entry.size = path.stat().st_size
            with path.open("rb") as content:
                tar.addfile(entry, content)


def main() -> None:
    """Train the networks named on the command line, all by default; the others stay packed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(EPOCHS))
    chosen = parser.parse_args().networks or list(EPOCHS)
    if unknown := set(chosen) - set(EPOCHS):
        parser.error(f"no network {', '.join(sorted(unknown))}: known are {', '.join(EPOCHS)}")
    torch.set_num_threads(1)  # sums in the same order on any machine, and no waiting on a busy one
    torch.use_deterministic_algorithms(True)

    table = Table("network", "training part", "held-out part", "accuracy", "trained in")
    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory() as scratch,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        root = Path(scratch)
        if ARCHIVE.exists():
            with tarfile.open(ARCHIVE) as archive:
                archive.extractall(root)
        for name in chosen:
            start = time.monotonic()
            folder = root / "digits" / name
            shutil.rmtree(folder, ignore_errors=True)
            write(train(name, *training_part(name), progress), folder)
            pack(root, ARCHIVE)
            right, count = judge(folder, "training")
            held_right, held_count = judge(folder, "held-out")
            table.add_row(
                name,
                f"{right} of {count}",
                f"{held_right} of {held_count}",
                f"{held_right / held_count:.2%}",
                f"{time.monotonic() - start:.0f} s",
            )
    Console().print(table)


def training_part(name: str) -> tuple[Tensor, Tensor]:
    """The pictures (n, 1, side, side) and labels (n,) that a network learns from."""
    kind = name[:3]
    images, labels = digits.load("training", kind)
    side = digits.SIDE[kind]
    grey = images[:, : side * side].reshape(-1, 1, side, side)
    return torch.from_numpy(grey.astype(np.float32)), torch.from_numpy(labels.astype(np.int64))


if __name__ == "__main__":
    main()
