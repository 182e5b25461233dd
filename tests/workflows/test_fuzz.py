"""Input that lies: whatever is read ends in a result that holds or in one sentence, soon, and leaves no file then.

A short form of 360 inputs runs by default; the long one, 3,250 of the same kinds and 17 more commands, takes minutes:

    python -m pytest -m slow tests/workflows/test_fuzz.py

The inputs are drawn from fixed seeds, so that a run repeats another.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import CONFIGS, SMALL_NETWORK, files_of, make_scan, run_bundle, write_nifti
from evaluation.test_report import write_evaluation
from fire.parser import DefaultParseValue
from hostile import SECONDS, Segmenter, brain, files_below, outcome, save_small_model
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ignite.engine import Engine
from monai.bundle import ConfigParser
from scripts.common.checks import RULES
from scripts.common.model_file import load_model
from scripts.data.preprocessing import preprocess
from scripts.data.scans import find_scans
from scripts.data.slices import common_field_of_view, covered_planes, read_slices
from scripts.evaluation.report import write_report
from scripts.training.checkpoint import TrainingCheckpoint


def forms(short, long):
    """Run a test with few inputs by default and with many in the long form."""
    many = pytest.param(long, marks=pytest.mark.slow, id="long")
    return pytest.mark.parametrize("number", [pytest.param(short, id="short"), many])


def feed(number, strategy, check):
    """Draw inputs, always the same, and check what becomes of each; both outcomes must be among them."""
    refused = []

    @settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def examine(value):
        refused.append(check(value) is not None)

    examine()
    assert len(refused) >= number and any(refused), (len(refused), sum(refused))
    assert not all(refused) or number < 20


FLIPS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=4)
DAMAGE = st.one_of(
    st.tuples(st.just("flip"), FLIPS),
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("append"), st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("replace"), st.binary(max_size=400)),
    st.tuples(st.just("overwrite"), st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=16))),
)


def damage(content, kind, how):
    """Bytes with bits flipped, cut off, added, or overwritten."""
    content = bytearray(content)
    if kind == "flip":
        for place, bit in how:
            content[int(place * len(content))] ^= 1 << bit
    elif kind == "cut":
        del content[int(how * len(content)) :]
    elif kind == "append":
        content += how
    elif kind == "replace":
        content = bytearray(how)
    else:
        place, new = how
        start = int(place * len(content))
        content[start : start + len(new)] = new
    return bytes(content)


FIELDS = nib.Nifti1Header().structarr.dtype
STRANGE = (
    0,
    1,
    -1,
    2,
    3,
    5,
    7,
    127,
    128,
    255,
    32767,
    -32768,
    1e-30,
    1e-3,
    0.5,
    1e5,
    1e30,
    -1e30,
    np.nan,
    np.inf,
    -np.inf,
)
HEADERS = st.lists(
    st.tuples(st.sampled_from(FIELDS.names), st.integers(0, 7), st.sampled_from(STRANGE)), min_size=1, max_size=3
)


def lying_header(fields):
    """A NIfTI file whose header says something else than what it holds."""
    content = nib.Nifti1Image(brain(), np.diag([1, 1, 2, 1])).to_bytes()
    header = np.frombuffer(content[:348], FIELDS).copy()
    for name, index, value in fields:
        entry = (
            header[name].reshape(-1) if header[name].dtype.kind in "iuf" else header[name].view(np.uint8).reshape(-1)
        )
        with np.errstate(all="ignore"):
            entry[index % len(entry)] = np.array(value, float).astype(entry.dtype)
    return header.tobytes() + content[348:]


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    return Segmenter(tmp_path_factory.mktemp("segmenter"))


def check_bytes(segmenter, folder, content, packed):
    path = folder / ("scan.nii.gz" if packed else "scan.nii")
    path.write_bytes(content)
    found = segmenter.check(path)
    return found if isinstance(found, str) else None


@forms(40, 450)
@pytest.mark.parametrize("packed", [False, True])
def test_headers_that_lie(segmenter, tmp_path, number, packed):
    def check(fields):
        content = lying_header(fields)
        return check_bytes(segmenter, tmp_path, gzip.compress(content, 1) if packed else content, packed)

    feed(number, HEADERS, check)


@forms(20, 200)
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_scans(segmenter, tmp_path, number, packed):
    whole = nib.Nifti1Image(brain(), np.eye(4)).to_bytes()

    def check(how):
        return check_bytes(segmenter, tmp_path, damage(gzip.compress(whole, 1) if packed else whole, *how), packed)

    feed(number, DAMAGE, check)


@forms(15, 150)
def test_masks_of_any_content(tmp_path, number):
    make_scan(tmp_path / "scans", "a", modalities=("flair",), suffix=".nii")
    plain = np.zeros((14, 18, 12), np.uint8)
    plain[4:9, 5:12, 2:9] = 1
    whole = nib.Nifti1Image(plain, np.eye(4)).to_bytes()
    transform = ConfigParser(ConfigParser.load_config_file(str(CONFIGS / "preprocess.json"))).get_parsed_content(
        "preprocessing"
    )
    where = st.sampled_from(["seg", "mask"])

    def check(value):
        suffix, how = value
        for old in tmp_path.glob("scans/a/a_[sm]*"):
            old.unlink()
        (tmp_path / "scans" / "a" / f"a_{suffix}.nii").write_bytes(damage(whole, *how))
        output = tmp_path / "slices"
        counts, refusal = outcome(
            preprocess,
            str(tmp_path / "scans"),
            str(output),
            ["flair"],
            {"training": ["a"]},
            transform,
            {},
            {"training": "all"},
            slice_range=None,
            brain_mask="mask" if suffix == "mask" else None,
            num_workers=0,
        )
        if refusal is None:
            slices = read_slices(output, "training", ["flair"])
            assert len(slices) == counts["training"] > 0
            for item in slices:
                assert np.isfinite(np.load(item["image"])).all()
                assert set(np.unique(np.load(item["brain_mask"]))) <= {0, 1}
        else:
            assert not files_below(output) or files_below(output) == [], files_below(output)
        for path in files_below(output):
            path.unlink()
        return refusal

    feed(number, st.tuples(where, DAMAGE), check)


@pytest.fixture(scope="module")
def load_slices():
    """The transforms of a config that read slices."""
    parser = ConfigParser(ConfigParser.load_config_file(str(CONFIGS / "train.json")))
    parser["image_size"] = 16
    return parser.get_parsed_content("train#preprocessing")


def array_bytes(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


ARRAYS = st.builds(
    lambda shape, kind, value: array_bytes(np.full(shape, value).astype(kind)),
    st.lists(st.integers(0, 9), max_size=5).map(tuple),
    st.sampled_from(["f2", "f4", ">f4", "f8", "i1", ">i8", "u8", "?", "c8", "S3", "U2", "M8[s]", "V4"]),
    st.sampled_from([0, 1, -1, 100]),
)
SLICES = st.one_of(
    ARRAYS,
    DAMAGE.map(lambda how: damage(array_bytes(np.ones((1, 9, 8), np.float32)), *how)),
    st.sampled_from([np.nan, np.inf, 1e39]).map(lambda x: array_bytes(np.full((1, 9, 8), x))),
    st.just(array_bytes(np.array([{}, 1], dtype=object), allow_pickle=True)),
)


@forms(25, 250)
def test_slices_of_any_content(tmp_path, load_slices, number):
    good = {"image": np.ones((1, 9, 8), np.float32), "brain_mask": np.ones((1, 9, 8), np.uint8)}
    entry = {"case": "a", "slice": 1, "image": "image.npy", "brain_mask": "brain_mask.npy"}
    (tmp_path / "datalist.json").write_text(json.dumps({"modalities": ["flair"], "training": [entry]}))

    def load():
        return [load_slices(item) for item in read_slices(tmp_path, "training", ["flair"])]

    def check(value):
        key, content = value
        for name, array in good.items():
            np.save(tmp_path / f"{name}.npy", array)
        (tmp_path / f"{key}.npy").write_bytes(content)
        found, refusal = outcome(load)
        if refusal is None:
            for item in found:
                assert item["image"].shape == item["brain_mask"].shape == (1, 16, 16)
                assert torch.isfinite(item["image"]).all() and torch.isfinite(item["brain_mask"]).all()
        return refusal

    feed(number, st.tuples(st.sampled_from(["image", "brain_mask"]), SLICES), check)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
ODD_NAME = st.one_of(
    ANY_JSON,
    st.sampled_from(
        ["x.npy", "../x.npy", "/etc/passwd", "a/../../x.npy", "", ".", "..", "x\0.npy", "y" * 5000, "é.npy"]
    ),
)


@forms(25, 250)
def test_lists_of_slices_that_lie(tmp_path, number):
    np.save(tmp_path / "x.npy", np.zeros((1, 4, 4), np.float32))
    np.save(tmp_path / "é.npy", np.zeros((1, 4, 4), np.float32))
    entry = {"case": "a", "slice": 1, "image": "x.npy", "brain_mask": "x.npy"}
    entry |= {"position": 3.5, "field_of_view": [157.0, 189.0]}
    keys = st.sampled_from([*entry, "label", "other"])
    changed = st.dictionaries(keys, ODD_NAME, max_size=2).map(lambda change: entry | change)
    whole = json.dumps({"modalities": ["flair"], "training": [entry]}).encode()
    texts = st.one_of(
        st.lists(changed, min_size=1, max_size=2).map(
            lambda entries: json.dumps({"modalities": ["flair"], "training": entries}).encode()
        ),
        st.fixed_dictionaries({}, optional={"modalities": ANY_JSON, "training": ANY_JSON}).map(
            lambda content: json.dumps(content).encode()
        ),
        ANY_JSON.map(lambda content: json.dumps(content).encode()),
        DAMAGE.map(lambda how: damage(whole, *how)),
        st.just(b"[" * 100_000),
    )

    def read():
        found = read_slices(tmp_path, "training", ["flair"])
        return found, common_field_of_view(found), covered_planes(found)

    def check(text):
        (tmp_path / "datalist.json").write_bytes(text)
        found, refusal = outcome(read)
        if refusal is None:
            slices, size, planes = found
            assert slices and all(item["image"].startswith(f"{tmp_path}/") for item in slices)
            assert np.isfinite(size).all() and not np.isnan(planes).any()
        return refusal

    feed(number, texts, check)


@forms(25, 250)
def test_decathlon_lists_that_lie(tmp_path, number):
    write_nifti(tmp_path / "x.nii", brain())
    names = st.one_of(ODD_NAME, st.sampled_from(["x.nii", "./x.nii"]))
    changed = st.fixed_dictionaries(
        {"image": st.one_of(names, st.lists(names, max_size=2))},
        optional={"case": ODD_NAME | st.text(max_size=300), "label": names, "brain_mask": names},
    )
    whole = json.dumps({"training": [{"image": "x.nii", "label": "x.nii"}]}).encode()
    texts = st.one_of(
        st.lists(changed, min_size=1, max_size=2).map(lambda entries: json.dumps({"training": entries}).encode()),
        ANY_JSON.map(lambda content: json.dumps({"training": content}).encode()),
        ANY_JSON.map(lambda content: json.dumps(content).encode()),
        DAMAGE.map(lambda how: damage(whole, *how)),
    )
    path = tmp_path / "list.json"

    def check(text):
        path.write_bytes(text)
        found, refusal = outcome(find_scans, str(path), ["flair"])
        if refusal is None:
            for subject in found:
                assert os.path.basename(subject["case"]) == subject["case"] and subject["case"].strip(". ")
                assert all(os.path.realpath(file) == str(tmp_path / "x.nii") for file in subject["image"])
        return refusal

    feed(number, texts, check)


@forms(20, 150)
def test_split_files_of_any_content(tmp_path, number):
    for case in ("a", "b", "é"):
        make_scan(tmp_path / "scans", case, modalities=("flair",), suffix=".nii")
    lines = st.lists(
        st.sampled_from(["a", "b", "é", "a ", "# a", "", "../a", "/etc", "a/../b", ".", "\0", "b\u2028", "c" * 400]),
        max_size=4,
    ).map(lambda found: "\n".join(found).encode())
    contents = st.one_of(
        lines,
        st.binary(max_size=30),
        st.text(max_size=20).map(str.encode),
        DAMAGE.map(lambda how: damage(b"a\nb\n", *how)),
    )
    path = tmp_path / "split.txt"

    def check(content):
        path.write_bytes(content)
        found, refusal = outcome(find_scans, str(tmp_path / "scans"), ["flair"], split=str(path))
        if refusal is None:
            assert {subject["case"] for subject in found} <= {"a", "b", "é"} and found
        return refusal

    feed(number, contents, check)


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
        ["", "nan", "inf", "-1", "1e400", "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "../../x.png"]
    ),
    st.text(max_size=10),
    st.integers(-5, 10**25).map(str),
)


def change_csv(content, place, column, cell):
    """A table with one cell changed, or one heading."""
    rows = list(csv.reader(io.StringIO(content.decode())))
    row = rows[int(place * len(rows))]
    row[column % len(row)] = cell
    buffer = io.StringIO()
    csv.writer(buffer).writerows(rows)
    return buffer.getvalue().encode(errors="surrogatepass")


@forms(30, 250)
def test_evaluations_of_any_content(tmp_path, number):
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

    def check(change):
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
        if refusal is None:
            tags = Tags(page.read_text(encoding="utf-8"))
            assert tags.names.count("script") == 1 and not any(name.startswith("on") for name in tags.attributes)
        else:
            assert not page.exists()
        return refusal

    feed(number, changes, check)


def torch_bytes(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


ODD_VALUE = st.one_of(
    st.none(),
    st.integers(-2, 3),
    st.text(max_size=5),
    st.just(torch.zeros(0)),
    st.just(torch.full((4, 2, 1, 1), float("nan"))),
    st.just(torch.ones(3, dtype=torch.complex64)),
    st.just(torch.tensor(float("inf"))),
)


@forms(20, 200)
def test_model_files_of_any_content(tmp_path, segmenter, number):
    whole = segmenter.model_file.read_bytes()
    weights = torch.load(segmenter.model_file, weights_only=True)
    keys = st.sampled_from([*weights])
    contents = st.one_of(
        DAMAGE.map(lambda how: damage(whole, *how)),
        st.dictionaries(keys, ODD_VALUE, min_size=1, max_size=2).map(lambda change: torch_bytes(weights | change)),
        st.sets(keys, min_size=1, max_size=2).map(
            lambda gone: torch_bytes({name: value for name, value in weights.items() if name not in gone})
        ),
        ODD_VALUE.map(torch_bytes),
    )
    path = tmp_path / "model.pt"

    def check(content):
        path.write_bytes(content)
        model, refusal = outcome(load_model, str(path))
        if refusal is None:
            assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        return refusal

    feed(number, contents, check)


def small_training(path):
    """A training of one layer, and how it would go on from a checkpoint."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    parts = {
        "network": network,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer),
    }
    validator = Mock(state=Mock(metrics={"error": 1.0}, key_metric_name="error"))
    checkpoint = TrainingCheckpoint(path, parts, torch.optim.swa_utils.AveragedModel(network), validator, resume=True)
    engine = Engine(lambda engine, batch: None)
    engine.run([0], max_epochs=2)
    return checkpoint, engine


