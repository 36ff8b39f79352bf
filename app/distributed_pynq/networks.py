"""The five networks of BNN-PYNQ: what they take, how fast they are, where their parameters lie."""

from __future__ import annotations

import hashlib
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from . import storage
from .errors import InputError

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Network:
    """One of BNN-PYNQ's networks.

    kind: "cnv" takes CIFAR-10 records (label byte, then 32x32 planar RGB), "lfc" 28x28 grey images.
    rate: images/s that the accelerator of a Pynq-Z1 reaches, as BNN-PYNQ's authors published it.
    """

    name: str
    kind: str
    rate: float

    @property
    def record_bytes(self) -> int:
        """Length of a record in its file."""
        return 3073 if self.kind == "cnv" else 784

    @property
    def travel_bytes(self) -> int:
        """Length of a record on its way to a board: LFC sees one bit of each pixel."""
        return 3073 if self.kind == "cnv" else 98

    def encode(self, records: Bytes) -> memoryview:
        """Records (n, record_bytes) as n * travel_bytes bytes; CNV's are not copied."""
        if self.kind == "lfc":
            records = np.packbits(records >= 128, axis=1)
        return np.ascontiguousarray(records).data.cast("B")


NETWORKS = {
    network.name: network
    for network in (
        Network("cnvW1A1", "cnv", 3_000),
        Network("cnvW1A2", "cnv", 3_000),
        Network("cnvW2A2", "cnv", 860),
        Network("lfcW1A1", "lfc", 168_000),
        Network("lfcW1A2", "lfc", 168_000),
    )
}

DEFAULT_PARAMS = {"digits": "digits", "cifar10": "cifar10", "mnist": "mnist"}
"""Parameter set by the name of the data set it was trained on."""

BUILT_IN = Path(__file__).with_name("digits-params.tar.xz")

BNN_PYNQ_ARCHIVE = "d39c1c7.tar.gz"
BNN_PYNQ_SETS = {
    "chars_merged/lfcW1A1": "cb0bf16caa2a8b6b58f72d723292e9ce866164264cfc7f91078b75e1446cd90e",
    "cifar10/cnvW1A1": "81c02c2dc502bab3ad3ecb8c526dbd2306d6213fa72c1e4c5645cd886a7e2c80",
    "cifar10/cnvW1A2": "bc222aa6396edc4475bb40b976bfcb44430fca1da37282ab5c0907c928df296d",
    "cifar10/cnvW2A2": "1c76294c5f71cc06f4a4a26ab6f9a2a828d27c5630c9435342d653a28c234be9",
    "mnist/lfcW1A1": "177357b1998ec12fd8d888f5c3f2487169f0237811e459e7e337ea6e8368f170",
    "mnist/lfcW1A2": "69647715caca528eabe13518a22422f82d36106fa4270f3aadfc7307445edab7",
    "road-signs/cnvW1A1": "432f8dbadc52260317f197c5a06543ed25299e6176047cd4b9cdd461506f2850",
    "streetview/cnvW1A1": "b0b7a217638d11e81677001c70f052f005c07b536d0f1c8ea049d5fd2422ac34",
}
"""Parameter sets of BNN-PYNQ's last commit and their `checksum`.

Copyright (c) 2016, Xilinx, BSD 3-clause licence. The archives that GitHub packs of a commit are not
the same bytes for ever, so what is checked is what comes out of them.
"""


def get(name: str) -> Network:
    """The network of that name; InputError says which there are."""
    try:
        return NETWORKS[name]
    except KeyError:
        raise InputError(f"network {name!r}: expected one of {', '.join(NETWORKS)}") from None


def default_params(dataset: str, network: Network) -> str:
    """Parameter set for a data set; for files and folders the one of CIFAR-10 or of MNIST."""
    return DEFAULT_PARAMS.get(dataset, "cifar10" if network.kind == "cnv" else "mnist")


