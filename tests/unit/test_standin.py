"""The doubles of bnn, finn_examples and pynq in processes of their own, as they are on a board."""

import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import parameter_sets
from overlays import classes, plain
from overlays.parameters import read

STANDIN = Path(__file__).resolve().parents[2] / "app" / "standin"
CLASSES = 3


@pytest.fixture(scope="session", params=["own", "3.6"])
def python(request, board_python):
    return sys.executable if request.param == "own" else board_python(request.param)


@pytest.fixture(scope="session")
def sets(tmp_path_factory):
    """Folder with random parameter sets: "noise" for two networks, "other" for one."""
    root = tmp_path_factory.mktemp("params")
    parameter_sets.write(root, "noise", "cnvW2A2", classes=CLASSES)
    parameter_sets.write(root, "noise", "lfcW1A1", classes=CLASSES)
    parameter_sets.write(root, "other", "lfcW1A1", seed=1, classes=CLASSES)
    parameter_sets.write(root, "cifar10", "cnvW1A2")
    return root


@pytest.fixture
def board(python, sets, tmp_path):
    """Run Python code on a stand-in board, in the folder ``tmp_path``."""

    def board(code, **env):
        kept = {key: value for key, value in os.environ.items() if "PYNQ" not in key}
        env = {**kept, "PYTHONPATH": str(STANDIN), "BOARD": "Pynq-Z1", **env}
        return subprocess.run(
            [python, "-c", PRELUDE + textwrap.dedent(code)],
            cwd=tmp_path,
            env={key: value for key, value in env.items() if value is not None},
            capture_output=True,
            text=True,
            timeout=60,
        )

    (tmp_path / "params").symlink_to(sets)
    return board


# Two classifiers at hand, and a way for code on a board to answer.
PRELUDE = """\
import json, os, signal, threading
import bnn, bnn.bnn, pynq
bnn.bnn.BNN_PARAM_DIR = "params"

def cnv():
    return bnn.CnvClassifier(bnn.NETWORK_CNVW2A2, "noise", bnn.RUNTIME_HW)

def lfc(params="noise", runtime=bnn.RUNTIME_HW):
    return bnn.LfcClassifier(bnn.NETWORK_LFCW1A1, params, runtime)

def answer(*values):
    print(json.dumps([getattr(value, "tolist", lambda: value)() for value in values]))

"""


