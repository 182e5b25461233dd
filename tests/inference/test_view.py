"""The page of a segmented volume: what it shows is what inference marks, and it works in a browser."""

import base64
import json
import re
import subprocess
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import CHROMIUM, needs_browser, needs_nilearn, run_bundle, write_nifti
from scipy import ndimage
from scripts.common.errors import innermost_message
from scripts.common.model_file import save_model
from scripts.common.outputs import atomic, file_digest, write_json
from scripts.common.paths import PRODUCT
from scripts.data.scans import RESULTS
from scripts.inference.view import find_segmented, levels_of, page_of, scales_with, write_views
from scripts.method.default import ProbabilisticIterMask
from scripts.method.former_volume import UNIT, segment_volume
from scripts.method.scores import hysteresis
from torch import nn

SPACING = (2.0, 2.0, 2.0)
AFFINE = np.array([[-2.0, 0, 0, 50], [0, 0, 2, -40], [0, 2, 0, -60], [0, 0, 0, 1]])  # its axes: L, S, A


class Graded(nn.Module):
    """Takes smoothed brightness for the logit of a lesion."""

    def forward(self, inputs):
        image = inputs[:, :1] * UNIT
        logit = nn.functional.avg_pool2d(image, 5, 1, 2) - 2
        return torch.cat([image, torch.zeros_like(image), logit], dim=1)


NETWORK = SimpleNamespace(lesions=Graded(), threshold=torch.tensor(0.5), certain_threshold=torch.tensor(0.9))


def head():
    """A brain of 80 mm (X, Y, Z) and its mask; lesions of several sizes and strengths, voxels of 2 mm."""
    shape = (48, 52, 44)
    places = np.stack(np.indices(shape), axis=-1)
    brain = np.linalg.norm(places - (24, 26, 22), axis=-1) <= 20
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 0.7)
    image = 100 + noise / noise.std()
    for center, radius, height in (((32, 30, 24), 6, 8), ((16, 20, 20), 4, 5), ((24, 36, 30), 3, 4)):
        image += height * np.exp(-0.5 * (np.linalg.norm(places - center, axis=-1) / radius) ** 4)
    return np.where(brain, image, 0).astype(np.float32), brain


@cache
def segmented(threshold_scale=1.0, threshold_rule="prior"):
    volumes = (torch.from_numpy(array)[None] for array in head())
    return segment_volume(NETWORK.lesions, *volumes, SPACING, threshold_scale, threshold_rule=threshold_rule)


@pytest.fixture
def results(tmp_path):
    """The results of a volume as inference leaves them, in axes of another order than the page's."""
    folder, name = tmp_path / "results" / "P", "P"
    found = segmented()
    arrays = {"scan": head()[0], "map": found.probability[0].numpy(), "mask": found.mask[0].numpy().astype(np.uint8)}
    turned = {key: array[::-1].transpose(0, 2, 1) for key, array in arrays.items()}
    scan = write_nifti(tmp_path / "scan.nii.gz", np.ascontiguousarray(turned["scan"]), AFFINE)
    write_nifti(folder / f"{name}_anomaly_map.nii.gz", np.ascontiguousarray(turned["map"]), AFFINE)
    with atomic(folder / f"{name}_anomaly_mask.nii.gz") as temporary:
        write_nifti(temporary, np.ascontiguousarray(turned["mask"]), AFFINE)
    (tmp_path / "model.pt").write_bytes(b"weights")
    record = {
        "product": PRODUCT,
        "case": name,
        "inputs": [[str(scan), 0, 0]],
        "results": {key: f"{name}_{key}.nii.gz" for key in RESULTS},
        "threshold_scale": 1.0,
        "model_sha256": file_digest(tmp_path / "model.pt"),
        "numbers": {"lesions": []},
    }
    write_json(folder / f"{name}_record.json", record)
    return tmp_path / "results"


def view(results, **options):
    return write_views(str(results), NETWORK, str(results.parent / "model.pt"), **options)


def steps_of(page):
    text = page if isinstance(page, str) else page.read_text(encoding="utf-8")
    return {step["scale"]: step["ml"] for step in json.loads(re.search(r"const VIEW = (\{.*?\});", text)[1])["steps"]}