@forms(20, 150)
def test_checkpoints_of_any_content(tmp_path, number):
    path = tmp_path / "checkpoint.pt"
    checkpoint, engine = small_training(path)
    checkpoint._epoch(engine)
    whole, content = path.read_bytes(), torch.load(path, weights_only=True)
    keys = st.sampled_from([*content])
    contents = st.one_of(
        DAMAGE.map(lambda how: damage(whole, *how)),
        st.tuples(keys, ODD_VALUE).map(lambda change: torch_bytes(content | {change[0]: change[1]})),
        st.tuples(keys, st.sampled_from([*content["network"], "state", "param_groups", "iteration"]), ODD_VALUE).map(
            lambda change: torch_bytes(
                content
                | {
                    change[0]: {**content[change[0]], change[1]: change[2]}
                    if isinstance(content[change[0]], dict)
                    else 0
                }
            )
        ),
        keys.map(lambda gone: torch_bytes({name: value for name, value in content.items() if name != gone})),
    )

    def check(changed):
        path.write_bytes(changed)
        again, other = small_training(path)
        _, refusal = outcome(again._load, other)
        if refusal is None:
            network = again.save_dict["network"]
            assert all(torch.isfinite(value).all() for value in network.state_dict().values())
            network(torch.ones(1, 3)).sum().backward()
            again.save_dict["optimizer"].step()
            assert isinstance(other.state.iteration, int)
        return refusal

    feed(number, contents, check)


