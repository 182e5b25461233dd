"""Preprocessing: the slices are the right ones, an interrupted run goes on, and bad input ends with one sentence."""

import errno
import fcntl
import gzip
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import CONFIGS, make_scan, needs_data, run_bundle, write_nifti
from scripts.common.errors import innermost_message
from scripts.data.preprocessing import _start_worker
from scripts.data.slices import read_slices
from tqdm import tqdm

DATA = os.environ.get("ITERMASK_DATA")


def preprocess(scans, output, **overrides):
    """Run preprocess.json on tiny scans."""
    defaults = {"modalities": ["flair", "t1"], "slice_range": [2, 9], "num_workers": 0}
    run_bundle("preprocess", dataset_dir=str(scans), output_dir=str(output), **(defaults | overrides))
    return json.loads((output / "datalist.json").read_text())


def failure(scans, output, **overrides):
    """The sentence that a user reads when preprocessing ends early, with no datalist and no half of a subject."""
    with pytest.raises(Exception) as caught:
        preprocess(scans, output, **overrides)
    assert not list(output.rglob(".partial_slices*"))
    assert not multiprocessing.active_children()
    return innermost_message(caught.value)


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def numbers(datalist, split):
    return [(item["case"], item["slice"]) for item in datalist[split]]


def test_each_split_keeps_its_kind_of_slices(scans_dir, tmp_path, capsys):
    datalist = preprocess(scans_dir, tmp_path / "out")
    healthy = [("a", k) for k in (2, 3, 6, 7, 8)] + [("b", k) for k in range(2, 9)]
    assert numbers(datalist, "training") == healthy
    assert numbers(datalist, "validation") == [("c", k) for k in range(2, 9)]
    assert numbers(datalist, "testing") == [("d", 6)]
    assert "testing: no slice of the kind in e; left out" in capsys.readouterr().out
    assert datalist["modalities"] == ["flair", "t1"] and datalist["slice_range"] == [2, 9]
    assert datalist["upper_fraction"] == 0.9 and datalist["lower_fraction"] == 0.02


def test_slices_are_what_the_volumes_hold(scans_dir, tmp_path):
    preprocess(scans_dir, tmp_path / "out")
    (item,) = read_slices(tmp_path / "out", "testing", ["flair", "t1"])
    image, brain_mask, label = (np.load(item[key]) for key in ("image", "brain_mask", "label"))
    volumes = [np.asarray(nib.load(scans_dir / f"d/d_{name}.nii.gz").dataobj) for name in ("flair", "t1", "seg")]
    assert image.dtype == np.float32 and brain_mask.dtype == label.dtype == np.uint8
    np.testing.assert_array_equal(label[0], volumes[2][..., 6] > 0)
    np.testing.assert_array_equal(brain_mask[0], volumes[0][..., 6] > 0)
    for channel, volume in zip(image, volumes, strict=False):
        lower, upper = np.quantile(volume[volume > 0], [0.02, 0.9])
        expected = np.where(volume > 0, (volume - lower) / (upper - lower) * 6 - 3, -3)[..., 6]
        np.testing.assert_allclose(channel, expected, atol=1e-5)


@pytest.mark.parametrize("axes", ["LAS", "PIR", "SLP"])
def test_orientation_of_the_file_changes_nothing(scans_dir, tmp_path, axes):
    turned = tmp_path / "turned"
    shutil.copytree(scans_dir, turned)
    for path in turned.glob("*/*.nii.gz"):
        change = nib.orientations.axcodes2ornt(axes)
        image = nib.load(path).as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), change))
        assert nib.aff2axcodes(image.affine) == tuple(axes)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj).copy(), image.affine), path)
    expected, found = (preprocess(folder, tmp_path / f"{folder.name}_out") for folder in (scans_dir, turned))
    assert expected == found
    arrays = [
        {name: content for name, content in tree(tmp_path / f"{folder.name}_out").items() if name.endswith(".npy")}
        for folder in (scans_dir, turned)
    ]
    assert len(arrays[0]) == 12 * 3 + 7 * 3 + 3 and arrays[0] == arrays[1]


