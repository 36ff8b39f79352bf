"""The overlays in numpy alone: float32 matrix products, exact as every sum stays below 2**24."""

import numpy as np

# Images at a time: as many as keep the widest layer's patches (784 x 576 float32 each) in reach.
BATCH = 16


class Overlay:
    """A network with its parameters, computed bit for bit."""

    def __init__(self, parameters):
        """parameters: what ``parameters.read`` gives."""
        self.parameters = parameters
        self._weights = [layer.weights.T.astype(np.float32) for layer in parameters.layers]

    def scores(self, records):
        """The scores of a CNV network.

        records: uint8 (images, 3073), CIFAR-10 binary records: a label, 1,024 red, 1,024 green and
        1,024 blue pixels. Returns int16 (images, 64), all rows of the last layer: counts of
        matching bits (0..512) with one-bit activations, signed sums otherwise.
        """
        pixels = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).astype(np.float32)
        # Eight bits, signed, in 1/128: what the overlay's host code makes of u / 255 * 2 - 1.
        quantised = np.minimum(127, pixels - 128 + (pixels >= 128))
        sums = self._forward(quantised).reshape(-1, 64)
        if self.parameters.network == "cnvW1A1":
            sums = (sums + self.parameters.layers[-1].weights.shape[1]) / 2
        return sums.astype(np.int16)

    def words(self, images):
        """The output words of an LFC network.

        images: uint8 (images, 784), 28x28 grey pixels. Returns uint64 (images,), bit j being row j
        of the last layer.
        """
        x = np.full((len(images), 1, 1, 832), -1, np.float32)
        x[:, 0, 0, :784][images >= 128] = 1
        bits = self._forward(x).reshape(-1, 64) > 0
        return np.packbits(bits, axis=1, bitorder="little").view("<u8").ravel()

    def _forward(self, x):
        """All layers over float32 (images, side, side, channels)."""
        parts = [self._layers(x[start : start + BATCH]) for start in range(0, len(x), BATCH)]
        return np.concatenate(parts) if parts else np.empty((0, 64), np.float32)

    def _layers(self, x):
        for layer, weights in zip(self.parameters.layers, self._weights):
            x = _patches(x, layer.kernel) @ weights
            if layer.pool:
                x = np.maximum(x[:, ::2], x[:, 1::2])
                x = np.maximum(x[:, :, ::2], x[:, :, 1::2])
            x = _activate(x, layer.thresholds)
        return x


def _patches(x, kernel):
    """Every kernel x kernel patch as one row of kernel**2 * channels: the matrix's columns."""
    if kernel == 1:
        return x
    side = x.shape[1] - kernel + 1
    taps = [x[:, y : y + side, z : z + side] for y in range(kernel) for z in range(kernel)]
    return np.concatenate(taps, axis=3)


def _activate(sums, thresholds):
    """-1 or 1 with one threshold a row, -1, 0 or 1 with two, the sums themselves without any."""
    count = thresholds.shape[1]
    if count == 0:
        return sums
    limits = thresholds.astype(np.float32)
    passed = sum((sums > limits[:, index]).astype(np.float32) for index in range(count))
    return passed * (2 / count) - 1
