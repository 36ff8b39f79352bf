"""What a job leaves for people: the table per board, performance.png and report.html."""

from __future__ import annotations

import base64
import io
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

ROWS_PER_READ = 65536
PICTURES = 24
MAGNIFICATION = 4
# Up to this many spans a device's timeline shows each chunk; beyond it, how busy each slice was.
SPANS_PER_DEVICE = 120
SLICES_PER_DEVICE = 400
REASONS = 20
RANGES_PER_REASON = 12


class Span(NamedTuple):
    """One chunk on one accelerator; seconds since the job began."""

    board: str
    device: str
    start_s: float
    stop_s: float
    records: int
    chunk: int


class Pictures(Protocol):
    """The part of a data set that the report needs."""

    def image(self, index: int) -> NDArray[np.uint8]:
        """Pixels of one record, (height, width) or (height, width, 3)."""


class Block(NamedTuple):
    """A stretch of a device's timeline, in seconds, and the share of it that was busy."""

    start_s: float
    stop_s: float
    share: float


class Lane(NamedTuple):
    """One device's row in the figures.

    Rates in images/s; `busy` is a share of the wall time; `exact` when each block is one chunk.
    """

    name: str
    rate: float
    ideal: float
    busy: float
    blocks: list[Block]
    exact: bool


class Mistake(NamedTuple):
    """A record whose class is not its label."""

    record: int
    label: int
    given: int


class Tally(NamedTuple):
    """Labels against classes.

    `counts` is (n + 2, n + 1) for n classes: row = label, column = class given. The last column and
    the last row but one hold numbers outside the class list, the last row records without a label.
    """

    counts: NDArray[np.int64]
    right: int
    wrong: int
    mistakes: list[Mistake]


def legible(path: str | Path) -> str:
    """A path as text that any file and figure takes: a name need not be UTF-8."""
    return os.fsencode(path).decode(errors="replace")


def table(summary: Mapping[str, Any], unit: str = "images") -> Table:
    """The boards of a job as a table for the terminal, with a row of totals.

    Images/s is what a board contributed to the job (images over wall time), so the rates add up.
    What is counted as "images" may be another `unit`.
    """
    boards = summary["boards"]
    view = Table(show_footer=True)
    view.add_column("Board", footer="total")
    view.add_column("Device")
    totals = [
        _number(sum(board["images"] for board in boards)),
        _rate(summary["images_per_s"]),
        _percent(_busy(summary)),
        _number(sum(board["chunks"] for board in boards)),
        _number(sum(board["faults"] for board in boards)),
    ]
    unit = unit.capitalize()
    for title, total in zip((unit, f"{unit}/s", "Busy", "Chunks", "Faults"), totals):
        view.add_column(title, footer=total, justify="right")
    for board in boards:
        view.add_row(
            Text(board["name"]),
            Text(board["device"]),
            _number(board["images"]),
            _rate(_ratio(board["images"], summary["wall_s"])),
            _percent(_ratio(board["busy_s"], summary["wall_s"])),
            _number(board["chunks"]),
            _number(board["faults"]),
        )
    return view


def write(
    output: Path,
    summary: Mapping[str, Any],
    timeline: Sequence[Span],
    dataset: Pictures | None,
    class_names: Sequence[str],
) -> None:
    """Write performance.png and report.html beside the predictions.parquet in `output`.

    The predictions are read in batches, so memory does not grow with their number. Without a
    `dataset` the report has no pictures.
    """
    end_s = max([1e-3, summary["wall_s"], *(span.stop_s for span in timeline)])
    lanes = _lanes(summary, timeline, end_s)
    _draw(output / "performance.png", summary, lanes, end_s)
    tally = _tally(output / "predictions.parquet", len(class_names))
    page = _render(summary, lanes, end_s, tally, dataset, class_names)
    (output / "report.html").write_text(page, encoding="utf-8")


def _lanes(summary: Mapping[str, Any], timeline: Sequence[Span], end_s: float) -> list[Lane]:
    spans = defaultdict(list)
    for span in timeline:
        spans[span.board, span.device].append(span)
    shared_names = Counter(board["name"] for board in summary["boards"])
    lanes = []
    for board in summary["boards"]:
        name, device = board["name"], board["device"]
        lanes.append(
            Lane(
                name if shared_names[name] == 1 else f"{name}/{device}",
                _ratio(board["images"], summary["wall_s"]),
                _ratio(board["images"], board["busy_s"]),
                _ratio(board["busy_s"], summary["wall_s"]),
                _blocks(spans[name, device], end_s),
                len(spans[name, device]) <= SPANS_PER_DEVICE,
            )
        )
    return lanes