def test_uncompressed_files_and_one_modality(tmp_path):
    for suffix in (".nii", ".nii.gz"):
        make_scan(tmp_path / suffix, "a", modalities=["any_name"], suffix=suffix)
        splits = {"split_training": ["a"], "split_validation": "null", "split_testing": "null"}
        datalist = preprocess(tmp_path / suffix, tmp_path / f"out{suffix}", modalities=["any_name"], **splits)
        keys = {"case", "slice", "plane", "field_of_view", "position", "median", "deviation", "image", "brain_mask"}
        assert datalist["training"][0].keys() == keys
        assert datalist["training"][0]["position"] == datalist["training"][0]["slice"]  # 1 mm slices from 0
        assert datalist["training"][0]["field_of_view"] == [14.0, 18.0]
    first, second = (tmp_path / f"out{suffix}/training/a/005_image.npy" for suffix in (".nii", ".nii.gz"))
    assert np.load(first).shape == (1, 14, 18) and first.read_bytes() == second.read_bytes()


def one_scan(folder, voxels, label=None, **other):
    """A folder with the scan "one" of one modality, and what makes `preprocess` take it for testing or training."""
    write_nifti(folder / "one/one_flair.nii.gz", voxels, other.get("affine"))
    if label is not None:
        write_nifti(folder / "one/one_seg.nii.gz", label)
    splits = {"split_training": ["one"], "split_validation": "null", "split_testing": "null"}
    return {"modalities": ["flair"], "slice_range": "null", **splits}


def test_one_slice_volumes(tmp_path):
    plane = np.zeros((15, 11, 1), np.uint8)
    plane[3:12, 2:9, 0] = np.random.default_rng(0).integers(1, 256, (9, 7))
    options = one_scan(tmp_path / "scans", plane, label=(plane > 200).astype(np.uint8))
    options |= {"split_training": "null", "split_testing": ["one"]}
    datalist = preprocess(tmp_path / "scans", tmp_path / "out", **options)
    assert numbers(datalist, "testing") == [("one", 0)] and "training" not in datalist
    image = np.load(tmp_path / "out" / datalist["testing"][0]["image"])
    assert image.shape == (1, 15, 11)
    message = failure(tmp_path / "scans", tmp_path / "other", **options | {"slice_range": [0, 2]})
    assert "has 1 axial slices" in message


def test_given_brain_mask_is_used_instead_of_positive_voxels(tmp_path):
    voxels = np.random.default_rng(0).normal(size=(9, 8, 4)).astype(np.float32)
    brain = np.zeros(voxels.shape, np.uint8)
    brain[2:7, 2:7] = 1
    options = one_scan(tmp_path / "scans", voxels)
    write_nifti(tmp_path / "scans/one/one_brain.nii.gz", brain)
    preprocess(tmp_path / "scans", tmp_path / "out", brain_mask="brain", **options)
    np.testing.assert_array_equal(np.load(tmp_path / "out/training/one/001_brain_mask.npy")[0], brain[..., 1])
    assert (np.load(tmp_path / "out/training/one/001_image.npy")[0][brain[..., 1] == 0] == -3).all()


def test_named_lists_of_a_datalist_are_splits(scans_dir, tmp_path):
    entry = {"image": ["a/a_flair.nii.gz", "a/a_t1.nii.gz"], "label": "a/a_seg.nii.gz", "case": "first"}
    (scans_dir / "dataset.json").write_text(json.dumps({"training": [entry]}))
    splits = {"split_training": "training", "split_validation": "null", "split_testing": "null"}
    datalist = preprocess(scans_dir / "dataset.json", tmp_path / "out", **splits)
    assert numbers(datalist, "training") == [("first", k) for k in (2, 3, 6, 7, 8)]


