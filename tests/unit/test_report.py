"""The report of a job: terminal table, performance.png and report.html from real result files."""

import base64
import html
import io
import json
import re
import subprocess
import sys
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from distributed_pynq import report
from distributed_pynq.report import Span

DIGITS = [str(digit) for digit in range(10)]


class Noise:
    """A data set of reproducible noise, in colour or grey."""

    def __init__(self, colour=True):
        self.shape = (32, 32, 3) if colour else (28, 28)

    def image(self, index):
        return np.random.default_rng(index).integers(0, 256, self.shape, np.uint8)


def job(boards=2, images=599, chunk=50, rate=500.0, failed=()):
    """A summary and its timeline: boards of equal rate, a short pause between chunks."""
    entries, timeline = [], []
    per_board = np.full(boards, (images - len(failed)) // boards)
    per_board[0] += images - len(failed) - per_board.sum()
    for number, share in enumerate(per_board.tolist()):
        clock = 0.03 + 0.004 * number
        chunks = [min(chunk, share - start) for start in range(0, share, chunk)]
        for records in chunks:
            stop = clock + records / rate
            timeline.append(Span(f"z1-{number:02}", "0", clock, stop, records, len(timeline)))
            clock = stop + 0.008
        entries.append(
            {
                "name": f"z1-{number:02}",
                "address": f"tls://192.168.2.{number + 10}:40001",
                "device": "0",
                "images": share,
                "chunks": len(chunks),
                "busy_s": share / rate,
                "images_per_s": rate if share else 0.0,
                "faults": 0,
            }
        )
    wall = max([0.1, *(span.stop_s for span in timeline)]) + 0.02
    ideal = (images - len(failed)) / (boards * rate)
    summary = {
        "job": "classify",
        "dataset": "digits",
        "network": "cnvW1A1",
        "params": "digits",
        "images": images,
        "classified": images - len(failed),
        "lost": 0,
        "duplicates": 0,
        "retries": 0,
        "accuracy": None,
        "wall_s": wall,
        "images_per_s": (images - len(failed)) / wall,
        "ideal_s": ideal,
        "efficiency": ideal / wall,
        "boards": entries,
        "versions": {"distributed_pynq": "0.1.0", "distributed": "2026.8.0", "python": "3.11.7"},
        "failed": list(failed),
    }
    return summary, timeline


def predictions(folder, labels, classes, index=None):
    """predictions.parquet as a job writes it; `labels` may hold None."""
    rows = pa.table(
        {
            "index": pa.array(range(len(classes)) if index is None else index, pa.int64()),
            "label": pa.array(labels, pa.uint8()),
            "class": pa.array(classes, pa.int16()),
        }
    )
    pq.write_table(rows, folder / "predictions.parquet")


def drawn(images, names, wrong=0.03, seed=0):
    """Labels and classes with about the given share of errors, neighbours the likeliest."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, names, images)
    classes = labels.copy()
    errors = random.random(images) < wrong
    classes[errors] = (labels[errors] + random.choice([1, 3, -2], errors.sum())) % names
    return labels.tolist(), classes.tolist()


class Page(HTMLParser):
    """Text, tags and attributes of a page; fails on tags left open or closed twice."""

    VOID = frozenset({"meta", "link", "img"})

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open, self.tags, self.text = [], [], ""
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def all(self, tag, **attributes):
        return [a for t, a in self.tags if t == tag and attributes.items() <= a.items()]


def written(folder, summary, timeline, dataset=None, names=DIGITS):
    report.write(folder, summary, timeline, dataset, names)
    with Image.open(folder / "performance.png") as picture:
        picture.verify()
    return Page(folder / "report.html")


def printed(table):
    console = Console(width=100, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_labelled_job_shows_its_figures_matrix_and_mistakes(tmp_path):
    summary, timeline = job()
    labels, classes = drawn(599, 10)
    right = sum(label == given for label, given in zip(labels, classes))
    summary["accuracy"] = right / 599
    predictions(tmp_path, labels, classes)
    page = written(tmp_path, summary, timeline, Noise())
    assert f"{100 * right / 599:.2f}\u202f%" in page.text
    assert f"{right} of 599 got the class of their label" in " ".join(page.text.split())
    assert "Complete" in page.text and "Not classified" not in page.text
    assert "tls://192.168.2.11:40001" in page.text
    counts = [a["title"] for a in page.all("td") if "given as" in a.get("title", "")]
    assert sum(int(re.search(r": (\d+) of", title)[1]) for title in counts) == 599
    assert len(page.all("img")) == min(24, 599 - right)


def test_report_needs_no_network_and_no_script(tmp_path):
    summary, timeline = job()
    predictions(tmp_path, *drawn(599, 10))
    page = written(tmp_path, summary, timeline, Noise())
    assert not page.all("script")
    links = [v for _, a in page.tags for k, v in a.items() if k in ("src", "href")]
    assert links and all(link.startswith("data:") for link in links)
    assert "url(" not in page.source and "@import" not in page.source
    assert all(a.get("alt") for a in page.all("img"))


@pytest.mark.parametrize("colour", [True, False])
def test_picture_is_the_record_magnified(tmp_path, colour):
    summary, timeline = job(images=4)
    predictions(tmp_path, [0, 1, 2, 3], [0, 1, 7, 3])
    page = written(tmp_path, summary, timeline, Noise(colour))
    (picture,) = page.all("img")
    assert picture["alt"] == "Image 2, labelled 2, classified as 7"
    data = base64.b64decode(picture["src"].split(",")[1])
    pixels = np.array(Image.open(io.BytesIO(data)))
    assert np.array_equal(pixels[::4, ::4], Noise(colour).image(2))
    assert np.array_equal(pixels[3::4, 3::4], Noise(colour).image(2))


def test_frequent_confusions_come_first_and_each_once_before_any_twice(tmp_path):
    labels = [0] * 30 + [1] * 20 + [2] * 10 + [3] * 5
    classes = [9] * 30 + [8] * 20 + [7] * 10 + [3] * 5
    predictions(tmp_path, labels, classes, index=range(100, 165))
    tally = report._tally(tmp_path / "predictions.parquet", 10)
    assert (tally.right, tally.wrong, len(tally.mistakes)) == (5, 60, 24)
    assert [m.record for m in tally.mistakes[:6]] == [100, 130, 150, 101, 131, 151]


def test_without_labels_the_classes_given_are_counted(tmp_path):
    summary, timeline = job(images=30)
    predictions(tmp_path, [None] * 30, [4] * 20 + [9] * 10)
    page = written(tmp_path, summary, timeline, Noise())
    assert "no labels" in page.text and "Classes given" in page.text
    assert not page.all("img") and "matrix" not in {a.get("class") for a in page.all("table")}


def test_labels_and_classes_outside_the_list_have_their_own_row_and_column(tmp_path):
    summary, timeline = job(images=5)
    predictions(tmp_path, [0, 1, 200, 12, None], [0, -1, 3, 12, 63])
    page = written(tmp_path, summary, timeline, Noise())
    titles = [a["title"] for a in page.all("td") if "given as" in a.get("title", "")]
    assert sorted(titles) == [
        "0 given as 0: 1 of 1",
        "1 given as outside the list: 1 of 1",
        "outside the list given as 3: 1 of 2",
        "outside the list given as outside the list: 1 of 2",
    ]
    assert {a["alt"] for a in page.all("img")} == {
        "Image 1, labelled 1, classified as no. -1",
        "Image 2, labelled no. 200, classified as 3",
    }


def test_names_are_escaped_everywhere(tmp_path):
    evil = '<script>alert("x")</script>&'
    summary, timeline = job(images=4, failed=[{"index": 3, "reason": f"{evil} $\\frac{{$"}])
    summary["dataset"] = summary["params"] = f"{evil} $\\frac{{$"
    summary["boards"][0]["name"] = "[red]$\\frac{$"
    summary["versions"][evil] = evil
    predictions(tmp_path, [0, 1, 2], [1, 1, 2])
    page = written(tmp_path, summary, timeline, Noise(), [evil, "<b>bold</b>", "'"])
    assert not page.all("script") and not page.all("b", onclick="")
    assert page.text.count(evil) >= 4 and "<b>bold</b>" in page.text
    assert "[red]$" in printed(report.table(summary))


def test_a_job_in_which_every_record_failed(tmp_path):
    failed = [{"index": index, "reason": "driver hung"} for index in range(40)]
    failed[7]["reason"] = "driver aborted"
    summary, timeline = job(images=40, failed=failed)
    predictions(tmp_path, [], [])
    page = written(tmp_path, summary, timeline, Noise())
    assert "40 images not classified" in page.text and "Complete" not in page.text
    rows = page.text[page.text.index("Reason") :]
    order = ["driver hung", "0\u20136, 8\u201339", "driver aborted"]
    assert sorted(order, key=rows.index) == order


def test_faults_are_told_once_per_board_and_reason(tmp_path):
    summary, timeline = job()
    summary["faults"] = [{"board": "z1-01", "reason": "driver <died>"}] * 3
    summary["boards"][1].update(faults=3, address="")
    predictions(tmp_path, *drawn(599, 10))
    text = " ".join(written(tmp_path, summary, timeline).text.split())
    assert "z1-01 driver <died> (3 times)" in text and "3 faults" in text and "gone" in text


def test_resumed_job_tells_what_was_there_before(tmp_path):
    summary, timeline = job(images=100)
    summary.update(images=599, classified=599)
    predictions(tmp_path, *drawn(599, 10))
    text = " ".join(written(tmp_path, summary, timeline).text.split())
    assert "100 images classified by 2 devices" in text
    assert "Another 499 were there from an earlier run" in text
    assert text.count("50.0 %") == 2


def test_many_reasons_and_scattered_indices_stay_short(tmp_path):
    failed = [{"index": 2 * n, "reason": f"reason {n % 30}"} for n in range(3000)]
    summary, timeline = job(images=6000, failed=failed)
    predictions(tmp_path, *drawn(3000, 10))
    page = written(tmp_path, summary, timeline)
    assert "10 other reasons" in page.text
    assert len(page.source) < 60_000


@pytest.mark.parametrize("boards", [1, 2, 40])
@pytest.mark.parametrize("names", [10, 43])
def test_sizes_of_fleet_and_class_list(tmp_path, boards, names):
    summary, timeline = job(boards, 10_000, 250)
    predictions(tmp_path, *drawn(10_000, names, 0.2))
    page = written(tmp_path, summary, timeline, Noise(), [f"sign {n}" for n in range(names)])
    assert len(page.all("svg")) == boards
    assert len(page.all("th", scope="row")) == boards + (boards > 1) + 2 * names


def test_long_timelines_are_drawn_in_bounded_space_and_keep_their_busy_time(tmp_path):
    summary, timeline = job(2, 400_000, 10)
    predictions(tmp_path, *drawn(10, 10))
    page = written(tmp_path, summary, timeline)
    assert len(page.source) < 60_000
    end_s = summary["wall_s"]
    # Half busy: 1 s on, 1 s off, finer than the slices.
    spans = [Span("a", "0", float(s), s + 1.0, 1, s) for s in range(0, 4000, 2)]
    blocks = report._blocks(spans, 4000.0)
    assert {block.share for block in blocks} == {0.5}
    assert sum(block.stop_s - block.start_s for block in blocks) == pytest.approx(4000)
    assert all(0 <= block.start_s < block.stop_s for block in blocks) and end_s > 0


def test_devices_of_one_board_have_rows_of_their_own(tmp_path):
    summary, timeline = job(2, 100)
    for device, board in enumerate(summary["boards"]):
        board.update(name="server", device=str(device))
    timeline = [span._replace(board="server", device=span.board[-1]) for span in timeline]
    predictions(tmp_path, *drawn(100, 10))
    page = written(tmp_path, summary, timeline)
    assert "server/0" in page.text and "server/1" in page.text
    assert len(page.all("path")) == 2


def test_memory_does_not_grow_with_the_predictions(tmp_path):
    schema = pa.schema([("index", pa.int64()), ("label", pa.uint8()), ("class", pa.int16())])

    def peak(batches):
        path = tmp_path / f"{batches}.parquet"
        with pq.ParquetWriter(path, schema) as writer:
            for batch in range(batches):
                labels, classes = drawn(50_000, 10, 0.5, batch)
                index = np.arange(50_000) + 50_000 * batch
                writer.write_table(pa.table([index, labels, classes], schema=schema))
        report._tally(path, 10)
        tracemalloc.start()
        tally = report._tally(path, 10)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert tally.counts.sum() == 50_000 * batches
        return used

    assert peak(12) < 1.5 * peak(3)


def test_the_recipe_in_the_report_runs(tmp_path, monkeypatch):
    summary, timeline = job(images=4)
    predictions(tmp_path, [0, 1, 2, 3], [0, 1, 7, 3])
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    page = written(tmp_path, summary, timeline)
    recipe = html.unescape(re.search(r"<pre><code>(.*?)</code></pre>", page.source, re.S)[1])
    monkeypatch.chdir(tmp_path)
    result = {}
    exec(recipe, result)
    assert result["wrong"]["index"].to_pylist() == [2]
    assert result["summary"]["images"] == 4


def test_table_adds_up(tmp_path):
    summary, _ = job(3, 900)
    text = printed(report.table(summary))
    assert text.count("z1-") == 3
    assert re.search(r"total.* 900 .* 18 .* 0 ", text)


def test_ticks_are_round_moments_that_fit():
    for end_s in (0.001, 0.05, 0.9, 1.2, 59, 119, 121, 1000, 7300, 1e6):
        ticks = report._ticks(end_s)
        assert 3 <= len(ticks) <= 8
        assert all(0 <= second <= end_s * 1.001 for _, second in ticks)
    assert report._ticks(1.0)[:3] == [("0\u202fs", 0.0), ("0.2\u202fs", 0.2), ("0.4\u202fs", 0.4)]


def test_importing_the_report_loads_no_drawing_library():
    slow = "{'matplotlib', 'PIL', 'jinja2', 'pyarrow'}"
    code = f"import sys, distributed_pynq.report; print({slow} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_template_travels_with_the_package():
    assert (Path(report.__file__).parent / "report.html").is_file()
