"""Classifiers over the BNN overlays, with the interface of BNN-PYNQ's bnn/bnn.py.

Images are files on the board: CIFAR-10 binary records for CNV, MNIST idx for LFC.
"""

import os
import tempfile

import numpy as np
from PIL import Image

from pynq import PL, Overlay

from .library import Library

RUNTIME_HW = "python_hw"
RUNTIME_SW = "python_sw"

NETWORK_CNVW1A1 = "cnvW1A1"
NETWORK_CNVW1A2 = "cnvW1A2"
NETWORK_CNVW2A2 = "cnvW2A2"
NETWORK_LFCW1A1 = "lfcW1A1"
NETWORK_LFCW1A2 = "lfcW1A2"

if os.environ["BOARD"] == "Ultra96":
    PLATFORM = "ultra96"
elif os.environ["BOARD"] in ("Pynq-Z1", "Pynq-Z2"):
    PLATFORM = "pynqZ1-Z2"
else:
    raise RuntimeError("Board not supported")

BNN_ROOT_DIR = os.path.dirname(os.path.realpath(__file__))
BNN_LIB_DIR = os.path.join(BNN_ROOT_DIR, "libraries", PLATFORM)
BNN_BIT_DIR = os.path.join(BNN_ROOT_DIR, "bitstreams", PLATFORM)
BNN_PARAM_DIR = os.path.join(BNN_ROOT_DIR, "params")

_libraries = {}


def available_params(network):
    """Names of the parameter sets that are installed for a network."""
    names = os.listdir(BNN_PARAM_DIR)
    folders = [name for name in names if os.path.isdir(os.path.join(BNN_PARAM_DIR, name))]
    return [name for name in folders if network in os.listdir(os.path.join(BNN_PARAM_DIR, name))]


class PynqBNN:
    """A network's overlay and shared object.

    Parameters
    ----------
    runtime : str
        RUNTIME_HW, which downloads the overlay, or RUNTIME_SW.
    network : str
        One of NETWORK_….
    load_overlay : bool
        Whether it may download the overlay, rather than raise RuntimeError where it has to.
    """

    def __init__(self, runtime, network, load_overlay=True):
        self.bitstream_name = None
        if runtime == RUNTIME_HW:
            self.bitstream_name = f"{network}-{PLATFORM}.bit"
            self.bitstream_path = os.path.join(BNN_BIT_DIR, self.bitstream_name)
            if PL.bitfile_name != self.bitstream_path:
                if not load_overlay:
                    raise RuntimeError("Incorrect Overlay loaded")
                Overlay(self.bitstream_path).download()
        name = f"{runtime}-{network}-{PLATFORM}.so"
        if name not in _libraries:
            _libraries[name] = Library(network, hardware=runtime == RUNTIME_HW)
        self.interface = _libraries[name]
        self.num_classes = 0

    def __del__(self):
        self.interface.deinit()

    def load_parameters(self, params):
        """Load a parameter folder, ``<set>/<network>`` or an absolute path, and its class names."""
        folder = os.path.join(BNN_PARAM_DIR, params)
        if os.path.isdir(folder):
            self.interface.load_parameters(folder.encode())
            with open(os.path.join(folder, "classes.txt")) as file:
                self.classes = [line.strip() for line in file]
        else:
            print(f'\nERROR: No such parameter directory "{folder}"')

    def inference(self, path):
        """Class (int) of the first image of a file."""
        result, _, self.usecPerImage = self.interface.inference(path.encode(), len(self.classes))
        self._report(f"Inference took {self.usecPerImage:.2f} microseconds")
        return result

    def detailed_inference(self, path):
        """Scores of the first image of a file, int32 (classes,); CNV only."""
        _, scores, self.usecPerImage = self.interface.inference(path.encode(), len(self.classes))
        self._report(f"Inference took {self.usecPerImage:.2f} microseconds")
        return scores[: len(self.classes)]

    def inference_multiple(self, path):
        """Classes of all images of a file, int32 (images,)."""
        return self._multiple(path, 0)

    def inference_multiple_detail(self, path):
        """Scores of all images of a file, int32 (images * classes,), image by image; CNV only."""
        return self._multiple(path, 1)

    def class_name(self, index):
        """Name of a class."""
        return self.classes[index]

    def _multiple(self, path, detail):
        results, images, each = self.interface.inference_multiple(
            path.encode(), len(self.classes), detail
        )
        self.usecPerImage = each
        self._report(f"Inference took {each * images:.2f} microseconds, {each:.2f} usec per image")
        return results

    def _report(self, duration):
        print(duration)
        print(f"Classification rate: {1000000.0 / self.usecPerImage:.2f} images per second")