def answers(done):
    """What code on a board answered: its last line."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def colour(count):
    return np.random.default_rng(3).integers(0, 256, (count, 3073), np.uint8)


def write_idx(path, images, count=None):
    header = struct.pack(">IIII", 0x803, len(images) if count is None else count, 28, 28)
    path.write_bytes(header + images.tobytes())


def grey(count):
    return np.random.default_rng(4).integers(0, 256, (count, 784), np.uint8)


def lfc_classes(sets, images, name="noise"):
    words = plain.Overlay(read(sets / name / "lfcW1A1")).words(images)
    return classes.lfc_many(words, CLASSES).tolist()


def test_colour_images(board, sets, tmp_path):
    images = colour(20)
    scores = plain.Overlay(read(sets / "noise" / "cnvW2A2")).scores(images)
    # A torn record at the end is not seen.
    (tmp_path / "many").write_bytes(images.tobytes() + bytes(3072))
    negative = int(np.flatnonzero((scores[:, :CLASSES] <= 0).all(axis=1))[0])
    (tmp_path / "one").write_bytes(images[negative].tobytes())
    done = board("""
        c = cnv()
        many, details = c.classify_cifars("many"), c.classify_cifars_details("many")
        one, detail = c.classify_cifar("one"), c.classify_cifar_details("one")
        dtypes = [str(array.dtype) for array in (many, details, detail)]
        answer(many, details, one, detail, dtypes, type(one).__name__)
    """)
    many, details, one, detail, dtypes, kind = answers(done)
    assert dtypes == ["int32"] * 3 and kind == "int"
    assert many == classes.cnv_many(scores, CLASSES).tolist()
    assert details == scores[:, :CLASSES].ravel().tolist()
    # Alone, an image without a score above 0 gets its best class; among others it gets class 0.
    assert one == int(scores[negative, :CLASSES].argmax()) and many[negative] == 0
    assert detail == scores[negative, :CLASSES].tolist()


def test_grey_images(board, sets, tmp_path):
    images = grey(50)
    write_idx(tmp_path / "idx", images)
    done = board("""
        c = lfc()
        many = c.classify_mnists("idx")
        answer(many, c.classify_mnist("idx"), str(many.dtype), c.classes, c.class_name(1))
    """)
    word = plain.Overlay(read(sets / "noise" / "lfcW1A1")).words(images[:1])[0]
    one = classes.lfc_one(word, CLASSES)
    names = ["noise 0", "noise 1", "noise 2"]
    assert answers(done) == [lfc_classes(sets, images), one, "int32", names, "noise 1"]


def test_images_that_it_knows(board, tmp_path):
    images = colour(3)
    (tmp_path / "many").write_bytes(images.tobytes())
    np.savez(tmp_path / "known.npz", images=images, answers=np.eye(3, 64, dtype=np.int16)[::-1])
    done = board(
        """
        import sys
        answer(cnv().classify_cifars("many"), [name for name in sys.modules if "numba" in name])
        """,
        DISTRIBUTED_PYNQ_STANDIN_KNOWN="known.npz",
    )
    assert answers(done) == [[2, 1, 0], []]


def test_short_idx_file_goes_on_in_black(board, sets, tmp_path):
    images = grey(2)
    write_idx(tmp_path / "idx", images, count=3)
    [results] = answers(board('answer(lfc().classify_mnists("idx"))'))
    assert results == lfc_classes(sets, np.vstack([images, np.zeros((1, 784), np.uint8)]))


def test_pictures(board, tmp_path):
    pixels = np.random.default_rng(5).integers(0, 256, (2, 32, 32, 3), np.uint8)
    records = b"".join(b"\1" + picture.transpose(2, 0, 1).tobytes() for picture in pixels)
    (tmp_path / "records").write_bytes(records)
    for index, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    done = board("""
        from PIL import Image
        c = cnv()
        names = ["0.png", "1.png"]
        def pictures():
            return [Image.open(name) for name in names]
        def picture():
            return Image.open(names[0])
        answer(c.classify_cifars("records"), c.classify_images(pictures()), c.classify_paths(names))
        answer(c.classify_cifars_details("records"), c.classify_images_details(pictures()))
        answer(c.classify_cifar("records"), c.classify_image(picture()), c.classify_path("0.png"))
        answer(c.classify_cifar_details("records"), c.classify_image_details(picture()))
    """)
    assert done.returncode == 0, done.stderr
    same = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(same) == 4
    for results in same:
        assert all(result == results[0] for result in results)


def test_pictures_are_shrunk_onto_white(board, tmp_path):
    Image.new("RGB", (128, 64), (10, 20, 30)).save(tmp_path / "wide.png")
    done = board("""
        from PIL import Image
        with open("record", "wb") as file:
            cnv().image_to_cifar(Image.open("wide.png"), file)
    """)
    assert done.returncode == 0, done.stderr
    record = np.fromfile(tmp_path / "record", np.uint8)
    planes = record[1:].reshape(3, 32, 32)
    assert record[0] == 1
    assert (planes[:, :8] == 255).all() and (planes[:, 24:] == 255).all()
    assert (planes[:, 8:24] == np.reshape([10, 20, 30], (3, 1, 1))).all()


def test_prints_as_the_real_one(board, tmp_path):
    write_idx(tmp_path / "idx", grey(5))
    done = board(
        """
        c = lfc()
        c.classify_mnists("idx")
        many = c.usecPerImage
        c.classify_mnist("idx")
        answer(many, c.usecPerImage)
        """,
        DISTRIBUTED_PYNQ_STANDIN_RATE="100",
        PYTHONUNBUFFERED="1",
    )
    assert answers(done) == [10000, 10000]
    assert done.stdout.splitlines()[:-1] == [
        "Setting network weights and thresholds in accelerator...",
        "Running prebinarized test for 5 images...",
        "Inference took 50000 microseconds, 10000 usec per image",
        "Classification rate: 100 images per second",
        "Inference took 50000.00 microseconds, 10000.00 usec per image",
        "Classification rate: 100.00 images per second",
        "Running prebinarized test for 1 images...",
        "Inference took 10000 microseconds, 10000 usec per image",
        "Classification rate: 100 images per second",
        "Inference took 10000.00 microseconds",
        "Classification rate: 100.00 images per second",
    ]


def test_parameters_that_are_not_there(board):
    done = board("""
        half = bnn.CnvClassifier(bnn.NETWORK_CNVW1A1, "noise")
        sets = [sorted(bnn.available_params(name)) for name in ("cnvW1A1", "lfcW1A1")]
        answer(hasattr(half, "bnn"), *sets)
    """)
    assert answers(done) == [False, [], ["noise", "other"]]
    assert "ERROR: parameters are not availlable for cnvW1A1\n" in done.stdout


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ('cnv().classify_cifars("missing")', "failed to open file:missing"),
        ('cnv().classify_cifars("too many")', "instance of 'char const*'"),
        ('lfc().classify_mnists("missing")', "failed to open file:missing"),
        ('lfc().classify_mnists("torn")', "label-file format error"),
        ('lfc().classify_mnists("labels")', "label-file format error"),
        (
            'bnn.PynqBNN(bnn.RUNTIME_HW, "lfcW1A1").load_parameters("/")',
            "instance of 'char const*'",
        ),
    ],
)
def test_exceptions_of_the_runtime_end_the_process(board, tmp_path, code, message):
    with (tmp_path / "too many").open("wb") as file:
        file.truncate(10001 * 3073)
    (tmp_path / "torn").write_bytes(struct.pack(">II", 0x803, 1))
    (tmp_path / "labels").write_bytes(struct.pack(">II", 0x801, 8) + bytes(8))
    done = board(code)
    assert done.returncode == -signal.SIGABRT
    assert message in done.stderr


def test_an_empty_file_faults(board):
    # With pynq's handler, which cannot mend it, the process would spin.
    done = board("""
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        cnv().classify_cifars("/dev/null")
    """)
    assert done.returncode == -signal.SIGSEGV


def test_the_fpga_holds_one_parameter_set(board, sets, tmp_path):
    images = grey(30)
    write_idx(tmp_path / "idx", images)
    [results] = answers(board('c, d = lfc(), lfc("other")\nanswer(c.classify_mnists("idx"))'))
    assert results == lfc_classes(sets, images, "other") != lfc_classes(sets, images)


def test_the_fpga_holds_one_network(board, tmp_path):
    write_idx(tmp_path / "idx", grey(1))
    done = board('c, d = lfc(), cnv()\nc.classify_mnists("idx")')
    assert done.returncode == -signal.SIGABRT


def test_the_software_runtime_leaves_the_fpga_alone(board, sets, tmp_path):
    images = grey(30)
    write_idx(tmp_path / "idx", images)
    done = board("""
        c = cnv()
        before = pynq.PL.bitfile_name
        results = lfc(runtime=bnn.RUNTIME_SW).classify_mnists("idx")
        answer(before == pynq.PL.bitfile_name, results)
    """)
    assert answers(done) == [True, lfc_classes(sets, images)]


def test_deleting_a_classifier_frees_the_buffers_of_its_network(board, tmp_path):
    write_idx(tmp_path / "idx", grey(1))
    between = board('c, d = lfc(), lfc()\ndel d\nc.classify_mnists("idx")\nanswer()')
    assert answers(between) == []  # they are allocated again
    during = board("""
        c, others = lfc(), [lfc()]
        compute = c.bnn.interface._compute
        c.bnn.interface._compute = lambda images: others.clear() or compute(images)
        c.classify_mnists("idx")
    """)
    assert during.returncode == -signal.SIGABRT


def test_takes_sigint_over(board):
    done = board("c = lfc()\nos.kill(os.getpid(), signal.SIGINT)\nsignal.pause()")
    assert done.returncode == 1
    assert done.stdout.endswith("Caught SIGINT, forcing exit\n")


def test_reads_the_board_at_import(board):
    assert "KeyError: 'BOARD'" in board("", BOARD=None).stderr
    assert "Board not supported" in board("", BOARD="ZCU104").stderr
    for name, platform in [("Pynq-Z2", "pynqZ1-Z2"), ("Ultra96", "ultra96")]:
        assert answers(board("answer(bnn.bnn.PLATFORM)", BOARD=name)) == [platform]


FINN = """
import numpy as np
from finn_examples import models