TOP_IDS = {
    name: [key for key in ConfigParser.load_config_files(files_of(name)) if key in RULES]
    for name in ("train", "preprocess", "inference", "evaluate", "evaluate_slices")
}
TOP_IDS["preprocess"] += ["split_training", "split_testing"]
TEXTS = st.one_of(
    st.sampled_from(
        [
            "",
            "null",
            "none",
            "None",
            "nan",
            "inf",
            "-inf",
            "1e400",
            "1e-400",
            "-1",
            "0",
            "1",
            "0.5",
            "2",
            "16",
            "True",
            "tru",
        ]
        + [
            "[]",
            "[1]",
            "[0,1]",
            "[1,0]",
            "[2,5]",
            "['flair']",
            "['../x']",
            "['a','b']",
            "{}",
            "{'a':1}",
            "()",
            "é",
            "名前",
        ]
        + [
            "bright",
            "both",
            "cpu",
            "cuda:99",
            "meta",
            "x" * 5000,
            "\u202e",
            "../..",
            "/dev/null",
            "10" * 20,
            "b'x'",
            "a.nii",
        ]
    ),
    st.integers(-5, 20).map(str),
    st.floats(-2, 2).map(str),
    st.text(st.characters(exclude_characters="$@%", exclude_categories=["Cs"]), max_size=8),
)


