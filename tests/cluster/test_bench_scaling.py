"""The scaling benchmark, on fleets small enough for a test."""

import json

import pytest
from PIL import Image

RATE = 860


def test_prints_writes_and_draws(command, tmp_path):
    file, figure = tmp_path / "f.json", tmp_path / "f.png"
    words = ["--boards", "1,2", "--records", 200, "--tcp", "--figure", figure, "--json", file]
    done = command("bench", "scaling", *words)
    assert done.code == 0, done.printed
    assert "200 images" in done.printed
    rows = json.loads(file.read_text())
    assert [row["boards"] for row in rows] == [1, 2]
    for row in rows:
        boards = row["boards"]
        assert row["rates"] == [RATE] * boards
        assert row["records"] == 200
        ideal_s = 200 / RATE / boards
        assert row["ideal_s"] == pytest.approx(ideal_s)
        assert row["ratio"] == pytest.approx(row["wall_s"] / ideal_s)
        assert row["images_per_s"] == pytest.approx(200 / row["wall_s"])
        assert row["predecessor_ratio"] == pytest.approx(row["predecessor_s"] / ideal_s)
        assert min(row["load_s"], row["wall_s"], row["tcp_s"], row["predecessor_s"]) > 0
    with Image.open(figure) as drawn:
        assert drawn.format == "PNG"
        drawn.load()


def test_boards_without_an_image_have_no_predecessor(command, tmp_path):
    file = tmp_path / "f.json"
    done = command("bench", "scaling", "--boards", 2, "--records", 1, "--json", file)
    assert done.code == 0, done.printed
    (row,) = json.loads(file.read_text())
    assert row["records"] == 1
    assert "predecessor_s" not in row


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("scaling --boards 0", "Invalid value for '--boards': 0 is not in the range 1<="),
        ("scaling --boards 1,0", "Invalid value for '--boards': 0 is not in the range 1<="),
        ("scaling --boards 1,", "Invalid value for '--boards': '' is not a valid int"),
        ("scaling --rate 860,-1", "Invalid value for '--rate': -1.0 is not in the range 0<="),
        ("scaling --figure f.xyz", "--figure f.xyz: expected a name that ends in .png"),
        ("scaling --figure no/f.png", "--figure no/f.png: No such file or directory"),
        ("scaling --json no/f.json", "--json no/f.json: No such file or directory"),
        ("overlay --json /", "--json /: Is a directory"),
        ("arrow --json no/f.json", "--json no/f.json: No such file or directory"),
    ],
)
def test_what_cannot_end_well_does_not_begin(command, words, told):
    done = command("bench", *words.split())
    assert done.code == 2
    assert told in done.printed.splitlines()[-1]
