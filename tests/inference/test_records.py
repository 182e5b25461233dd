"""A volume that is finished is not done again, unless what it was made from or with has changed."""

import json
import math
import os
from types import SimpleNamespace

import pytest
import torch
from monai.data import MetaTensor
from scripts.common.files import write_json
from scripts.inference.volumes import OUTCOME, RESULTS, Volumes


def write(path, content):
    """Write a file at a time of its own, as any two saves are."""
    earlier = path.stat().st_mtime_ns if path.exists() else 10**18
    path.write_bytes(content)
    os.utime(path, ns=(earlier + 10**6, earlier + 10**6))


def finished_engine(subjects):
    """An engine that has just segmented subjects of a few voxels and marked none of them."""
    plain = MetaTensor(torch.zeros(1, 2, 2, 2))
    state = SimpleNamespace(
        batch=[subject | {"brain_mask": plain + 1} for subject in subjects],
        output=[{"pred_mask": plain, "pred_anomaly_map": plain} for _ in subjects],
    )
    return SimpleNamespace(state=state, network=SimpleNamespace(planes=torch.tensor([-math.inf, math.inf])))


@pytest.fixture
def pending(tmp_path):
    """Gives the cases that are left to do, after finishing them all once."""
    for name in ("scan", "brain", "model"):
        write(tmp_path / name, b"as before")
    subjects = [{"case": "one", "image": [str(tmp_path / "scan")], "brain_mask": str(tmp_path / "brain")}]

    def volumes(**settings):
        return Volumes(subjects, str(tmp_path / "out"), str(tmp_path / "model"), {"seed": 0, **settings})

    first = volumes()
    assert [item["case"] for item in first.pending] == ["one"]
    first._begin(SimpleNamespace(state=SimpleNamespace(batch={"case": ["one"]})))
    for result in RESULTS:
        write(tmp_path / "out" / "one" / f"one_{result}.nii.gz", b"result")
    first._start_clock()
    first._finish(finished_engine(first.pending))
    return lambda **settings: [item["case"] for item in volumes(**settings).pending]


def test_finished_volume_is_not_done_again(pending):
    assert pending() == []


@pytest.mark.parametrize("name", ["scan", "brain", "model"])
def test_changed_file_of_the_same_size_is_noticed(pending, tmp_path, name):
    write(tmp_path / name, b"otherwise")
    assert pending() == ["one"]


def test_changed_setting_is_noticed(pending):
    assert pending(seed=1) == ["one"]


def test_volume_whose_run_was_killed_is_done_again(pending, tmp_path):
    record = tmp_path / "out/one/one_record.json"
    begun = {key: value for key, value in json.loads(record.read_text()).items() if key not in OUTCOME}
    record.write_text(json.dumps(begun))
    assert pending() == ["one"]
    (tmp_path / "out/one/one_anomaly_map.nii.gz").unlink()
    assert pending() == ["one"]


def test_result_that_a_person_corrected_is_not_replaced(pending, tmp_path):
    corrected = tmp_path / "out/one/one_anomaly_mask.nii.gz"
    write(corrected, b"by hand")
    with pytest.raises(ValueError, match="one_anomaly_mask.nii.gz was changed since `inference` wrote it"):
        pending(seed=1)
    assert pending() == [] and corrected.read_bytes() == b"by hand"


@pytest.mark.parametrize("results", [{}, [], None, {"one_anomaly_mask.nii.gz": None}])
def test_result_of_which_the_record_does_not_say_what_it_held_is_kept_beside(pending, tmp_path, results):
    record, mask = tmp_path / "out/one/one_record.json", tmp_path / "out/one/one_anomaly_mask.nii.gz"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"results": results}))
    write(mask, b"by hand")
    assert pending(seed=1) == ["one"]
    write_json(mask, "anew")
    assert mask.with_name(f"{mask.name}.kept1").read_bytes() == b"by hand"


@pytest.mark.parametrize("digest", [5, "0" * 64, {}])
def test_record_changed_by_hand_lets_no_result_be_replaced_that_is_not_as_it_says(pending, tmp_path, digest):
    record, name = tmp_path / "out/one/one_record.json", "one_anomaly_mask.nii.gz"
    content = json.loads(record.read_text())
    content["results"][name] = digest
    record.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{name} was changed since `inference` wrote it"):
        pending(seed=1)


@pytest.mark.parametrize("numbers", [{}, [], None, {"lesions": [{}]}, {"lesions": 1}])
def test_volume_whose_numbers_a_person_changed_is_done_again(pending, tmp_path, numbers):
    record = tmp_path / "out/one/one_record.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"numbers": numbers}))
    assert pending() == ["one"]


@pytest.mark.parametrize(
    "name", ["one", "one/one_anomaly_mask.nii.gz", "one/one_anomaly_map.nii.gz", "one/one_record.json"]
)
def test_result_that_a_person_moved_away_and_linked_back_is_not_replaced(pending, tmp_path, name):
    place, far = tmp_path / "out" / name, tmp_path / "far"
    place.rename(far), place.symlink_to(far)
    assert pending() == []  # finished, wherever it is
    with pytest.raises(ValueError, match=f"out/{name} is a symbolic link, and what it leads to is not replaced"):
        pending(seed=1)
    place.unlink(), far.rename(place)
    assert pending(seed=1) == ["one"]


@pytest.mark.parametrize("name", ["one_anomaly_mask.nii.gz", "one_anomaly_map.nii.gz", "one_record.json"])
@pytest.mark.parametrize("content", [b"{}", b'{"inputs": []}', b"another's"])
def test_file_of_another_is_not_replaced(tmp_path, name, content):
    write(tmp_path / "scan", b"scan")
    (tmp_path / "out/one").mkdir(parents=True)
    write(tmp_path / "out/one" / name, content)
    with pytest.raises(ValueError, match=f"{name} is in the way"):
        Volumes([{"case": "one", "image": [str(tmp_path / "scan")]}], str(tmp_path / "out"), "", {})
    assert (tmp_path / "out/one" / name).read_bytes() == content and len(list((tmp_path / "out/one").iterdir())) == 1


@pytest.mark.parametrize("kind", ["itself", "symbolic", "hard"])
def test_result_in_place_of_an_input_is_refused(tmp_path, kind):
    place = tmp_path / "out/one/one_anomaly_map.nii.gz"
    place.parent.mkdir(parents=True)
    image = place if kind == "itself" else tmp_path / "scan.nii.gz"
    write(image, b"scan")
    place.symlink_to(image) if kind == "symbolic" else os.link(image, place) if kind == "hard" else None
    with pytest.raises(ValueError, match="one_anomaly_map.nii.gz is an input of this run"):
        Volumes([{"case": "one", "image": [str(image)]}], str(tmp_path / "out"), "", {})
    assert image.read_bytes() == b"scan"


def test_result_of_another_scan_of_the_same_name_is_not_replaced(pending, tmp_path):
    write(tmp_path / "other", b"of somebody else")
    subjects = [{"case": "one", "image": [str(tmp_path / "other")]}]
    with pytest.raises(ValueError, match=r"holds the result of .*scan, which is another scan than .*other"):
        Volumes(subjects, str(tmp_path / "out"), str(tmp_path / "model"), {"seed": 0})
    (tmp_path / "scan").unlink()  # moved away, or its disk is gone: the same case at a new place is done again
    assert Volumes(subjects, str(tmp_path / "out"), str(tmp_path / "model"), {"seed": 0}).pending