@pytest.fixture(scope="module")
def every_config(tmp_path_factory, training_scans):
    """For each config the overrides that make it run in a second, and its run id."""
    root = tmp_path_factory.mktemp("configs")
    for case in "ab":
        make_scan(root / "scans", case, lesion={4: 9}, modalities=("flair", "t1"), suffix=".nii")
    for split in ("training", "validation", "testing"):
        (root / "scans" / f"split_{split}.txt").write_text("b\n" if split == "testing" else "a\n")
    (root / "scans" / "split_validation.txt").unlink()
    short = {"image_size": 16, **SMALL_NETWORK}
    scans = {"dataset_dir": str(root / "scans"), "modalities": ["flair"]}
    slices = {"dataset_dir": str(training_scans), "modalities": ["flair", "t1"]}
    one = save_small_model(root / "one.pt")
    length = {"iterations": 2, "validation_interval": 1, "batch_size": 2}
    run_bundle("train", output_dir=str(root / "run"), model_file=str(root / "two.pt"), **slices, **short, **length)
    preprocessing = {"split_validation": "null", "num_workers": 0, "slice_range": [2, 9]}
    return {
        "train": {**slices, **short, **length, "output_dir": "out", "model_file": "out/model.pt"},
        "preprocess": {**scans, **preprocessing, "output_dir": "out"},
        "inference": {**scans, **short, "model_file": str(one), "output_dir": "out"},
        "evaluate": {**scans, **short, "model_file": str(one), "output_dir": "out", "pictures": False},
        "evaluate_slices": {
            **slices,
            **short,
            "model_file": str(root / "two.pt"),
            "output_dir": "out",
            "pictures": False,
        },
    }


