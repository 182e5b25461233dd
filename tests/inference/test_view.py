"""The page of a segmented scan: it counts what it shows, loads nothing, and works in a browser."""

import base64
import json
import re
import subprocess

import nibabel as nib
import numpy as np
import pytest
from conftest import CHROMIUM, needs_browser, needs_nilearn, run_bundle, write_nifti
from scripts.common.errors import innermost_message
from scripts.common.outputs import write_json
from scripts.common.paths import PRODUCT
from scripts.data.scans import RESULTS
from scripts.inference.view import OPACITY, find_segmented, page_of, thresholds_of, write_views

AFFINE = np.array([[-2.0, 0, 0, 50], [0, 0, 2, -40], [0, 2, 0, -60], [0, 0, 0, 1]])  # its axes: L, S, A


def head():
    """Scan, anomaly map and mask of a brain of 80 mm: a bent lesion and a small one, voxels of 2 mm, RAS."""
    shape = (48, 52, 44)
    places = np.stack(np.indices(shape), axis=-1)
    brain = np.linalg.norm(places - (24, 26, 22), axis=-1) <= 20
    anomaly_map = np.where(brain, 0.1 + 0.1 * np.random.default_rng(0).random(shape), 0)
    ring = (np.abs(np.hypot(*(places - (30, 30, 0))[..., :2].transpose(3, 0, 1, 2)) - 7) < 2.5) & (places[..., 1] > 27)
    anomaly_map[ring & (np.abs(places[..., 2] - 24) < 3)] = 0.7
    anomaly_map[14:17, 20:23, 23:26] = 0.9
    return np.where(brain, 100 + 50 * anomaly_map, 0), anomaly_map, anomaly_map > 0.5


@pytest.fixture
def results(tmp_path):
    """The results of a scan as inference leaves them, in axes of another order than the page's."""
    folder = tmp_path / "results" / "P"
    scan, *found = (np.ascontiguousarray(array[::-1].transpose(0, 2, 1)) for array in head())
    scan_file = write_nifti(tmp_path / "scan.nii.gz", scan.astype(np.float32), AFFINE)
    names = {key: f"P_{key}.nii.gz" for key in RESULTS}
    for key, array in zip(("anomaly_map", "anomaly_mask"), found, strict=True):
        write_nifti(folder / names[key], array.astype(np.float32), AFFINE)
    record = {"product": PRODUCT, "case": "P", "inputs": [[str(scan_file), 0, 0]], "results": names}
    write_json(folder / "P_record.json", record)
    return tmp_path / "results"


def steps_of(page):
    text = page if isinstance(page, str) else page.read_text(encoding="utf-8")
    data = json.loads(re.search(r"const VIEW = (\{.*?\});", text)[1])
    return {step["threshold"]: step["ml"] for step in data["steps"]}


def test_slider_starts_where_the_mask_begins():
    _, anomaly_map, mask = head()
    thresholds, start = thresholds_of(anomaly_map, mask)
    assert thresholds == sorted(thresholds) and thresholds[start] == pytest.approx(0.7) and thresholds[start] < 0.7
    thresholds, start = thresholds_of(anomaly_map, np.zeros_like(mask))
    assert thresholds[start] == 0.9  # nothing is marked, and nothing is shown
    assert thresholds_of(np.zeros((4, 4, 4)), np.zeros((4, 4, 4), bool)) == ([0.0], 0)


@needs_nilearn
def test_page_counts_the_map_that_it_shows_and_loads_nothing(results):
    (page,) = write_views(str(results))
    text, (_, anomaly_map, mask) = page.read_text(encoding="utf-8"), head()
    assert page == results / "P" / "P_anomaly_view.html"
    for threshold, ml in steps_of(page).items():
        assert ml == pytest.approx(np.count_nonzero(anomaly_map.astype(np.float32) > threshold) * 0.008, abs=1e-3)
    assert f"inference wrote has {np.count_nonzero(mask) * 0.008:.2f} ml" in text and f'"opacity": {OPACITY}' in text
    assert "default-src 'none'" in text and not re.search(r"(src|href)=[\"']?(https?:|//)", text)


@needs_nilearn
def test_cross_starts_within_the_largest_lesion(results):
    (page,) = write_views(str(results))
    text = page.read_text(encoding="utf-8")
    params = json.loads(re.search(r"brainsprite\((\{.*?\})\);", text, re.DOTALL)[1])
    place = np.array([*params["numSlice"].values(), 1]) + [1, 1, 1, 0]  # the viewer counts from 1 where it tells mm
    millimeters = np.array(params["affine"]) @ place
    volume = nib.load(results / "P" / "P_anomaly_mask.nii.gz")
    i, j, k = np.round(np.linalg.inv(volume.affine) @ millimeters)[:3].astype(int)
    assert np.asarray(nib.load(results / "P" / "P_anomaly_map.nii.gz").dataobj)[i, j, k] == np.float32(0.7)


