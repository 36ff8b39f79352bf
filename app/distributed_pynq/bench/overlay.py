"""Images per second of the software overlays on one core, beside ways to compute the same network.

Every way gives the same answers, which is checked first; then they take turns, in one process that
is bound to one core and one thread, and the best batch of each counts, in processor time, so that
other work on the machine disturbs no way more than another. How good the fast path can get is known
as well: the bound is what the processor's ports let through, at the clock measured in between.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from .. import networks

STANDIN = Path(__file__).resolve().parents[2] / "standin"
ONE_THREAD = {
    f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "BLIS", "VECLIB", "NUMBA")
}
# A turn lasts this long at least, so that a clock that depends on the instructions settles.
TURN_S = 0.1

Answer = Callable[[NDArray[np.uint8]], NDArray[Any]]


def overlay(
    selected: Sequence[networks.Network], batch: int, seconds: float = 10
) -> list[dict[str, Any]]:
    """Measure networks one after the other.

    Parameters
    ----------
    selected
        The networks, with the built-in parameter set `digits`.
    batch
        Images per call.
    seconds
        How long the ways take turns, per network.

    Returns
    -------
    list of dict
        network, batch, clock_ghz, bound_images_per_s, bound_fraction (of the fast path),
        images_per_s (of each way), speedup (of the fast path over each other way), absent (ways
        whose library is not installed).
    """
    rows = []
    for network in selected:
        folder = networks.parameter_root("digits", network) / "digits" / network.name
        command = [sys.executable, "-m", __name__, str(folder), str(batch), str(seconds)]
        run = subprocess.run(
            command, env={**os.environ, **ONE_THREAD}, stdout=subprocess.PIPE, check=True
        )
        rows.append(json.loads(run.stdout))
    return rows


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print the rows as a table."""
    ways = list(WAYS)
    table = Table(title=f"Images/s on one core, batches of {rows[0]['batch']:,}")
    table.add_column("Network")
    for way in ways:
        table.add_column(way, justify="right")
    table.add_column("Bound", justify="right")
    table.add_column("Reached", justify="right")
    for row in rows:
        cells = []
        for way in ways:
            if way in row["absent"]:
                cells.append("not installed")
                continue
            faster = f"\n(1/{row['speedup'][way]:.1f})" if way in row["speedup"] else ""
            cells.append(f"{row['images_per_s'][way]:,.0f}{faster}")
        bound = f"{row['bound_images_per_s']:,.0f}\n(at {row['clock_ghz']:.2f} GHz)"
        table.add_row(row["network"], *cells, bound, f"{row['bound_fraction']:.0%}")
    console.print(table)


def measure(folder: str, batch: int, seconds: float) -> dict[str, Any]:
    """Measure one network in this process, on the core and with the threads that it has."""
    sys.path.insert(0, str(STANDIN))
    parameters = importlib.import_module("overlays.parameters").read(folder)
    size = networks.get(parameters.network).record_bytes
    images = np.random.default_rng(0).integers(256, size=(batch, size), dtype=np.uint8)

    ways: dict[str, Answer] = {}
    absent = []
    for name, prepare in WAYS.items():
        try:
            ways[name] = prepare(parameters)
        except ImportError:
            absent.append(name)
    expected = ways["numpy"](images)
    for name, answer in ways.items():
        if not np.array_equal(answer(images), expected):
            raise ArithmeticError(f"{parameters.network}: {name} differs from numpy")

    best = dict.fromkeys(ways, float("inf"))
    clock, clock_ghz = _clock(), 0.0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        clock_ghz = max(clock_ghz, clock())
        for name, answer in ways.items():
            turn = time.process_time() + TURN_S
            while (started := time.process_time()) < turn:
                answer(images)
                best[name] = min(best[name], time.process_time() - started)

    rates = {name: batch / duration for name, duration in best.items()}
    bound = clock_ghz * 1e9 / bound_cycles(parameters)
    return {
        "network": parameters.network,
        "batch": batch,
        "clock_ghz": clock_ghz,
        "bound_images_per_s": bound,
        "bound_fraction": rates["fast"] / bound,
        "images_per_s": rates,
        "speedup": {name: rates["fast"] / rate for name, rate in rates.items() if name != "fast"},
        "absent": absent,
    }


def bound_cycles(parameters: Any) -> float:
    """Cycles per image that a core with AVX-512 VPOPCNTDQ needs at the least.

    512 weights take a logical instruction, a popcount and an addition, at two a cycle; two-bit
    weights with two-bit activations take all of it twice. The first CNV layer takes a VNNI
    instruction a cycle for 64 products of bytes, 28 for the 27 of an output.
    """
    name = parameters.network
    popcounts = 2 if name == "cnvW2A2" else 1
    cycles, side = 0.0, 32 if name.startswith("cnv") else 1
    for layer in parameters.layers:
        side -= layer.kernel - 1
        rows, columns = layer.weights.shape
        if columns == 27:
            cycles += side * side * rows * 28 / 64
        else:
            cycles += side * side * rows * columns / 512 * popcounts * 3 / 2
        side //= 1 + layer.pool
    return cycles


def _clock() -> Callable[[], float]:
    """What tells the core's clock in GHz, from a chain of instructions that nothing shortens."""

    def chain(steps: int) -> Any:
        x = np.uint64(1)
        for _ in range(steps):
            # Six instructions of one cycle each, every one in need of the last one's result.
            x ^= x << np.uint64(13)
            x ^= x >> np.uint64(7)
            x ^= x << np.uint64(17)
        return x

    compiled = importlib.import_module("numba").njit(chain)
    compiled(1)

    def ghz(steps: int = 2_000_000) -> float:
        started = time.process_time()
        compiled(steps)
        return 6 * steps / (time.process_time() - started) / 1e9

    return ghz