@forms(12, 60)
@pytest.mark.parametrize("name", [*TOP_IDS])
def test_values_of_the_command_line(every_config, tmp_path, monkeypatch, number, name):
    count = iter(range(10**9))

    def check(value):
        key, text = value
        place = tmp_path / str(next(count))
        place.mkdir()
        monkeypatch.chdir(place)
        parsed = DefaultParseValue(text)
        change = {} if parsed is None else {key: parsed}  # MONAI drops what is None
        _, refusal = outcome(run_bundle, name, **every_config[name] | change)
        left = [path for path in files_below(place) if "tfevents" not in path.name]  # the log of a training that began
        assert refusal is None or not left, (refusal, left)
        return refusal

    feed(number, st.tuples(st.sampled_from(TOP_IDS[name]), TEXTS), check)


COMMANDS = [
    ("inference", ["--image", "{}/zeros.nii"]),
    ("training", ["--iterations", "many"]),
    ("preprocess", ["--dataset_dir", "5"]),
    ("inference", ["--image", "{}/pipe.nii"]),
    ("inference", ["--modalities", "flair"]),
    ("inference", ["--model_file", "{}/zeros.nii", "--image", "{}/scan.nii"]),
    ("inference", ["--device", "cuda:99", "--image", "{}/scan.nii"]),
    ("training", ["--seed", "nan"]),
    ("training", ["--learning_rate", "-1"]),
    ("training", ["--modalities", "null"]),
    ("training", ["--device", "toaster"]),
    ("training", ["--dataset_dir", "{}/listed"]),
    ("calibrate", ["--model_file", "{}"]),
    ("preprocess", ["--slice_range", "[5]"]),
    ("preprocess", ["--dataset_dir", "{}/bad.json", "--split_training", "training"]),
    ("evaluate", ["--threshold_scale", "inf"]),
    ("evaluate", ["--subsets", "visible.txt"]),
    ("evaluate", ["--baselines", "none"]),
    ("report", ["--output_dir", "{}/listed"]),
    ("report", ["--output_dir", "7"]),
]
CONFIG_OF = {"training": "train", "calibrate": "train", "report": "evaluate_slices"}


@pytest.mark.parametrize(
    ("command", "options"),
    [
        pytest.param(*entry, marks=[pytest.mark.slow] * (index > 2), id=f"{entry[0]}{index}")
        for index, entry in enumerate(COMMANDS)
    ],
)
def test_commands_end_in_one_sentence(tmp_path, command, options):
    (tmp_path / "zeros.nii").touch()
    os.mkfifo(tmp_path / "pipe.nii")
    write_nifti(tmp_path / "scan.nii", brain())
    (tmp_path / "listed").mkdir()
    for name in ("datalist.json", "summary.json", "cases.csv", "curves.csv"):
        (tmp_path / "listed" / name).write_text('{"training": 3}')
    (tmp_path / "bad.json").write_text('{"training": [{"image": "/etc/passwd"}]}')
    before = files_below(tmp_path)
    arguments = [option.format(tmp_path) for option in options]
    config = str(files_of(CONFIG_OF.get(command, command)))
    environment = {key: value for key, value in os.environ.items() if key != "ITERMASK_TRACEBACK"}
    result = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", command, "--config_file", config, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=3 * SECONDS,
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr + result.stdout, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and last.endswith("(ITERMASK_TRACEBACK=1 shows where)")
    assert files_below(tmp_path) == before