def parameter_root(params: str, network: Network) -> Path:
    """Folder that holds NAME/NETWORK/classes.txt, where NAME is the last part of `params`.

    `params` is the path of a set's folder or a set's name. Named sets are looked for in the data
    folder's params/ and bnn-pynq/ (unpacked, or as params.tar.gz), in the package itself
    (`digits`), and at last downloaded. Archives are unpacked into the cache folder.
    Raises InputError: no such set for the network, a broken archive, a failed download.
    """
    name = Path(params).name
    for root in chain([Path(params).absolute().parent], _roots()):
        if (root / name / network.name / "classes.txt").is_file():
            return root
    if f"{params}/{network.name}" in BNN_PYNQ_SETS:
        return _download()
    raise InputError(
        f"parameter set {params!r}: not there for {network.name}, "
        f"expected one of {', '.join(available(network))}, or the path of a set's folder"
    )


def available(network: Network) -> list[str]:
    """Names of the parameter sets for a network, those that can be downloaded among them."""
    local = {
        path.parts[-3] for root in _roots() for path in root.glob(f"*/{network.name}/classes.txt")
    }
    remote = {key.split("/")[0] for key in BNN_PYNQ_SETS if key.endswith(f"/{network.name}")}
    return sorted(local | remote)


def checksum(folder: Path) -> str:
    """SHA-256 over a folder's files in the order of their names: "NAME SIZE\\n", then the bytes."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _roots() -> Iterator[Path]:
    """Where named sets may lie on this machine; an archive is unpacked when its turn comes."""
    data = storage.data_folder()
    yield data / "params"
    yield data / "bnn-pynq"
    archive = data / "bnn-pynq" / "params.tar.gz"
    if archive.is_file():
        yield _unpacked(archive)
    yield _unpacked(BUILT_IN)


def _unpacked(archive: Path) -> Path:
    """The sets of an archive in the cache folder, unpacked once for each content it ever has."""
    try:
        key = hashlib.sha256(archive.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{archive}: {error.strerror}") from error
    folder = storage.cache_folder() / "unpacked" / key[:16]
    if not folder.is_dir():
        with storage.workspace(folder.parent) as scratch:
            _unpack(archive, scratch / "sets")
            storage.place(scratch / "sets", folder)
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    """Write every …/SET/NETWORK/FILE of a tar archive that belongs to a set to SET/NETWORK/FILE.

    Raises InputError where the archive is damaged or has no set in it.
    """
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                *_, dataset, network, file = ("", "", "", *PurePosixPath(member.name).parts)
                content = tar.extractfile(member) if network in NETWORKS else None
                if content and dataset != ".." and (file == "classes.txt" or file[-4:] == ".bin"):
                    target = folder / dataset / network / file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content.read())
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{archive}: damaged, expected a whole tar.gz or tar.xz") from error
    except OSError as error:
        raise InputError(f"{archive}: cannot be unpacked ({error})") from error
    if not folder.is_dir():
        raise InputError(f"{archive}: no parameter set in it, expected SET/NETWORK/classes.txt")


def _download() -> Path:
    """Fetch the sets of BNN_PYNQ_SETS into the data folder."""
    folder = storage.data_folder() / "bnn-pynq"
    remedy = f"put the folders that are in its bnn/params/ into {folder}"
    with storage.workspace(folder) as scratch:
        archive = storage.download("bnn-pynq", BNN_PYNQ_ARCHIVE, None, scratch, remedy)
        sets = scratch / "sets"
        _unpack(archive, sets)
        for key, expected in BNN_PYNQ_SETS.items():
            if not (sets / key).is_dir() or checksum(sets / key) != expected:
                raise InputError(
                    f"{storage.SITES['bnn-pynq']}/{BNN_PYNQ_ARCHIVE}: the checksum of {key} "
                    f"is wrong, expected sha256 {expected}; {remedy}"
                )
        for dataset in sorted({key.split("/")[0] for key in BNN_PYNQ_SETS}):
            storage.place(sets / dataset, folder / dataset)
    return folder
