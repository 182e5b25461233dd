"""A scan that is finished is not done again without a reason."""

import json
import os
from types import SimpleNamespace

import pytest
import torch
from monai.data import MetaTensor
from scripts.common.outputs import write_text
from scripts.inference.volumes import OUTCOME, RESULTS, Volumes


def write(path, content):
    """Write a file at a time of its own, as any two saves are."""
    earlier = path.stat().st_mtime_ns if path.exists() else 10**18
    path.write_bytes(content)
    os.utime(path, ns=(earlier + 10**6, earlier + 10**6))


def finished_engine(subject):
    """An engine that has just segmented a subject of a few voxels and marked none of them."""
    plain = MetaTensor(torch.zeros(1, 2, 2, 2))
    item = subject | {"brain_mask": plain + 1, "image": MetaTensor(plain)}
    state = SimpleNamespace(batch=[item], output=[{"pred_mask": plain, "pred_anomaly_map": plain}])
    return SimpleNamespace(state=state)


class Run:
    """Runs into one folder, of a scan that the first of them finishes."""

    def __init__(self, folder):
        self.folder, self.case, self.scan = folder, folder / "out" / "one", folder / "scan"
        for name in ("scan", "brain", "model"):
            write(folder / name, b"as before")
        volumes = self.volumes()
        volumes._begin(SimpleNamespace(state=SimpleNamespace(batch={"case": ["one"]})))
        for result in RESULTS:
            write_text(self.case / f"one_{result}.nii.gz", "result")
        volumes._finish(finished_engine(volumes.pending[0]))
        volumes.lock.close()

    def volumes(self, **settings):
        subject = {"case": "one", "image": [str(self.scan)], "brain_mask": str(self.folder / "brain")}
        return Volumes([subject], str(self.folder / "out"), str(self.folder / "model"), {"seed": 0, **settings})

    def left(self, **settings):
        """The scans that are left to do, and why others cannot be done."""
        volumes = self.volumes(**settings)
        return [subject["case"] for subject in volumes.pending], volumes.runner.failed.get("one", "")


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_finished_scan_is_done_again_only_where_its_files_or_settings_changed(run, tmp_path):
    assert run.left() == ([], "") and run.left(seed=1) == (["one"], "")
    for name in ("scan", "brain", "model"):
        before = (tmp_path / name).stat()
        write(tmp_path / name, b"otherwise")
        assert run.left() == (["one"], "")
        write(tmp_path / name, b"as before"), os.utime(tmp_path / name, ns=(before.st_mtime_ns,) * 2)
        assert run.left() == ([], "")


def test_scan_whose_run_was_killed_while_its_results_were_replaced_is_done_again(run):
    volumes = run.volumes(seed=1)
    volumes._begin(SimpleNamespace(state=SimpleNamespace(batch={"case": ["one"]})))
    write_text(run.case / "one_anomaly_mask.nii.gz", "other result")
    volumes.lock.close()
    assert not OUTCOME & json.loads((run.case / "one_record.json").read_text()).keys()
    assert run.left() == (["one"], "") and run.left(seed=1) == (["one"], "")


def test_result_that_a_person_corrected_stays_and_fails_its_scan_alone(run):
    write(run.case / "one_anomaly_mask.nii.gz", b"by hand")
    assert run.left() == ([], "")
    pending, reason = run.left(seed=1)
    assert pending == [] and "one_anomaly_mask.nii.gz was changed since it was written" in reason


@pytest.mark.parametrize("name", ["one_anomaly_map.nii.gz", "one_record.json"])
def test_what_lies_where_a_result_goes_fails_its_scan_alone(tmp_path, name):
    write(tmp_path / "scan", b"scan")
    place = tmp_path / "out" / "one" / name
    place.parent.mkdir(parents=True), place.write_text("mine")
    subjects = [{"case": case, "image": [str(tmp_path / "scan")]} for case in ("one", "two")]
    volumes = Volumes(subjects, str(tmp_path / "out"), "", {})
    assert [subject["case"] for subject in volumes.pending] == ["two"]
    assert f"{place} is in the way" in volumes.runner.failed["one"] and place.read_text() == "mine"


@pytest.mark.parametrize("numbers", [{}, [], None, {"lesions": [{}]}, {"lesions": 1}])
def test_scan_whose_numbers_a_person_changed_is_not_taken_for_finished(run, numbers):
    record = run.case / "one_record.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"numbers": numbers}))
    assert "one_record.json was changed since it was written" in run.left()[1]


def test_result_of_another_scan_of_the_same_name_is_not_replaced(run, tmp_path):
    write(tmp_path / "other", b"of somebody else")
    run.scan = tmp_path / "other"
    assert "holds the result of" in run.left()[1] and f"which is another scan than {tmp_path}/other" in run.left()[1]
    (tmp_path / "scan").unlink()  # moved away, or its disk is gone: the same case at a new place is done again
    assert run.left() == (["one"], "")


def test_table_that_a_person_changed_stops_the_run(run, tmp_path):
    run.volumes()._write_tables()
    (tmp_path / "out/volumes.csv").write_text("by hand")
    with pytest.raises(ValueError, match="volumes.csv was changed since it was written"):
        run.volumes()


def test_number_of_a_process_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="number the processes from 0"):
        Volumes([], str(tmp_path), "", {}, rank=2, world_size=2)