def test_steps_of_the_slider_hold_1_and_the_setting_of_the_run():
    assert scales_with(1.0) == sorted(scales_with(1.0)) and {0.1, 1.0, 10.0} <= {*scales_with(1.0)}
    assert len(scales_with(1.2)) == len(scales_with(1.0)) + 1 and 1.2 in scales_with(1.2)


@pytest.mark.parametrize("rule", ["prior", "slope"])
@pytest.mark.parametrize("scale", [0.2, 0.5, 1.0, 2.0, 5.0])
def test_what_a_threshold_would_mark_in_a_whole_volume_is_what_inference_marks(scale, rule):
    probability = segmented(threshold_rule=rule).probability[0].numpy()
    found = levels_of(probability, SPACING, [0.1, scale, 9.0], NETWORK) > 1
    expected = segmented(scale, rule).mask[0].numpy()
    assert expected.sum() > 200 and (found != expected).sum() <= 0.02 * expected.sum()


def test_slices_are_cut_at_the_thresholds_of_the_model_and_levels_are_nested():
    score = np.zeros((20, 24, 6), np.float32)
    score[3:9, 4:9, 2], score[4, 5, 2], score[12:15, 4:9, 3] = 0.6, 1.2, 0.8
    network = SimpleNamespace(threshold=NETWORK.threshold, certain_threshold=NETWORK.certain_threshold)
    scales = [0.5, 1.0, 1.3, 3.0]
    levels = levels_of(score, (1, 1, 1), scales, network)
    slices = torch.from_numpy(score).movedim(2, 0)[:, None]
    for step, scale in enumerate(scales):
        expected = hysteresis(slices, 0.5 * scale, 0.9 * scale)[:, 0].movedim(0, 2).numpy()
        np.testing.assert_array_equal(levels > step, expected)
    assert [int((levels > step).sum()) for step in range(4)] == [45, 30, 1, 0]


@needs_nilearn
def test_page_tells_the_ml_that_was_written_and_loads_nothing(results):
    (page,) = view(results)
    text = page.read_text(encoding="utf-8")
    assert page == results / "P" / "P_anomaly_view.html"
    mask = nib.load(results / "P" / "P_anomaly_mask.nii.gz")
    written = np.count_nonzero(mask.dataobj) * 0.008
    steps = steps_of(page)
    assert steps[1.0] == pytest.approx(written, abs=1e-3) and f"Inference wrote {written:.2f} ml" in text
    assert [*steps.values()] == sorted(steps.values(), reverse=True) and steps[0.1] > steps[1.0] > steps[10.0]
    assert "default-src 'none'" in text and not re.search(r"(src|href)=[\"']?(https?:|//)", text)


@needs_nilearn
def test_pages_are_made_anew_but_not_over_what_a_person_changed(results):
    (page,) = view(results)
    assert view(results) == [page]
    page.write_text("by hand")
    with pytest.raises(RuntimeError, match="anomaly_view.html was changed since it was written"):
        view(results)
    assert page.read_text() == "by hand"


@needs_nilearn
def test_volume_whose_scan_is_gone_or_elsewhere_is_named(results):
    scan = results.parent / "scan.nii.gz"
    write_nifti(scan, nib.load(scan).get_fdata(dtype=np.float32), np.diag([2.0, 2, 2, 1]))
    with pytest.raises(RuntimeError, match="scan.nii.gz is in another space than .*run `inference` again"):
        view(results)
    scan.unlink()
    with pytest.raises(RuntimeError, match="The scan .*scan.nii.gz is gone"):
        view(results)
    (results.parent / "model.pt").write_bytes(b"other weights")
    with pytest.raises(RuntimeError, match="P was segmented with another model than .*set `model_file`"):
        view(results)


def test_folder_without_results_and_unknown_case_are_told(results, tmp_path):
    with pytest.raises(FileNotFoundError, match="No folder .*set `results_dir` to the `output_dir` of inference"):
        find_segmented(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="No finished scan Q in .*: run `inference`"):
        find_segmented(results, "Q")
    (results / "P" / "P_record.json").unlink()
    with pytest.raises(FileNotFoundError, match="No finished scan in .*: run `inference`"):
        find_segmented(results)