def _blocks(spans: Sequence[Span], end_s: float) -> list[Block]:
    """The spans themselves or, of many, equal slices of time with the share that was busy."""
    if len(spans) <= SPANS_PER_DEVICE:
        return [Block(span.start_s, span.stop_s, 1.0) for span in spans]
    # Busy time up to any moment is piecewise linear between the starts and stops.
    times = np.array(sorted((span.start_s, span.stop_s) for span in spans))
    moments = np.maximum.accumulate(times.ravel())
    busy = np.cumsum(np.diff(moments, prepend=0.0) * (np.arange(moments.size) % 2))
    edges = np.linspace(0.0, end_s, SLICES_PER_DEVICE + 1)
    shares = np.diff(np.interp(edges, moments, busy)) / np.diff(edges)
    levels = np.where(shares > 0, np.maximum(np.round(shares * 8), 1), 0) / 8
    bounds = [0, *(np.flatnonzero(np.diff(levels)) + 1), SLICES_PER_DEVICE]
    return [
        Block(float(edges[start]), float(edges[stop]), float(levels[start]))
        for start, stop in zip(bounds, bounds[1:])
        if levels[start]
    ]


def _tally(predictions: Path, classes: int) -> Tally:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    counts = np.zeros((classes + 2, classes + 1), np.int64)
    right = 0
    frequency: Counter[tuple[int, int]] = Counter()
    examples: dict[tuple[int, int], list[int]] = defaultdict(list)
    with pq.ParquetFile(predictions) as file:
        for batch in file.iter_batches(ROWS_PER_READ, columns=["index", "label", "class"]):
            batch = batch.filter(pc.is_valid(batch["class"]))
            index = batch["index"].to_numpy()
            given = batch["class"].to_numpy().astype(np.int64)
            label = batch["label"].cast(pa.int64()).fill_null(-1).to_numpy()
            row = np.where(label < 0, classes + 1, np.minimum(label, classes))
            column = np.where((given < 0) | (given >= classes), classes, given)
            cells = np.bincount(row * (classes + 1) + column, minlength=counts.size)
            counts += cells.reshape(counts.shape)
            right += int(np.count_nonzero((label >= 0) & (label == given)))
            wrong = np.flatnonzero((label >= 0) & (label != given))
            pairs = label[wrong] * 2**16 + (given[wrong] + 2**15)
            order = np.argsort(pairs, kind="stable")
            found, starts, sizes = np.unique(pairs[order], return_index=True, return_counts=True)
            for pair, start, size in zip(found.tolist(), starts.tolist(), sizes.tolist()):
                key = (pair >> 16, (pair & 0xFFFF) - 2**15)
                frequency[key] += size
                room = min(size, PICTURES - len(examples[key]))
                examples[key] += index[wrong[order[start : start + room]]].tolist()
    # One of each confusion first, the most frequent ones leading; then seconds, thirds and so on.
    ranked = sorted(
        (rank, -frequency[pair], pair, index)
        for pair, indices in examples.items()
        for rank, index in enumerate(indices)
    )
    mistakes = [Mistake(index, *pair) for _, _, pair, index in ranked[:PICTURES]]
    return Tally(counts, right, sum(frequency.values()), mistakes)


