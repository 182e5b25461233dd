"""Input that lies: whatever is read ends in a result that holds or in one sentence, soon.

Some hundred inputs, drawn from fixed seeds, so that a run repeats another; ``FUZZ=10`` draws ten times as many.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import make_scan, save_small_model, write_nifti
from evaluation.test_report import write_evaluation
from hostile import brain, check, outcome
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from scripts.common.model_file import load_model
from scripts.data.scans import find_scans
from scripts.data.transforms import LesionLabeld
from scripts.evaluation.report import write_report


def feed(number, strategy, examine):
    """Draw inputs, always the same, and see what becomes of each; some are refused and some are not."""
    refused = []

    @settings(
        max_examples=number * int(os.environ.get("FUZZ", "1")),
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def example(value):
        refused.append(examine(value) is not None)

    example()
    assert len(refused) >= number and any(refused) and not all(refused), (len(refused), sum(refused))


DAMAGE = st.one_of(
    st.tuples(
        st.just("flip"),
        st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=4),
    ),
    st.tuples(st.just("cut"), st.just(1.0) | st.floats(0, 1)),  # 1 leaves it whole
    st.tuples(st.just("append"), st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("replace"), st.binary(max_size=400)),
)


def damage(content, kind, how):
    """Bytes with bits flipped, cut off, added, or replaced."""
    content = bytearray(content)
    if kind == "flip":
        for place, bit in how:
            content[int(place * len(content))] ^= 1 << bit
    elif kind == "cut":
        del content[int(how * len(content)) :]
    elif kind == "append":
        content += how
    else:
        content = bytearray(how)
    return bytes(content)


# Scans and their labels

FIELDS = nib.Nifti1Header().structarr.dtype
STRANGE = (0, 1, -1, 2, 3, 5, 127, 255, 32767, -32768, 1e-30, 1e-3, 0.5, 1e5, 1e30, -1e30, np.nan, np.inf, -np.inf)
HEADERS = st.lists(
    st.tuples(st.sampled_from(FIELDS.names), st.integers(0, 7), st.sampled_from(STRANGE)), min_size=1, max_size=3
)


def lying_header(fields):
    """A NIfTI file whose header says something else than what it holds."""
    content = nib.Nifti1Image(brain(), np.diag([1, 1, 2, 1])).to_bytes()
    header = np.frombuffer(content[:348], FIELDS).copy()
    for name, index, value in fields:
        kind = header[name].dtype.kind
        entry = header[name].reshape(-1) if kind in "iuf" else header[name].view(np.uint8).reshape(-1)
        with np.errstate(all="ignore"):
            entry[index % len(entry)] = np.array(value, float).astype(entry.dtype)
    return header.tobytes() + content[348:]


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("kind", ["header", "damage"])
def test_scans_of_any_content(tmp_path, kind, is_packed):
    path = tmp_path / ("scan.nii.gz" if is_packed else "scan.nii")
    whole = nib.Nifti1Image(brain(), np.eye(4)).to_bytes()

    def examine(value):
        content = lying_header(value) if kind == "header" else whole
        content = gzip.compress(content, 1) if is_packed else content
        path.write_bytes(damage(content, *value) if kind == "damage" else content)
        found = check(path)
        return found if isinstance(found, str) else None

    feed(30, HEADERS if kind == "header" else DAMAGE, examine)


@pytest.mark.parametrize("kind", [np.float32, np.int16])
def test_labels_of_any_numbers(kind):
    values = st.lists(st.sampled_from([0, 1, 2, 4, 255, 0.4, -1, 1 + 1e-6, np.nan, np.inf]), min_size=1, max_size=9)

    def examine(numbers):
        with np.errstate(invalid="ignore"):
            label = MetaTensor(torch.from_numpy(np.array(numbers).astype(kind))[None, :, None])
        found, refusal = outcome(LesionLabeld("label"), {"label": label, "case": "one"})
        if refusal is None:
            assert torch.equal(found["label"] > 0, label > 0.5)
        return refusal

    feed(20, values, examine)


# Lists

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
NAMES = ["x.nii", "./x.nii", "../x.nii", "/etc/passwd", "a/../../x.nii", "", ".", "..", "x\0.nii", "y" * 5000, "é.nii"]
ODD_NAME = ANY_JSON | st.sampled_from(NAMES)


def test_datalists_that_lie(tmp_path):
    write_nifti(tmp_path / "x.nii", brain())
    entry = st.fixed_dictionaries(
        {"image": st.sampled_from(NAMES[:2]) | ODD_NAME | st.lists(ODD_NAME, max_size=2)},
        optional={"case": ODD_NAME | st.text(max_size=300), "label": ODD_NAME, "brain_mask": ODD_NAME},
    )
    whole = json.dumps({"training": [{"image": "x.nii", "label": "x.nii"}]}).encode()
    contents = st.lists(entry, min_size=1, max_size=2) | ANY_JSON
    texts = st.one_of(
        contents.map(lambda entries: json.dumps({"training": entries}).encode()),
        ANY_JSON.map(lambda content: json.dumps(content).encode()),
        DAMAGE.map(lambda how: damage(whole, *how)),
        st.just(b"[" * 100_000),
    )

    def examine(text):
        (tmp_path / "list.json").write_bytes(text)
        found, refusal = outcome(find_scans, str(tmp_path / "list.json"), ["flair"])
        for scan in found or ():
            assert os.path.basename(scan["case"]) == scan["case"] and scan["case"].strip(". ")
            assert all(os.path.realpath(file) == str(tmp_path / "x.nii") for file in scan["image"])
        return refusal

    feed(60, texts, examine)


def test_split_files_of_any_content(tmp_path):
    for case in ("a", "b", "é"):
        make_scan(tmp_path / "scans", case, modalities=("flair",), suffix=".nii")
    words = ["a", "b", "é", "a ", "# a", "", "../a", "/etc", "a/../b", ".", "\0", "b\u2028", "c" * 400]
    contents = st.one_of(
        st.lists(st.sampled_from(words), max_size=4).map(lambda lines: "\n".join(lines).encode()),
        st.binary(max_size=30),
        DAMAGE.map(lambda how: damage(b"a\nb\n", *how)),
    )

    def examine(content):
        (tmp_path / "split.txt").write_bytes(content)
        options = {"modalities": ["flair"], "split": str(tmp_path / "split.txt")}
        found, refusal = outcome(find_scans, str(tmp_path / "scans"), **options)
        assert refusal or {scan["case"] for scan in found} <= {"a", "b", "é"}
        return refusal

    feed(40, contents, examine)


# Evaluations


class Tags(HTMLParser):
    """The names of a page's tags, and of their attributes."""

    def __init__(self, text):
        super().__init__()
        self.names, self.attributes = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        self.attributes |= {name for name, _ in attributes}


