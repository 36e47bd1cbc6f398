"""Pages and tables: self-contained, complete, safe against odd names."""

import base64
import io
import json
import re
import struct
import zlib

import numpy as np
import pytest

from verifier.batch.results import Row, RowWriter
from verifier.cli.main import main
from verifier.report.html import Counterexample, render
from verifier.report.picture import difference_png, image_shape, intensity_png
from verifier.report.text import SweepProgress, print_summary

ROWS = [
    Row("a.onnx", "p/one.vnnlib", 5, "unsat", 0.5, "unsat", "bounds prove it"),
    Row("a.onnx", "p/two.vnnlib", 5, "sat", 0.25, "sat", "found"),
    Row("<b>.onnx", "p/[red]three.vnnlib.gz", 5, "sat", 1.0, "unsat", "found & replayed"),
    Row("<b>.onnx", "p/four.vnnlib", 5, "timeout", 5.0, "", "time"),
]


def pixels(uri):
    """RGB bytes [H, W, 3] of a PNG data URI, decoded by hand; every checksum is verified."""
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        (length,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + length
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    raw = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    assert not raw[:, 0].any()
    return raw[:, 1:].reshape(height, width, 3)


def test_intensity_maps_the_range_to_black_and_white():
    image = pixels(intensity_png(np.array([0.0, 1.0, 0.5, 2.0]), (1, 2, 2), 0.0, 1.0))
    assert image[:, :, 0].tolist() == [[0, 255], [128, 255]]
    colour = pixels(intensity_png(np.arange(12) / 11, (3, 2, 2), 0.0, 1.0))
    assert colour.shape == (2, 2, 3) and colour[0, 0].tolist() == [0, 93, 185]
    assert pixels(intensity_png(np.zeros(4), (1, 2, 2), 0.0, 0.0)).max() == 0


def test_difference_is_white_at_zero_and_tells_signs_apart():
    image = pixels(difference_png(np.array([0.0, 0.5, -0.5, 0.25]), (1, 2, 2), 0.5)).astype(int)
    assert image[0, 0].tolist() == [255, 255, 255]
    more, less = image[0, 1], image[1, 0]
    assert more[2] > more[0] and less[0] > less[2]
    assert pixels(difference_png(np.zeros(4), (1, 2, 2), 0.0)).min() == 255


def test_image_shapes():
    assert image_shape(64) == (1, 8, 8) and image_shape(784) == (1, 28, 28) and image_shape(3072) == (3, 32, 32)
    assert image_shape(5) is None and image_shape(4) is None and image_shape(65) is None


@pytest.mark.parametrize("size", [64, 5])
def test_a_page_stands_alone_and_says_everything(size):
    original, found = np.zeros(size), np.linspace(-0.1, 0.1, size)
    shown = Counterexample(ROWS[1], original, found, np.array([0.5, 2.0, -1.0]), "the image asked about", 3)
    page = render(ROWS, {}, shown, "A <title>")
    assert not re.search(r"https?:|<script|<link|url\(", page)
    assert "A &lt;title&gt;" in page and "&lt;b&gt;.onnx" in page and "<b>.onnx" not in page
    assert "1 proved" in page and "1 with a counterexample" in page and "1 contradict" in page
    assert "expected unsat" in page and "class 3" in page and "output 1: 2.0000" in page
    assert page.count("data:image/png") == (3 if size == 64 else 0)
    for row in ROWS:
        assert row.vnnlib.removeprefix("p/").removesuffix(".gz").removesuffix(".vnnlib") in page


def test_a_page_without_results():
    assert "0 properties" in render([], {}, None, "Empty")


def test_summary_and_progress_show_odd_names_and_wrong_verdicts():
    text = io.StringIO()
    with SweepProgress(len(ROWS), text) as progress:
        for row in ROWS:
            progress.add(row)
    lines = text.getvalue().splitlines()
    assert len(lines) == 4 and "[red]three" in lines[2] and "WRONG: expected unsat" in lines[2]
    text = io.StringIO()
    print_summary(ROWS, text)
    assert "<b>.onnx" in text.getvalue() and "answered sat, expected unsat" in text.getvalue()


def test_report_command(tmp_path, capsys):
    rows, details, page = tmp_path / "r.csv", tmp_path / "d.jsonl", tmp_path / "page.html"
    with open(rows, "w") as file:
        writer = RowWriter(file, header=True)
        for row in ROWS:
            writer.write(row)
    report = {
        "soundness": {"level": "ieee_float", "meaning": "holds for the program"}, "bound": {"after": 0.125},
        "witness": {"x": [0.5] * 64, "y": [1.0, 2.0], "text": ""},
    }  # fmt: skip
    reports = [report if row.verdict == "sat" else None for row in ROWS]
    names = [{"onnx": row.onnx, "vnnlib": row.vnnlib} for row in ROWS]
    lines = [{"row": name, "report": r} for name, r in zip(names, reports, strict=True)]
    details.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"row": {"on')
    originals = tmp_path / "o.json"
    originals.write_text(json.dumps({"two": {"x": [0.25] * 64, "label": 1}}))
    words = ["report", rows, "--details", details, "--originals", originals, "--out", page]
    assert main([str(w) for w in words]) == 0
    text = page.read_text()
    assert "class 1" in text and "at most 0.25" in text and "holds for the program" in text
    details.write_text("nonsense\n{}\n")
    assert main([str(w) for w in words]) == 2 and "d.jsonl:1" in capsys.readouterr().err