def _draw(path: Path, summary: Mapping[str, Any], lanes: Sequence[Lane], end_s: float) -> None:
    """performance.png: a row per device, its rate on the left and its timeline on the right."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    ink, muted, accent, pale = "#15181e", "#5b6472", "#2f5fd0", "#dfe6f7"
    height = 1.35 + 0.34 * max(2, len(lanes))
    figure = Figure(figsize=(11, height), dpi=150, facecolor="white")
    figure.set_layout_engine("constrained", wspace=0.04)
    rates, times = figure.subplots(1, 2, sharey=True, width_ratios=(2, 3))
    rows = range(len(lanes))
    rates.barh(rows, [lane.ideal for lane in lanes], 0.62, color=pale)
    bars = rates.barh(rows, [lane.rate for lane in lanes], 0.62, color=accent)
    for row, lane in enumerate(lanes):
        if lane.ideal:
            rates.plot([lane.ideal] * 2, [row - 0.41, row + 0.41], color=ink, linewidth=1.6)
        for share in {block.share for block in lane.blocks}:
            blocks = [(b.start_s, b.stop_s - b.start_s) for b in lane.blocks if b.share == share]
            edge = 0.6 if lane.exact else 0.0
            times.broken_barh(
                blocks, (row - 0.31, 0.62), facecolor=(accent, share), edgecolor="white",
                linewidth=edge,
            )  # fmt: skip
    rates.set_yticks(rows, labels=[lane.name for lane in lanes], color=ink, parse_math=False)
    rates.set_ylim(max(2, len(lanes)) - 0.5, -0.5)
    rates.set_xlim(0, 1.06 * max([1.0, *(max(lane.rate, lane.ideal) for lane in lanes)]))
    rates.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    rates.set_xlabel("images/s")
    texts, moments = zip(*_ticks(end_s))
    times.set_xlim(0, end_s)
    times.set_xticks(moments, labels=texts)
    times.set_xlabel("since the job began")
    times.set_title("Busy when", loc="left", fontsize=10, color=ink)
    rates.set_title("Throughput", loc="left", fontsize=10, color=ink)
    line = Line2D([], [], color=ink, marker="|", markersize=9, markeredgewidth=1.6, linestyle="")
    rates.legend(
        [bars, line], ["in the job", "ideal: never waiting"], loc="lower right", ncols=2,
        bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8, labelcolor=muted, handlelength=1.2,
        borderaxespad=0.4, columnspacing=1.2,
    )  # fmt: skip
    for axes in (rates, times):
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color("#c3c9d2")
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", colors=muted, length=3, labelsize=9)
        axes.xaxis.label.set(color=muted, fontsize=9)
        axes.grid(axis="x", color="#e3e6eb", linewidth=0.8)
        axes.set_axisbelow(True)
    figure.suptitle(
        f"{summary['dataset']} on {summary['network']}: {_rate(summary['images_per_s'])} images/s"
        f" with {_count(len(lanes), 'device')}, {_percent(summary['efficiency'])} of ideal",
        x=0.008, ha="left", fontsize=13, fontweight="bold", color=ink, parse_math=False,
    )  # fmt: skip
    figure.savefig(path)


def _render(
    summary: Mapping[str, Any],
    lanes: Sequence[Lane],
    end_s: float,
    tally: Tally,
    dataset: Pictures | None,
    class_names: Sequence[str],
) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("distributed_pynq", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=_number, rate=_rate, percent=_percent, duration=_duration, short=_short, count=_count
    )
    labelled = tally.right + tally.wrong
    faults = Counter((fault["board"], fault["reason"]) for fault in summary.get("faults", []))
    return environment.get_template("report.html").render(
        s=summary,
        lanes=[
            {
                "name": lane.name,
                "rate": lane.rate,
                "ideal": lane.ideal,
                "busy": lane.busy,
                "paths": _paths(lane, end_s),
                "exact": lane.exact,
            }
            for lane in lanes
        ],
        top_rate=max([1e-9, *(max(lane.rate, lane.ideal) for lane in lanes)]),
        ticks=[(text, second / end_s) for text, second in _ticks(end_s)],
        busy=_busy(summary),
        faults=sum(board["faults"] for board in summary["boards"]),
        ratio=_ratio,
        labelled=labelled,
        right=tally.right,
        wrong=tally.wrong,
        matrix=_matrix(tally, class_names) if labelled else None,
        given=_given(tally, class_names),
        pictures=_pictures(tally.mistakes, dataset, class_names) if dataset else [],
        reasons=[(*fault, times) for fault, times in faults.most_common(REASONS)],
        failures=_failures(summary.get("failed", [])),
        done=sum(board["images"] for board in summary["boards"]),
    )


def _paths(lane: Lane, end_s: float) -> list[tuple[float, str]]:
    """(share, SVG path data) per shade, on a canvas 1000 wide and 1 high."""
    shades = defaultdict(list)
    for block in lane.blocks:
        left, right = (1000 * second / end_s for second in (block.start_s, block.stop_s))
        width = max(right - left, 0.5)
        shades[block.share].append(f"M{left:.1f} 0h{width:.1f}v1h-{width:.1f}z")
    return [(share, "".join(parts)) for share, parts in sorted(shades.items())]


def _ticks(end_s: float) -> list[tuple[str, float]]:
    """Four to eight round moments from 0 to `end_s`, as (text, second)."""
    unit, name = next(
        (unit, name) for unit, name in ((3600, "h"), (60, "min"), (0, "s")) if end_s >= 2 * unit
    )
    unit = unit or 1
    raw = end_s / unit / 6
    magnitude = 10.0 ** np.floor(np.log10(raw))
    step = magnitude * next(m for m in (1, 2, 5, 10) if m * magnitude >= raw)
    moments = np.arange(0, end_s / unit * (1 + 1e-9), step)
    return [(f"{moment:.10g}\u202f{name}", float(moment * unit)) for moment in moments]


def _matrix(tally: Tally, class_names: Sequence[str]) -> dict[str, Any]:
    """The confusion matrix as rows of cells, and images, recall and precision per class."""
    listed = len(class_names)
    counts = tally.counts[:-1]
    names = [*class_names, "outside the list"]
    rows = [n for n in range(listed + 1) if n < listed or counts[n].any()]
    columns = [n for n in range(listed + 1) if n < listed or counts[:, n].any()]
    totals, guesses = counts.sum(axis=1).tolist(), counts.sum(axis=0).tolist()
    return {
        "columns": [(n if n < listed else "…", names[n]) for n in columns],
        "rows": [
            {
                "number": row if row < listed else "…",
                "name": names[row],
                "total": totals[row],
                "cells": [
                    {
                        "count": int(counts[row, column]),
                        "given": names[column],
                        "right": row == column < listed,
                        "shade": 0.62 * _ratio(counts[row, column], totals[row]) ** 0.5,
                    }
                    for column in columns
                ],
            }
            for row in rows
        ],
        "classes": [
            {
                "name": names[n],
                "total": totals[n],
                "recall": counts[n, n] / totals[n] if totals[n] else None,
                "precision": counts[n, n] / guesses[n] if guesses[n] else None,
            }
            for n in range(listed)
        ],
    }


def _given(tally: Tally, class_names: Sequence[str]) -> list[tuple[str, int]]:
    counts = tally.counts.sum(axis=0).tolist()
    given = list(zip([*class_names, "outside the list"], counts))
    return given if counts[-1] else given[:-1]


def _pictures(
    mistakes: Iterable[Mistake], dataset: Pictures, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    def name(number: int) -> str:
        return class_names[number] if 0 <= number < len(class_names) else f"no. {number}"

    return [
        {
            "record": mistake.record,
            "label": name(mistake.label),
            "given": name(mistake.given),
            "source": _png(dataset.image(mistake.record)),
        }
        for mistake in mistakes
    ]


def _png(pixels: NDArray[np.uint8]) -> str:
    """A data URI of the picture, every pixel drawn as a square."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(pixels))
    size = (picture.width * MAGNIFICATION, picture.height * MAGNIFICATION)
    stream = io.BytesIO()
    picture.resize(size, Image.Resampling.NEAREST).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _failures(failed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Failed records by reason, the most frequent first; the last entry sums up the rest."""
    indices: dict[str, list[int]] = defaultdict(list)
    for failure in failed:
        indices[failure["reason"]].append(failure["index"])
    ranked = sorted(indices.items(), key=lambda item: -len(item[1]))
    failures = []
    for reason, records in ranked[:REASONS]:
        ranges = _ranges(records)
        text = ", ".join(ranges[:RANGES_PER_REASON])
        more = ", …" if len(ranges) > RANGES_PER_REASON else ""
        failures.append({"reason": reason, "images": len(records), "indices": text + more})
    if rest := ranked[REASONS:]:
        images = sum(len(records) for _, records in rest)
        reason = f"{_count(len(rest), 'other reason')}, all in summary.json"
        failures.append({"reason": reason, "images": images, "indices": ""})
    return failures


def _ranges(indices: Iterable[int]) -> list[str]:
    numbers = np.unique(np.fromiter(indices, np.int64))
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return [str(run[0]) if run.size == 1 else f"{run[0]}\u2013{run[-1]}" for run in runs]


def _busy(summary: Mapping[str, Any]) -> float:
    busy_s = sum(board["busy_s"] for board in summary["boards"])
    return _ratio(busy_s, summary["wall_s"] * len(summary["boards"]))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _number(value: int) -> str:
    return f"{value:,}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _percent(share: float | None, digits: int = 1) -> str:
    return "\u2013" if share is None else f"{100 * share:.{digits}f}\u202f%"


def _short(count: int) -> str:
    """A count in at most four characters, for the cells of a matrix."""
    for limit, unit in ((10**6, "M"), (10**3, "k")):
        if count >= limit:
            scaled = count / limit
            return f"{scaled:.1f}{unit}" if scaled < 9.95 else f"{scaled:.0f}{unit}"
    return str(count)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f}\u202fms"
    if seconds < 120:
        return f"{seconds:.2f}\u202fs"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes}\u202fmin {rest:02}\u202fs"
    return f"{minutes // 60}\u202fh {minutes % 60:02}\u202fmin"