def error(function, *arguments, **named):
    try:
        function(*arguments, **named)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

"""


def test_batches_of_finn_examples(board, sets, tmp_path):
    images = colour(6)
    scores = plain.Overlay(read(sets / "cifar10" / "cnvW1A2")).scores(images)
    planes = images[:, 1:].reshape(6, 3, 32, 32)
    np.save(tmp_path / "images.npy", planes.transpose(0, 2, 3, 1))
    done = board(
        FINN
        + """
a = models.cnv_w1a2_cifar10()
images = np.load("images.npy")
one = a.execute(images[:1])
a.batch_size = 6
many, floats = a.execute(images), a.execute([images.astype(np.float32)])
answer(one, many, floats, str(many.dtype), a.ishape_normal(), a.oshape_normal(), [
    error(a.execute, images[:5]),
    error(a.execute, images.reshape(6, -1)),
    error(a.execute, images + 0.5),
    error(a.execute_on_buffers, batch_size=7),
])
""",
        DISTRIBUTED_PYNQ_PARAMS="params",
    )
    one, many, floats, dtype, ishape, oshape, errors = answers(done)
    expected = scores[:, :10].argmax(axis=1)[:, np.newaxis].tolist()
    assert (one, many, floats, dtype) == (expected[:1], expected, expected, "uint8")
    assert (ishape, oshape) == ([6, 32, 32, 3], [6, 1])
    assert [error.partition(":")[0] for error in errors] == ["AssertionError"] * 4


def test_throughput_of_finn_examples(board):
    done = board(
        FINN + "a = models.cnv_w1a2_cifar10()\na.batch_size = 5\nanswer(a.throughput_test())",
        DISTRIBUTED_PYNQ_PARAMS="params",
        DISTRIBUTED_PYNQ_STANDIN_RATE="100",
    )
    [figures] = answers(done)
    assert figures["batch_size"] == 5 and figures["runtime[ms]"] > 49
    assert figures["throughput[images/s]"] <= 101
    assert figures["fclk[mhz]"] == 100


def test_bitstreams_of_finn_examples(board):
    done = board(
        FINN
        + """