def _own(module: str) -> Callable[[Any], Answer]:
    def prepare(parameters: Any) -> Answer:
        overlay = importlib.import_module(f"overlays.{module}").Overlay(parameters)
        cnv = parameters.network.startswith("cnv")
        answer: Answer = overlay.scores if cnv else overlay.words
        return answer

    return prepare


def _torch(parameters: Any) -> Answer:
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)
    # The faster order of memory for convolutions, by half here.
    last = {"memory_format": torch.channels_last}
    layers = []
    for matrix, values, pool in _float_layers(parameters):
        weights = torch.from_numpy(matrix)
        weights = weights.contiguous(**last) if weights.ndim == 4 else weights
        layers.append((weights, [torch.from_numpy(bias) for bias in values], pool))

    def answer(images: NDArray[np.uint8]) -> NDArray[Any]:
        with torch.inference_mode():
            x = torch.from_numpy(_inputs(images))
            x = x.contiguous(**last) if x.ndim == 4 else x
            for weights, biases, pool in layers:
                x = torch.conv2d(x, weights) if weights.ndim == 4 else x.flatten(1) @ weights.T
                if pool:
                    x = torch.max_pool2d(x, 2)
                if len(biases) == 1:
                    x = x.add_(biases[0]).sign_()
                elif biases:
                    x = ((x + biases[0]).sign_() + (x + biases[1]).sign_()).mul_(0.5)
        return _outputs(x.numpy(), parameters)

    return answer


def _onnxruntime(parameters: Any) -> Answer:
    onnx, runtime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(values: NDArray[np.float32]) -> str:
        name = f"c{len(constants)}"
        constants.append(onnx.numpy_helper.from_array(values, name))
        return name

    def node(kind: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(onnx.helper.make_node(kind, inputs, [f"{len(nodes)}"], **attributes))
        return str(nodes[-1].output[0])

    def signs(x: str, bias: NDArray[np.float32]) -> str:
        return node("Sign", node("Add", x, constant(bias)))

    x = "images"
    for weights, biases, pool in _float_layers(parameters):
        if weights.ndim == 4:
            x = node("Conv", x, constant(weights))
        else:
            x = node("Gemm", node("Flatten", x), constant(weights), transB=1)
        if pool:
            x = node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        if len(biases) == 1:
            x = signs(x, biases[0])
        elif biases:
            total = node("Add", signs(x, biases[0]), signs(x, biases[1]))
            x = node("Mul", total, constant(np.array(0.5, np.float32)))

    values = onnx.helper.make_tensor_value_info
    shape = ["n", 3, 32, 32] if parameters.network.startswith("cnv") else ["n", 832]
    graph = onnx.helper.make_graph(
        nodes,
        parameters.network,
        [values("images", onnx.TensorProto.FLOAT, shape)],
        [values(x, onnx.TensorProto.FLOAT, ["n", 64])],
        constants,
    )
    opset = [onnx.helper.make_opsetid("", 13)]
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=opset)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def answer(images: NDArray[np.uint8]) -> NDArray[Any]:
        return _outputs(session.run(None, {"images": _inputs(images)})[0], parameters)

    return answer


def _inputs(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the first layer takes: float32 (images, 3, 32, 32) or (images, 832)."""
    if images.shape[1] == 784:
        bits = np.full((len(images), 832), -1, np.float32)
        np.copyto(bits[:, :784], 1, where=images >= 128)
        return bits
    # As plain.Overlay.scores.
    levels = np.arange(256)
    quantised = np.minimum(127, levels - 128 + (levels >= 128)).astype(np.float32)
    return quantised[images[:, 1:]].reshape(-1, 3, 32, 32)


def _float_layers(parameters: Any) -> Iterator[tuple[Any, list[NDArray[np.float32]], bool]]:
    """Weights (rows, channels, 3, 3) or (rows, columns), biases, and whether to pool.

    Thresholds are whole numbers, so threshold < sum is the sign of sum - threshold - 1/2, which
    is never 0; float32 holds it exactly.
    """
    for layer in parameters.layers:
        weights = layer.weights.astype(np.float32)
        shape: tuple[int, ...] = (-1,)
        if layer.kernel == 3:
            weights = weights.reshape(len(weights), 3, 3, -1).transpose(0, 3, 1, 2).copy()
            shape = (-1, 1, 1)
        biases = [
            (-0.5 - column).astype(np.float32).reshape(shape) for column in layer.thresholds.T
        ]
        yield weights, biases, layer.pool


def _outputs(last: NDArray[np.float32], parameters: Any) -> NDArray[Any]:
    """Scores or words, as an Overlay gives them."""
    if not parameters.network.startswith("cnv"):
        return np.packbits(last > 0, axis=1, bitorder="little").view(np.uint64).ravel()
    if parameters.network == "cnvW1A1":
        last = (last + parameters.layers[-1].weights.shape[1]) / 2
    return last.astype(np.int16)


WAYS: dict[str, Callable[[Any], Answer]] = {
    "fast": _own("fast"),
    "numpy": _own("plain"),
    "torch": _torch,
    "onnxruntime": _onnxruntime,
}


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    json.dump(measure(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])), sys.stdout)