def test_what_to_install_is_said(results, monkeypatch):
    monkeypatch.setattr("scripts.inference.view.optional_import", lambda name: (None, False))
    with pytest.raises(ValueError, match="needs nilearn, .* pip install -r requirements-view.txt"):
        view(results)


@needs_nilearn
def test_names_are_text(results):
    volume = find_segmented(results)[0]
    volume.record["case"] = "<b>odd & name</script>"
    page = page_of(volume, NETWORK)
    assert "&lt;b&gt;odd &amp; name&lt;/script&gt;" in page and "<b>odd" not in page


@needs_nilearn
def test_commands_segment_a_scan_and_show_it(tmp_path, small_network):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_model(ProbabilisticIterMask(small_network, image_size=16, threshold=0.2), tmp_path / "model.pt")
    image = np.ascontiguousarray(head()[0][:, :, 18:23])
    write_nifti(tmp_path / "scans" / "sub-1" / "anat" / "sub-1_FLAIR.nii.gz", image, np.diag([2.0, 2, 2, 1]))
    common = {"model_file": str(tmp_path / "model.pt")}
    options = {"dataset_dir": str(tmp_path / "scans"), "output_dir": str(tmp_path / "out"), "layout": "bids"}
    run_bundle("inference", run_id="inference", image_size=16, **common, **options)
    run_bundle("view", **common, results_dir=str(tmp_path / "out"), case="sub-1")
    stem = tmp_path / "out" / "sub-1" / "anat" / "sub-1_desc-anomaly"
    marked = json.loads((tmp_path / "out/sub-1/anat/sub-1_record.json").read_text())["numbers"]["marked_ml"]
    assert steps_of(Path(f"{stem}_view.html"))[1.0] == pytest.approx(marked, abs=1e-3) and marked > 0
    with pytest.raises(Exception) as error:
        run_bundle("view", **common, results_dir=str(tmp_path / "out"), case="sub-2")
    assert "No finished scan sub-2" in innermost_message(error.value)


PROBE = """<script>addEventListener("load", async () => {
const wait = () => new Promise(done => setTimeout(done, 400));
const canvas = document.querySelector("canvas"), slider = document.getElementById("threshold");
const red = () => { const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let count = 0; for (let i = 0; i < data.length; i += 4) count += data[i] > data[i + 2] + 60; return count; };
const state = () => ({ red: red(), ml: document.getElementById("marked").textContent,
  option: document.getElementById("option").textContent });
const move = async value => { slider.value = value; slider.dispatchEvent(new Event("input"));
  await wait(); return state(); };
await wait();
const found = { first: state(), more: await move(0), less: await move(slider.max - 8), again: await move(16) };
const opacity = document.querySelector("input[id^=opacity]");
opacity.value = 1; opacity.dispatchEvent(new Event("input")); found.clear = red();
document.body.innerHTML = `<pre id="found">${btoa(JSON.stringify(found))}</pre>`;
});</script></body>"""


@needs_nilearn
@needs_browser
def test_in_a_browser_the_slider_changes_picture_and_ml_and_the_console_tells_no_error(results, tmp_path):
    (page,) = view(results)
    steps = steps_of(page)
    (tmp_path / "probe.html").write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += ["--virtual-time-budget=20000", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1200,800", (tmp_path / "probe.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(base64.b64decode(re.search(r'<pre id="found">([^<]+)</pre>', done.stdout)[1]))
    scales = list(steps)
    shown = {"first": 16, "more": 0, "less": len(scales) - 9, "again": 16}
    for name, step in shown.items():
        scale = scales[step]
        assert found[name]["ml"] == f"{steps[scale]:.2f} ml" and found[name]["option"] == f"--threshold_scale {scale:g}"
    assert scales[16] == 1 and found["more"]["red"] > found["first"]["red"] > found["less"]["red"] > 0
    assert found["again"]["red"] == found["first"]["red"] > 4 * found["clear"]
    told = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not [line for line in told if "INFO:CONSOLE" not in line or "Uncaught" in line or "Refused" in line]