errors = []
for name in ("Pynq-Z2", "ZCU104"):
    os.environ["BOARD"] = name
    errors.append(error(models.cnv_w1a2_cifar10))
os.environ["BOARD"] = "Ultra96"
errors.append(error(models.cnv_w1a2_cifar10, "Pynq-Z1"))
errors.append(error(models.cnv_w1a2_cifar10, bitfile_path="nowhere/cnv-w1a2.bit"))
errors.append(error(models.cnv_w2a2_cifar10))
models.cnv_w1a2_cifar10()
answer(errors, pynq.PL.bitfile_name)
""",
        DISTRIBUTED_PYNQ_PARAMS="params",
    )
    errors, loaded = answers(done)
    assert [error.partition(" = ")[0] for error in errors] == [
        "Exception: Platform not currently supported by FINN-Examples",
        "Exception: Bitfile for model",
        "AssertionError: ",
        "OSError: Bitstream file nowhere/cnv-w1a2.bit does not exist.",
        errors[4],
    ]
    assert errors[4].startswith("FileNotFoundError: ") and "cifar10/cnvW2A2" in errors[4]
    assert loaded.endswith("bitfiles/bitfiles.zip.d/Ultra96/cnv-w1a2.bit")


def test_overlays_of_pynq(board):
    done = board("""
        def error(function, *arguments):
            try:
                function(*arguments)
            except Exception as error:
                return f"{type(error).__name__}: {error}"

        errors = [
            error(pynq.Overlay, "base.bit"),
            error(bnn.PynqBNN, bnn.RUNTIME_HW, bnn.NETWORK_LFCW1A1, False),
        ]
        before = pynq.PL.bitfile_name
        overlay = pynq.Overlay("lfcW1A1-pynqZ1-Z2.bit")
        answer(errors, before, overlay.is_loaded(), pynq.PL.bitfile_name)
    """)
    errors, before, loaded, bitfile = answers(done)
    assert errors == [
        "OSError: Bitstream file base.bit does not exist.",
        "RuntimeError: Incorrect Overlay loaded",
    ]
    assert before is None and loaded and Path(bitfile).name == "lfcW1A1-pynqZ1-Z2.bit"


def test_pynq_wants_the_main_thread(python):
    code = "import threading\nthreading.Thread(target=__import__, args=['pynq']).start()"
    env = {"PYTHONPATH": str(STANDIN), "PATH": os.environ["PATH"]}
    done = subprocess.run([python, "-c", code], env=env, capture_output=True, text=True)
    assert "ValueError: signal only works in main thread" in done.stderr


def fabric():
    """The module fabric alone, without the quirks of its package."""
    spec = importlib.util.spec_from_file_location("fabric", STANDIN / "pynq" / "fabric.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pace_does_not_drift(monkeypatch):
    module = fabric()
    clock = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    oversleep = 0.003

    def spend(seconds):
        clock[0] += seconds

    monkeypatch.setattr(module.time, "sleep", lambda seconds: spend(seconds + oversleep))
    paced = module.Fabric(rate=1000)
    for _ in range(100):
        result, microseconds = paced.run(lambda images: spend(0.02) or "done", bytes(50))
        assert (result, microseconds) == ("done", 50000)
    assert clock[0] == pytest.approx(100 * 0.05 + oversleep)
    # What takes longer than its pace is not made up for.
    _, microseconds = paced.run(lambda images: spend(0.2), bytes(50))
    assert microseconds == 200000


def test_a_late_sleep_is_made_up_for_by_one_batch_at_most(monkeypatch):
    module = fabric()
    clock = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])

    def sleep(seconds):
        clock[0] += seconds + (10 if clock[0] == 0 else 0)

    monkeypatch.setattr(module.time, "sleep", sleep)
    paced = module.Fabric(rate=1000)
    for _ in range(100):
        paced.run(lambda images: "done", bytes(50))
    assert clock[0] == pytest.approx(10 + 99 * 0.05)


def test_settings_of_a_stand_in():
    module = fabric()
    assert module.parse_rate("") == float("inf")
    assert module.parse_rate("3000") == 3000
    assert module.parse_faults("") == {}
    faults = module.parse_faults("abort@3, hang@5,slow@2:10")
    assert faults == {3: ("abort", 0), 5: ("hang", 0), 2: ("slow", 10)}
    assert module.parse_faults("abort@crc32:00c0ffee") == {"crc32:00c0ffee": ("abort", 0)}
    for rate in ["0", "-1", "fast", "nan"]:
        with pytest.raises(
            ValueError, match=r"DISTRIBUTED_PYNQ_STANDIN_RATE='.*': expected a positive"
        ):
            module.parse_rate(rate)
    for fault in [
        "abort",
        "abort@0",
        "abort@x",
        "slow@2",
        "slow@2:",
        "hang@1:2",
        "crash@1",
        "hang@1;",
        "abort@crc32:coffee",
    ]:
        with pytest.raises(
            ValueError, match="expected abort@N, hang@N, slow@N:SECONDS or abort@crc32"
        ):
            module.parse_faults(f"hang@9,{fault}")
    with pytest.raises(ValueError, match="batch 2 has two faults"):
        module.parse_faults("abort@2,slow@2:1")