def test_four_dimensional_file_of_one_volume_is_a_volume(scans_dir, tmp_path):
    preprocess(scans_dir, tmp_path / "expected")
    for name in ("d/d_t1", "d/d_seg", "a/a_flair"):
        voxels = np.asarray(nib.load(scans_dir / f"{name}.nii.gz").dataobj)
        write_nifti(scans_dir / f"{name}.nii.gz", voxels[..., None])
    preprocess(scans_dir, tmp_path / "out")
    for name in ("testing/d/006_image.npy", "testing/d/006_label.npy", "training/a/002_image.npy"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


def test_every_number_of_workers_writes_the_same(scans_dir, tmp_path):
    preprocess(scans_dir, tmp_path / "alone")
    preprocess(scans_dir, tmp_path / "two", num_workers=2)
    assert tree(tmp_path / "alone") == tree(tmp_path / "two")


def ages(output):
    return {str(path.relative_to(output)): path.stat().st_mtime_ns for path in output.glob("*/*/*.npy")}


def changed(before, after):
    return sorted({"/".join(name.split("/")[:2]) for name in after if before.get(name) != after[name]})


def test_finished_subjects_are_not_done_again(scans_dir, tmp_path, capsys):
    output = tmp_path / "out"
    datalist = preprocess(scans_dir, output)
    before = ages(output)
    assert preprocess(scans_dir, output) == datalist and ages(output) == before
    assert "5 of 5 subjects are finished already" in capsys.readouterr().out
    (output / "training/b/005_image.npy").unlink()
    (output / "testing/d/subject.json").write_text("{")
    assert preprocess(scans_dir, output) == datalist
    assert changed(before, ages(output)) == ["testing/d", "training/b"]


def test_changed_file_is_done_again(scans_dir, tmp_path):
    preprocess(scans_dir, tmp_path / "out")
    before = ages(tmp_path / "out")
    make_scan(scans_dir, "a", lesion={2: 3})
    datalist = preprocess(scans_dir, tmp_path / "out")
    assert changed(before, ages(tmp_path / "out")) == ["training/a"]
    assert numbers(datalist, "training")[:6] == [("a", k) for k in range(3, 9)]


@pytest.mark.parametrize(
    "change", [{"upper_fraction": 0.8}, {"slice_range": [3, 9]}, {"modalities": ["t1"]}, {"lower_over_volume": True}]
)
def test_changed_settings_do_everything_again(scans_dir, tmp_path, change):
    preprocess(scans_dir, tmp_path / "out")
    before = ages(tmp_path / "out")
    preprocess(scans_dir, tmp_path / "out", **change)
    preprocess(scans_dir, tmp_path / "fresh", **change)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")
    assert changed(before, ages(tmp_path / "out")) == ["testing/d", "training/a", "training/b", "validation/c"]


def test_changed_selection_does_its_split_again(scans_dir, tmp_path):
    preprocess(scans_dir, tmp_path / "out")
    before = ages(tmp_path / "out")
    datalist = preprocess(scans_dir, tmp_path / "out", **{"slice_selection#testing": "all"})
    assert changed(before, ages(tmp_path / "out")) == ["testing/d", "testing/e"]
    assert len(datalist["testing"]) == 14


def test_no_datalist_tells_of_slices_of_two_settings(scans_dir, tmp_path):
    preprocess(scans_dir, tmp_path / "out")
    write_nifti(scans_dir / "e/e_t1.nii.gz", np.zeros((14, 18, 12), np.int16))
    write_nifti(scans_dir / "e/e_flair.nii.gz", np.zeros((14, 18, 12), np.int16))
    assert "e has no voxel that differs from its background" in failure(scans_dir, tmp_path / "out", upper_fraction=0.8)


def test_splits_that_are_not_asked_for_are_kept(scans_dir, tmp_path, capsys):
    output = tmp_path / "out"
    whole = preprocess(scans_dir, output)
    only_testing = {"split_training": "null", "split_validation": "null"}
    assert preprocess(scans_dir, output, split_testing=["d"], **only_testing) == whole
    told = capsys.readouterr().out
    assert f"training: 12 slices of 2 subjects stay in {output}/datalist.json; without them, delete it first." in told
    alone = preprocess(scans_dir, output, upper_fraction=0.8, **only_testing)
    assert set(whole) - set(alone) == {"training", "validation"}
    assert "was made with other settings" in capsys.readouterr().out


def test_case_of_a_kept_split_is_not_taken_for_another(scans_dir, tmp_path):
    output = tmp_path / "out"
    whole = preprocess(scans_dir, output)
    with pytest.raises(Exception) as caught:
        preprocess(scans_dir, output, split_training="null", split_validation="null", split_testing=["d", "a"])
    assert "a is in testing now and in training of" in innermost_message(caught.value)
    assert json.loads((output / "datalist.json").read_text()) == whole


def many_scans(folder):
    for number in range(12):
        make_scan(folder, f"case{number:02d}", lesion={})
    return {"split_training": [f"case{number:02d}" for number in range(12)]} | {
        "split_validation": "null",
        "split_testing": "null",
    }


def finished(output):
    return len(list(output.glob("training/*/subject.json")))


def kill_when_finished(process, output, number):
    """Kill a process once so many subjects are finished."""
    while finished(output) < number:
        assert process.exitcode is None if hasattr(process, "exitcode") else process.poll() is None
        time.sleep(0.0005)
    process.kill()


def end_group(group):
    """End the workers of a killed process: one that had just started would wait for work for ever."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def preprocess_alone(*arguments, **overrides):
    """`preprocess` in a forked process, whose progress bar must not die with the lock of this one's."""
    os.setsid()
    tqdm.set_lock(threading.RLock())
    preprocess(*arguments, **overrides)


def test_worker_of_a_run_that_was_killed_before_it_started_ends():
    for parent, code in ((os.getpid(), 0), (os.getpid() + 1, 1)):
        process = multiprocessing.get_context("fork").Process(target=_start_worker, args=(parent, 0))
        process.start()
        process.join(60)
        assert process.exitcode == code


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_run_goes_on_to_the_same_files(tmp_path, workers):
    options = many_scans(tmp_path / "scans")
    preprocess(tmp_path / "scans", tmp_path / "whole", **options)
    output, counts, groups = tmp_path / "out", [], []
    for number in (0, 1, 5):
        arguments = {"num_workers": workers, **options}
        process = multiprocessing.get_context("fork").Process(
            target=preprocess_alone, args=(tmp_path / "scans", output), kwargs=arguments
        )
        process.start()
        kill_when_finished(process, output, number)
        process.join()
        groups.append(process.pid)
        assert process.exitcode == -signal.SIGKILL
        counts.append(finished(output))
    assert counts[1] >= 1 and 5 <= counts[2] < 12 and not (output / "datalist.json").exists()
    left = output / f".partial_slices.{groups[0]}/case11"
    left.mkdir(parents=True, exist_ok=True)
    (left / "subject.json").touch()
    of_another_run = output / f".partial_slices.{os.getppid()}"
    of_another_run.mkdir()
    preprocess(tmp_path / "scans", output, num_workers=workers, **options)
    of_another_run.rmdir()
    assert tree(output) == tree(tmp_path / "whole")
    for group in groups:
        end_group(group)


def names_below(folder):
    return sorted(path for path in folder.rglob("*"))


def test_scans_in_the_place_of_slices_stay(scans_dir, tmp_path):
    scans_dir.rename(tmp_path / "training")
    before = tree(tmp_path)
    assert "a_flair.nii.gz is in the way, which preprocessing did not write" in failure(
        tmp_path / "training", tmp_path, split_validation="null", split_testing="null"
    )
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["notes.txt", "004_image.npy.bak", "more/x"])
def test_file_that_a_person_put_beside_slices_stays(scans_dir, tmp_path, name):
    preprocess(scans_dir, tmp_path / "out")
    place = tmp_path / "out/training/a" / name
    place.parent.mkdir(exist_ok=True)
    place.write_text("by hand")
    before = tree(tmp_path / "out")
    assert "is in the way, which preprocessing did not write" in failure(
        scans_dir, tmp_path / "out", upper_fraction=0.8
    )
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("name", ["training/a/003_image.npy", "testing/d/006_label.npy", "datalist.json"])
def test_what_a_person_changed_stays(scans_dir, tmp_path, name):
    preprocess(scans_dir, tmp_path / "out")
    place = tmp_path / "out" / name
    place.write_bytes(place.read_bytes() + b" ")
    before = tree(tmp_path / "out")
    assert f"{name} was changed since `preprocess` wrote it" in failure(scans_dir, tmp_path / "out", upper_fraction=0.8)
    assert tree(tmp_path / "out") == before
    place.unlink()
    preprocess(scans_dir, tmp_path / "out", upper_fraction=0.8)