CELLS = st.one_of(
    st.sampled_from(
        ["", "nan", "inf", "-1", "1e400", "<script>alert(1)</script>", '"><img onerror=alert(1)>', "../x.png"]
    ),
    st.text(max_size=10),
)


def change_csv(content, place, column, cell):
    """A table with one cell changed, or one heading."""
    rows = list(csv.reader(io.StringIO(content.decode())))
    row = rows[int(place * len(rows))]
    row[column % len(row)] = cell
    buffer = io.StringIO()
    csv.writer(buffer).writerows(rows)
    return buffer.getvalue().encode(errors="surrogatepass")


def test_evaluations_of_any_content(tmp_path):
    folder = tmp_path / "evaluation"
    write_evaluation(folder)
    files = {name: (folder / name).read_bytes() for name in ("summary.json", "cases.csv", "curves.csv")}
    summary = json.loads(files["summary.json"])
    cell = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 20), CELLS)
    changes = st.one_of(
        st.tuples(st.sampled_from(["cases.csv", "curves.csv"]), st.just("cell"), cell),
        st.tuples(st.just("summary.json"), st.just("entry"), st.tuples(st.sampled_from([*summary]), ANY_JSON | CELLS)),
        st.tuples(st.sampled_from([*files]), st.just("damage"), DAMAGE),
    )

    def examine(change):
        name, kind, how = change
        for other, content in files.items():
            (folder / other).write_bytes(content)
        if kind == "cell":
            (folder / name).write_bytes(change_csv(files[name], *how))
        elif kind == "entry":
            (folder / name).write_text(json.dumps(summary | {how[0]: how[1]}))
        else:
            (folder / name).write_bytes(damage(files[name], *how))
        page = folder / "report.html"
        page.unlink(missing_ok=True)
        _, refusal = outcome(write_report, str(folder))
        assert page.exists() == (refusal is None)
        if refusal is None:
            tags = Tags(page.read_text(encoding="utf-8"))
            assert tags.names.count("script") == 1 and not any(name.startswith("on") for name in tags.attributes)
        return refusal

    feed(20, changes, examine)


# Model files

ODD_VALUE = st.one_of(
    st.none(),
    st.integers(-2, 3),
    st.text(max_size=5),
    st.sampled_from([torch.zeros(0), torch.full((4, 2, 1, 1), float("nan")), torch.tensor(float("inf"))]),
    st.just(torch.ones(3, dtype=torch.complex64)),
)


def test_model_files_of_any_content(tmp_path):
    model_file = save_small_model(tmp_path / "whole.pt")
    whole, weights = model_file.read_bytes(), torch.load(model_file, weights_only=True)

    def saved(content):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()

    keys = st.sampled_from([*weights])
    contents = st.one_of(
        DAMAGE.map(lambda how: damage(whole, *how)),
        st.dictionaries(keys, ODD_VALUE, min_size=1, max_size=2).map(lambda change: saved(weights | change)),
        keys.map(lambda gone: saved({name: value for name, value in weights.items() if name != gone})),
    )

    def examine(content):
        (tmp_path / "model.pt").write_bytes(content)
        model, refusal = outcome(load_model, str(tmp_path / "model.pt"))
        assert refusal or all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        return refusal

    feed(25, contents, examine)
