"""A volume that is finished is not done again, unless what it was made from or with has changed."""

import os
from types import SimpleNamespace

import pytest
from scripts.inference.volumes import Volumes


def write(path, content):
    """Write a file at a time of its own, as any two saves are."""
    earlier = path.stat().st_mtime_ns if path.exists() else 10**18
    path.write_bytes(content)
    os.utime(path, ns=(earlier + 10**6, earlier + 10**6))


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
    first._finish(SimpleNamespace(state=SimpleNamespace(batch=first.pending)))
    for result in ("mask", "anomaly_map"):
        write(tmp_path / "out" / "one" / f"one_{result}.nii.gz", b"result")
    return lambda **settings: [item["case"] for item in volumes(**settings).pending]


def test_finished_volume_is_not_done_again(pending):
    assert pending() == []


@pytest.mark.parametrize("name", ["scan", "brain", "model"])
def test_changed_file_of_the_same_size_is_noticed(pending, tmp_path, name):
    write(tmp_path / name, b"otherwise")
    assert pending() == ["one"]


def test_changed_setting_is_noticed(pending):
    assert pending(seed=1) == ["one"]