def edit_record(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("digest", [None, "0" * 64, 5, "gone"])
def test_record_changed_by_hand_lets_no_slice_be_removed_that_is_not_as_it_says(scans_dir, tmp_path, digest):
    preprocess(scans_dir, tmp_path / "out")
    record, own = tmp_path / "out/training/a/subject.json", tmp_path / "out/training/a/003_image.npy"
    files = json.loads(record.read_text())["files"]
    edit_record(record, files={**files, own.name: digest} if digest != "gone" else {"000_image.npy": "0"})
    before = tree(tmp_path / "out")
    assert re.match(
        r".*a/00\d_\w+.npy was changed since `preprocess` wrote it", failure(scans_dir, tmp_path / "out", slice_step=2)
    )
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("files", [None, [], "all", {}])
def test_slices_of_which_the_record_does_not_say_what_they_held_are_kept_beside(scans_dir, tmp_path, files, capsys):
    output = tmp_path / "out"
    preprocess(scans_dir, output)
    edit_record(output / "training/a/subject.json", files=files)
    (output / "training/a/003_image.npy").write_text("by hand")
    before = tree(output / "training/a")
    preprocess(scans_dir, output, upper_fraction=0.8)
    assert tree(output / "training/a.kept1") == before
    assert "training/a has no record of what its files held: it is kept as a.kept1." in capsys.readouterr().out
    shutil.rmtree(output / "training/a.kept1")
    preprocess(scans_dir, tmp_path / "fresh", upper_fraction=0.8)
    assert tree(output) == tree(tmp_path / "fresh")


@pytest.mark.parametrize("slices", [None, "no list", [{}], [5]])
def test_record_whose_slices_are_none_is_made_again(scans_dir, tmp_path, slices):
    whole = preprocess(scans_dir, tmp_path / "out")
    edit_record(tmp_path / "out/training/a/subject.json", slices=slices)
    assert preprocess(scans_dir, tmp_path / "out") == whole


@pytest.mark.parametrize("change", [{}, {"upper_fraction": 0.8}])
def test_datalist_of_which_no_record_says_what_it_held_is_kept_beside(scans_dir, tmp_path, change):
    preprocess(scans_dir, tmp_path / "out")
    (tmp_path / "out/preprocess_record.json").unlink()
    edit_record(tmp_path / "out/datalist.json", notes="by hand")
    before = (tmp_path / "out/datalist.json").read_bytes()
    preprocess(scans_dir, tmp_path / "out", **change)
    assert (tmp_path / "out/datalist.json.kept1").read_bytes() == before
    assert "notes" not in json.loads((tmp_path / "out/datalist.json").read_text())


def test_folder_in_which_another_run_writes_is_left_alone(scans_dir, tmp_path):
    (tmp_path / "out").mkdir()
    other = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    assert "Another run is writing in" in failure(scans_dir, tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())
    os.close(other)
    preprocess(scans_dir, tmp_path / "out")


@pytest.mark.parametrize("content", ['{"training": []}', "[]", "no JSON"])
def test_datalist_of_another_stays(scans_dir, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/datalist.json").write_text(content)
    assert "datalist.json is in the way, which preprocessing did not write" in failure(scans_dir, tmp_path / "out")
    assert (tmp_path / "out/datalist.json").read_text() == content


def test_linked_folder_in_the_place_of_slices_stays(scans_dir, tmp_path):
    preprocess(scans_dir, tmp_path / "elsewhere")
    (tmp_path / "out/training").mkdir(parents=True)
    (tmp_path / "out/training/a").symlink_to(tmp_path / "elsewhere/training/a")
    assert "training/a is in the way" in failure(scans_dir, tmp_path / "out", upper_fraction=0.8)
    assert len(names_below(tmp_path / "elsewhere/training/a")) > 5


@pytest.mark.parametrize("name", ["training", "training/a/003_image.npy", "training/a/subject.json", "datalist.json"])
def test_what_a_person_moved_away_and_linked_back_stays(scans_dir, tmp_path, name):
    preprocess(scans_dir, tmp_path / "out")
    place, far = tmp_path / "out" / name, tmp_path / "far"
    place.rename(far), place.symlink_to(far)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert re.match(
        f".*out/{name} is (a symbolic link, and|in the way, which)", failure(scans_dir, tmp_path / "out", slice_step=2)
    )
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert place.is_symlink()


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_scans_do_not_stop_the_others(scans_dir, tmp_path, workers, capsys):
    all_zero(scans_dir)
    cut_short_label = scans_dir / "d/d_seg.nii.gz"
    cut_short_label.write_bytes(b"no mask")
    make_scan(scans_dir, "e", lesion={6: 30})
    message = failure(scans_dir, tmp_path / "out", num_workers=workers)
    assert message.startswith("2 of 5 cases failed (d, a), the others are done")
    printed = capsys.readouterr().out
    assert "  a has no voxel that differs" in printed and "d_seg.nii.gz is not a NIfTI file" in printed
    written = json.loads((tmp_path / "out/datalist.json").read_text())
    assert {item["case"] for split in ("training", "validation", "testing") for item in written[split]} == {*"bce"}
    excluded = preprocess(scans_dir, tmp_path / "out", exclude=["a", "d"])
    assert excluded == written and "3 of 3 subjects are finished already" in capsys.readouterr().out


def test_exclude_of_a_name_that_no_split_has(scans_dir, tmp_path):
    assert "`exclude` names f, but" in failure(scans_dir, tmp_path / "out", exclude=["f"])
    assert not (tmp_path / "out").exists()


def command_line(folder, scans, *options, **environment):
    """Run preprocess.json as users do, from an unrelated folder."""
    command = [sys.executable, "-m", "monai.bundle", "run", "preprocess"]
    command += ["--config_file", str(CONFIGS / "preprocess.json"), "--dataset_dir", str(scans)]
    command += ["--output_dir", str(folder / "out"), "--slice_range", "[2, 9]", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def test_killed_command_goes_on(tmp_path):
    many_scans(tmp_path / "scans")
    (tmp_path / "split.txt").write_text("\n".join(f"case{number:02d}" for number in range(12)))
    options = ["--split_training", str(tmp_path / "split.txt"), "--split_validation", "null", "--split_testing", "null"]
    process = command_line(tmp_path, tmp_path / "scans", "--num_workers", "1", *options)
    kill_when_finished(process, tmp_path / "out", 2)
    process.wait()
    end_group(process.pid)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and 2 <= finished(tmp_path / "out") < 12
    settings = {"split_training": options[1], "split_validation": "null", "split_testing": "null"}
    for output in (tmp_path / "out", tmp_path / "whole"):
        preprocess(tmp_path / "scans", output, modalities=["flair"], **settings)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def last_line_of_a_failed_command(process):
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    lines = errors.strip().splitlines()
    assert "Traceback" not in errors and [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]


def test_errors_of_the_command_line_are_one_line(scans_dir, tmp_path):
    write_nifti(scans_dir / "b/b_flair.nii.gz", np.zeros((14, 18, 12), np.int16))
    (tmp_path / "first").mkdir(), (tmp_path / "second").mkdir()
    misspelt = command_line(tmp_path / "first", scans_dir, "--slice_rnge", "[2,9]")
    worker = command_line(tmp_path / "second", scans_dir, "--num_workers", "2")
    line = last_line_of_a_failed_command(misspelt)
    assert "--slice_rnge names no id" in line and "did you mean --slice_range?" in line
    assert "): b has no voxel that differs from its background: check the file" in last_line_of_a_failed_command(worker)
    assert not (tmp_path / "first/out").exists()


def test_traceback_is_there_for_those_who_ask(scans_dir, tmp_path):
    process = command_line(tmp_path, scans_dir, "--upper_fraction", "90", ITERMASK_TRACEBACK="1")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback (most recent call last)" in errors and "in check_settings" in errors


def test_errors_are_one_line_before_anything_can_fail(scans_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    assert "did you pass a percentage" in failure(scans_dir, tmp_path / "out", upper_fraction=90)
    assert sys.excepthook is not sys.__excepthook__


def constant(folder):
    write_nifti(folder / "a/a_t1.nii.gz", np.full((14, 18, 12), 7, np.int16))


def all_zero(folder):
    for name in ("flair", "t1"):
        write_nifti(folder / f"a/a_{name}.nii.gz", np.zeros((14, 18, 12), np.int16))


def not_a_number(folder):
    write_nifti(folder / "a/a_t1.nii.gz", np.full((14, 18, 12), np.nan, np.float32))


def other_shape(folder):
    write_nifti(folder / "a/a_seg.nii.gz", np.zeros((14, 18, 11), np.uint8))


def other_affine(folder):
    write_nifti(folder / "a/a_seg.nii.gz", np.zeros((14, 18, 12), np.uint8), np.diag([1, 1, 2, 1]))


def time_series(folder):
    write_nifti(folder / "a/a_flair.nii.gz", np.zeros((14, 18, 12, 3), np.uint8))


def flat_image(folder):
    write_nifti(folder / "a/a_flair.nii.gz", np.zeros((14, 18), np.uint8))


def not_nifti(folder):
    (folder / "a/a_flair.nii.gz").write_bytes(b"<html>404</html>")


def cut_short(folder):
    path = folder / "a/a_t1.nii.gz"
    path.write_bytes(path.read_bytes()[:-300])


def cut_short_uncompressed(folder):
    path = folder / "a/a_t1.nii.gz"
    (folder / "a/a_t1.nii").write_bytes(gzip.decompress(path.read_bytes())[:-2])
    path.unlink()


def without_modality(folder):
    (folder / "d/d_t1.nii.gz").unlink()


def without_label(folder):
    (folder / "d/d_seg.nii.gz").unlink()


def label_not_a_number(folder):
    write_nifti(folder / "b/b_seg.nii.gz", np.full((14, 18, 12), np.nan, np.float32))


def damaged(folder):
    path = folder / "a" / "a_t1.nii.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lesions_everywhere(folder):
    for case in "ab":
        write_nifti(folder / f"{case}/{case}_seg.nii.gz", np.ones((14, 18, 12), np.uint8))


def lesions_nowhere(folder):
    for case in "de":
        write_nifti(folder / f"{case}/{case}_seg.nii.gz", np.zeros((14, 18, 12), np.uint8))


def shared_case(folder):
    (folder / "split_testing.txt").write_text("d\na\n")


def remove_split(folder):
    (folder / "split_validation.txt").unlink()


def empty_split(folder):
    (folder / "split_validation.txt").write_text("\n")


def stray_split(folder):
    (folder / "split_validation.txt").write_text("../../etc/passwd\n")


def brain_masks(voxels):
    def write(folder):
        for case in "abcde":
            write_nifti(folder / f"{case}/{case}_brain.nii.gz", voxels)

    return write


BAD_FILES = {
    constant: "a has a brain of constant intensity in channel 1",
    all_zero: "a has no voxel that differs from its background",
    not_a_number: "a has NaN or infinite voxels",
    label_not_a_number: "b has a lesion mask with NaN or infinite voxels",
    damaged: "a_t1.nii.gz is damaged",
    other_shape: "a_seg.nii.gz has shape (14, 18, 11), but",
    other_affine: "a_seg.nii.gz has another affine than",
    time_series: "a_flair.nii.gz has shape (14, 18, 12, 3), expected a volume",
    flat_image: "a_flair.nii.gz has shape (14, 18), expected a volume",
    not_nifti: "a_flair.nii.gz is not a NIfTI file that can be read",
    cut_short: "a_t1.nii.gz is cut short",
    cut_short_uncompressed: "a_t1.nii is cut short",
    without_modality: "d has no t1: expected d_t1.nii.gz",
    without_label: "d has no lesion mask NAME_seg.nii.gz",
    lesions_everywhere: "No lesion-free slice in any of the 2 training subjects within `slice_range` [2, 9]",
    lesions_nowhere: "No slice with a lesion in any of the 2 testing subjects within `slice_range` [2, 9]",
    shared_case: "a is in the splits training and testing",
    remove_split: "split_validation.txt: give a text file with one case name a line",
    empty_split: "split_validation.txt names no case",
    stray_split: "names '../../etc/passwd', which is outside",
}


@pytest.mark.parametrize(("spoil", "message"), BAD_FILES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_bad_files(scans_dir, tmp_path, spoil, message):
    spoil(scans_dir)
    assert message in failure(scans_dir, tmp_path / "out")


@pytest.mark.parametrize("spoil", [all_zero, not_a_number])
def test_errors_of_workers_read_the_same(scans_dir, tmp_path, spoil):
    spoil(scans_dir)
    assert BAD_FILES[spoil] in failure(scans_dir, tmp_path / "out", num_workers=2)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((14, 18, 12), "a has an empty brain mask"), ((14, 17, 12), "a_brain.nii.gz has shape (14, 17, 12), but")],
)
def test_bad_brain_masks(scans_dir, tmp_path, shape, message):
    brain_masks(np.zeros(shape, np.uint8))(scans_dir)
    assert message in failure(scans_dir, tmp_path / "out", brain_mask="brain")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"slice_range": [2, 13]}, "has 12 axial slices, so `slice_range` [2, 13] leaves it"),
        ({"slice_range": [9, 2]}, "`slice_range` must be [first, after the last]"),
        ({"slice_range": 7}, "`slice_range` must be [first, after the last]"),
        ({"upper_fraction": 90}, "`upper_fraction` must be in [0, 1], or null, got 90; did you pass a percentage?"),
        ({"upper_fraction": 0.01}, "`lower_fraction` must be below `upper_fraction`, got 0.02 and 0.01"),
        ({"modalities": "flair"}, "`modalities` must be a list of names such as ['flair'], or null, got 'flair'"),
        ({"modalities": ["flair", "dwi"]}, "a has no dwi: expected a_dwi.nii.gz"),
        ({"slice_selection#training": "any"}, "`slice_selection` must give one of healthy, largest_lesion, all"),
        ({"brain_mask": "brain"}, "a has no brain mask: expected a_brain.nii.gz"),
        ({"num_workers": -1}, "`num_workers` must be a whole number from 0 to 256, or null, got -1"),
        ({"num_workers": "two"}, "`num_workers` must be a whole number from 0 to 256, or null, got 'two'"),
        ({"split_training": 5}, "`split_training` must be a file, a list of case names, or null, got 5"),
        ({"split_training": ["nobody"]}, "names nobody, but"),
        ({"split_training": ["a", "a"]}, "names a twice"),
        ({"split_training": ["/etc"]}, "names '/etc', which is outside"),
        ({f"split_{split}": "null" for split in ("training", "validation", "testing")}, "All splits are null"),
    ],
)
def test_bad_settings_end_before_anything_is_written(scans_dir, tmp_path, overrides, message):
    assert message in failure(scans_dir, tmp_path / "out", **overrides)
    assert not (tmp_path / "out").exists()