@needs_nilearn
def test_pages_are_made_anew_but_not_over_what_a_person_changed(results):
    (page,) = write_views(str(results))
    assert write_views(str(results)) == [page]
    page.write_text("by hand")
    with pytest.raises(RuntimeError, match="anomaly_view.html was changed since"):
        write_views(str(results))
    assert page.read_text() == "by hand"


@needs_nilearn
def test_scan_that_is_gone_or_elsewhere_is_named(results):
    scan = results.parent / "scan.nii.gz"
    write_nifti(scan, nib.load(scan).get_fdata(dtype=np.float32), np.diag([2.0, 2, 2, 1]))
    with pytest.raises(RuntimeError, match="scan.nii.gz is in another space than .*run `inference` again"):
        write_views(str(results))
    scan.unlink()
    with pytest.raises(RuntimeError, match="The scan .*scan.nii.gz is gone"):
        write_views(str(results))


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
        write_views(str(results))


@needs_nilearn
def test_names_are_text(results):
    scan = find_segmented(results)[0]
    scan.record["case"] = "<b>odd & name</script>"
    page = page_of(scan)
    assert "&lt;b&gt;odd &amp; name&lt;/script&gt;" in page and "<b>odd" not in page


@needs_nilearn
@pytest.mark.parametrize("option", ["results_dir", "output_dir"])
def test_command_takes_the_folder_by_either_name(option, results):
    run_bundle("view", **{option: str(results)}, case="P")
    assert (results / "P" / "P_anomaly_view.html").is_file()
    with pytest.raises(Exception) as error:
        run_bundle("view", **{option: str(results)}, case="Q")
    assert "No finished scan Q" in innermost_message(error.value)


PROBE = """<script>addEventListener("load", async () => {
const wait = () => new Promise(done => setTimeout(done, 400));
const canvas = document.querySelector("canvas"), slider = document.getElementById("threshold");
const red = () => { const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let count = 0; for (let i = 0; i < data.length; i += 4) count += data[i] > data[i + 2] + 60; return count; };
const state = () => ({ red: red(), shown: document.getElementById("shown").textContent, place: +slider.value });
const move = async value => { slider.value = value; slider.dispatchEvent(new Event("input"));
  await wait(); return state(); };
await wait();
const opacity = document.querySelector("input[id^=opacity]"), start = slider.value;
const found = { first: state(), more: await move(0), less: await move(slider.max - 1), again: await move(start) };
found.opacity = [+opacity.value, VIEW.viewer.overlay.opacity];
const before = VIEW.viewer.numSlice.Z, box = canvas.getBoundingClientRect();
canvas.dispatchEvent(new PointerEvent("pointermove", { clientX: box.right - 20, clientY: box.top + 50 }));
canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: -100 }));
dispatchEvent(new KeyboardEvent("keydown", { key: "PageUp" }));
found.moved = VIEW.viewer.numSlice.Z - before;
const brightness = document.getElementById("brightness");
brightness.value = 200; brightness.dispatchEvent(new Event("input")); found.filter = canvas.style.filter;
opacity.value = 1; opacity.dispatchEvent(new Event("input")); found.clear = red();
document.body.innerHTML = `<pre id="found">${btoa(JSON.stringify(found))}</pre>`;
});</script></body>"""


@needs_nilearn
@needs_browser
def test_in_a_browser_slider_wheel_and_opacity_work_and_the_console_tells_no_error(results, tmp_path):
    (page,) = write_views(str(results))
    steps = [*steps_of(page).items()]
    (tmp_path / "probe.html").write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += ["--virtual-time-budget=20000", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1200,800", (tmp_path / "probe.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(base64.b64decode(re.search(r'<pre id="found">([^<]+)</pre>', done.stdout)[1]))
    for name in ("first", "more", "less", "again"):
        threshold, ml = steps[found[name]["place"]]
        assert found[name]["shown"] == f"{ml:.2f} ml above {threshold:.3g}"
    assert found["more"]["red"] > found["first"]["red"] > found["less"]["red"] > 0
    assert found["again"]["red"] == found["first"]["red"] > 4 * found["clear"]
    assert found["opacity"] == [100 * OPACITY, OPACITY] and found["moved"] == 2
    assert found["filter"] == "brightness(200%)"
    told = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not [line for line in told if "INFO:CONSOLE" not in line or "Uncaught" in line or "Refused" in line]