class _Classifier:
    """What both classifiers share. Without its parameters one is a shell: a line is printed."""

    def __init__(self, network, params, runtime=RUNTIME_HW):
        if params in available_params(network):
            self.net = network
            self.params = params
            self.runtime = runtime
            self.usecPerImage = 0.0
            self.bnn = PynqBNN(runtime, network)
            self.bnn.load_parameters(os.path.join(params, network))
            self.classes = self.bnn.classes
        else:
            print(f"ERROR: parameters are not availlable for {network}")

    def class_name(self, index):
        """Name of a class."""
        return self.bnn.classes[index]

    def _timed(self, inference, path):
        result = inference(path)
        self.usecPerImage = self.bnn.usecPerImage
        return result


class CnvClassifier(_Classifier):
    """Classifies 32x32 colour images.

    Parameters
    ----------
    network : str
        One of NETWORK_CNV….
    params : str
        Name of a parameter set, see `available_params`.
    runtime : str
        RUNTIME_HW or RUNTIME_SW.
    """

    def image_to_cifar(self, img, fp):
        """Write a PIL image, which it shrinks in place, to a file as a CIFAR-10 record."""
        img.thumbnail((32, 32), Image.LANCZOS)
        background = Image.new("RGBA", (32, 32), (255, 255, 255, 0))
        background.paste(img, (int((32 - img.size[0]) / 2), int((32 - img.size[1]) / 2)))
        planes = np.array(background)[:, :, :3].transpose(2, 0, 1)
        fp.write(b"\x01" + planes.tobytes())

    def classify_image(self, img):
        """Class of a PIL image."""
        return self._classify_images([img], self.bnn.inference)

    def classify_cifar(self, path):
        """Class of the first record of a file."""
        return self._timed(self.bnn.inference, path)

    def classify_image_details(self, img):
        """Scores of a PIL image, int32 (classes,)."""
        return self._classify_images([img], self.bnn.detailed_inference)

    def classify_cifar_details(self, path):
        """Scores of the first record of a file, int32 (classes,)."""
        return self._timed(self.bnn.detailed_inference, path)

    def classify_path(self, path):
        """Class of a picture file."""
        return self.classify_image(Image.open(path))

    def classify_images(self, imgs):
        """Classes of PIL images, int32 (images,)."""
        return self._classify_images(imgs, self.bnn.inference_multiple)

    def classify_cifars(self, path):
        """Classes of all records of a file, int32 (records,)."""
        return self._timed(self.bnn.inference_multiple, path)

    def classify_images_details(self, imgs):
        """Scores of PIL images, int32 (images * classes,)."""
        return self._classify_images(imgs, self.bnn.inference_multiple_detail)

    def classify_cifars_details(self, path):
        """Scores of all records of a file, int32 (records * classes,)."""
        return self._timed(self.bnn.inference_multiple_detail, path)

    def classify_paths(self, paths):
        """Classes of picture files, int32 (images,)."""
        return self.classify_images([Image.open(path) for path in paths])

    def _classify_images(self, imgs, inference):
        with tempfile.NamedTemporaryFile() as file:
            for img in imgs:
                self.image_to_cifar(img, file)
            file.flush()
            return self._timed(inference, file.name)


class LfcClassifier(_Classifier):
    """Classifies 28x28 grey images; parameters as of `CnvClassifier`, NETWORK_LFC…."""

    def classify_mnist(self, mnist_format_file):
        """Class of the first image of an idx file."""
        return self._timed(self.bnn.inference, mnist_format_file)

    def classify_mnists(self, mnist_format_file):
        """Classes of all images of an idx file, int32 (images,)."""
        return self._timed(self.bnn.inference_multiple, mnist_format_file)