def test_missing_and_empty_data_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "gone: set `dataset_dir` to the folder" in failure(tmp_path / "gone", tmp_path / "out")
    assert "No split file" in failure(tmp_path / "empty", tmp_path / "out")
    assert "has no folder of that name" in failure(tmp_path / "empty", tmp_path / "out", split_training=["a"])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError("9216 requested and 3968 written"), "the disk may be full"),  # what NumPy says
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
    ],
)
def test_full_disk_leaves_finished_subjects_to_go_on_from(scans_dir, tmp_path, monkeypatch, error, reason):
    preprocess(scans_dir, tmp_path / "whole")
    with monkeypatch.context() as patch:
        save, saved = np.save, []

        def save_a_few(path, plane):
            saved.append(path)
            if len(saved) > 25:
                raise error
            save(path, plane)

        patch.setattr(np, "save", save_a_few)
        message = failure(scans_dir, tmp_path / "out")
    assert message.startswith(f"Cannot write in {tmp_path / 'out'} any more ({reason}): ")
    left = tree(tmp_path / "out")
    assert left and left.items() <= tree(tmp_path / "whole").items()
    preprocess(scans_dir, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize("below", ["", "deeper"])
def test_output_folder_that_cannot_be_written(scans_dir, tmp_path, below):
    (tmp_path / "file").touch()
    message = failure(scans_dir, tmp_path / "file" / below)
    assert message.startswith("Cannot write in the output folder") and "set `output_dir`" in message


def test_warns_of_a_skull_once_and_goes_on(tmp_path, caplog):
    voxels = np.random.default_rng(0).integers(1, 99, (20, 20, 20)).astype(np.uint8)
    at_end = np.isin(np.indices(voxels.shape), (0, 19))
    voxels[at_end.sum(axis=0) >= 2] = 0
    options = one_scan(tmp_path / "scans", voxels)
    with caplog.at_level(logging.WARNING):
        preprocess(tmp_path / "scans", tmp_path / "out", **options)
    assert [record.getMessage().split(":")[0] for record in caplog.records if "skull" in record.getMessage()] == [
        "one may still have its skull"
    ]


@pytest.mark.data
@needs_data
def test_extracted_brains_raise_no_warning_of_a_skull(tmp_path, caplog):
    names = Path(DATA, "soop2d/split_testing.txt").read_text().split()[::9]
    splits = {"split_training": "null", "split_validation": "null"}
    with caplog.at_level(logging.WARNING):
        options = {"modalities": ["flair"], "slice_range": "null", "split_testing": names, **splits}
        datalist = preprocess(Path(DATA, "soop2d"), tmp_path / "soop2d", **options)
        assert [item["case"] for item in datalist["testing"]] == names
        options |= {"slice_range": [70, 90], "split_testing": ["OPENMS_00007", "OPENMS_00019"]}
        datalist = preprocess(Path(DATA, "open_ms"), tmp_path / "open_ms", **options)
        assert len(datalist["testing"]) == 2
    assert "skull" not in caplog.text


def test_sessions_of_a_bids_folder_become_cases_of_one_person(tmp_path):
    bids, source = tmp_path / "bids", make_scan(tmp_path / "scans", "a", lesion={4: 5}, modalities=["flair"])
    for anat in ("sub-1/ses-1/anat", "sub-1/ses-2/anat", "sub-2/anat"):
        stem = anat.removesuffix("/anat").replace("/", "_")
        made = bids / "derivatives" / "manual" / anat / f"{stem}_label-lesion_mask.nii.gz"
        for path, file in ((bids / anat / f"{stem}_FLAIR.nii.gz", "a_flair.nii.gz"), (made, "a_seg.nii.gz")):
            path.parent.mkdir(parents=True)
            path.write_bytes((source / file).read_bytes())
    splits = {"split_training": ["sub-1"], "split_validation": ["sub-2"], "split_testing": None}
    datalist = preprocess(bids, tmp_path / "out", modalities=["flair"], **splits)
    healthy = [2, 3, 5, 6, 7, 8]
    assert numbers(datalist, "training") == [(f"sub-1_ses-{n}", k) for n in (1, 2) for k in healthy]
    assert numbers(datalist, "validation") == [("sub-2", k) for k in healthy]
    splits = {"split_training": ["sub-1_ses-1"], "split_validation": ["sub-1_ses-2"], "split_testing": None}
    message = failure(bids, tmp_path / "other", modalities=["flair"], **splits)
    assert message.startswith("sub-1 is in the splits training and validation: ")
