"""The bundle in the real MONAI Label server: all that a viewer asks of it, over HTTP.

The server runs under the interpreter named by ITERMASK_LABEL_PYTHON, by default this one, with the packages of
requirements-label.txt.
"""

import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from urllib.parse import urlencode

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import CONFIGS, needs_deepbet, round_head, write_nifti
from scipy import ndimage
from scripts.tools.phantoms import phantom, phantom_affine
from scripts.tools.release import NAME

pytestmark = pytest.mark.label

PYTHON = os.environ.get("ITERMASK_LABEL_PYTHON") or sys.executable
SHAPE = (60, 72, 8)  # 2.8 x 2.7 x 6 mm
CASES = {"anisotropic": "LAS", "permuted": "PIR"}
SUFFIXES = (".nii.gz", ".nrrd")


def write_nrrd(path, image):
    """Save a NIfTI image of whole numbers as NRRD, whose axes point left, posterior and superior."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    vectors = [f"({','.join(str(float(value)) for value in column)})" for column in lps[:3].T]
    header = [
        "NRRD0004",
        "type: int16",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, image.shape))}",
        f"space directions: {' '.join(vectors[:3])}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: raw",
        f"space origin: {vectors[3]}",
    ]
    voxels = np.asanyarray(image.dataobj).astype("<i2")
    path.write_bytes("\n".join([*header, "", ""]).encode() + voxels.tobytes(order="F"))


def read_nrrd(content):
    """Voxels of an uncompressed NRRD file of bytes."""
    header, _, voxels = content.partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in header.decode().splitlines() if ": " in line)
    assert fields["encoding"] == "raw" and fields["type"] in ("unsigned char", "uint8")
    return np.frombuffer(voxels, np.uint8).reshape([int(n) for n in fields["sizes"].split()], order="F")


def scan_image(axcodes):
    """A phantom with a bright lesion in voxels of that orientation."""
    arrays = phantom(3, shape=SHAPE, lesion="bright")
    image = nib.Nifti1Image(arrays["flair"], phantom_affine(SHAPE))
    start = nib.orientations.io_orientation(image.affine)
    return image.as_reoriented(nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(axcodes)))


class Client:
    """Speaks HTTP with a server as the viewers do."""

    def __init__(self, port, app, log):
        self.root = f"http://127.0.0.1:{port}"
        self.bundle = app / "model" / NAME
        self.log = log

    def call(self, method, path, query=None, files=None, fields=None, content=None):
        """Send a request, with files and fields as a form, or with JSON content; give the answer's body."""
        headers, body = {}, None
        if content is not None:
            headers, body = {"Content-Type": "application/json"}, json.dumps(content).encode()
        elif files or fields:
            boundary = uuid.uuid4().hex
            parts = [(f'name="{name}"', value.encode()) for name, value in (fields or {}).items()]
            parts += [
                (f'name="{name}"; filename="{file.name}"', file.read_bytes()) for name, file in (files or {}).items()
            ]
            body = b"".join(
                f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + value + b"\r\n"
                for head, value in parts
            )
            headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
            body += f"--{boundary}--".encode()
        url = f"{self.root}{path}?{urlencode(query or {})}"
        request = urllib.request.Request(url, body, headers, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.read()

    def infer(self, image="", file=None, **options):
        """The mask of a scan in the datastore, or of an uploaded file: the bytes of an image file."""
        query = {"output": "image"} | ({"image": image} if image else {})
        files = {"file": file} if file else None
        return self.call("POST", f"/infer/{NAME}", query, files, {"params": json.dumps(options)})

    def mask(self, image, **options):
        """The mask of a scan in the datastore, voxels (X, Y, Z)."""
        return voxels_of(self.infer(image, **options), ".nii.gz")

    def put_label(self, image, path):
        """Submit the corrected label of a scan."""
        self.call("PUT", "/datastore/label", {"image": image, "tag": "final"}, {"label": path})

    def train(self, options):
        """Train one epoch on half of the labeled scans; give the task when it has ended."""
        options = options | {"max_epochs": 1, "val_split": 0.5}
        task = json.loads(self.call("POST", f"/train/{NAME}", content=options))["id"]
        for _ in range(600):
            found = json.loads(self.call("GET", "/train/"))
            assert found["id"] == task
            if found["status"] in ("DONE", "ERROR"):
                return found
            time.sleep(0.2)
        raise AssertionError(f"The training has not ended: {found}")

    def logs(self, message):
        """Whether the server's log holds a message, which may come a moment after the answer."""
        for _ in range(50):
            if message in self.log.read_text():
                return True
            time.sleep(0.2)
        return False

    @property
    def weights(self):
        """The model file that the server uses."""
        return self.bundle / "models" / "model.pt"


def voxels_of(content, suffix):
    """Voxels of a mask that a server sent."""
    if suffix == ".nrrd":
        return read_nrrd(content)
    image = nib.Nifti1Image.from_bytes(gzip.decompress(content))
    assert image.get_data_dtype() == np.uint8
    return np.asanyarray(image.dataobj)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Environment variables under which PYTHON runs MONAI Label, with a home of its own."""
    find = [PYTHON, "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('monailabel') is None)"]
    if subprocess.run(find).returncode:
        pytest.skip(f"{PYTHON} has no monailabel: pip install --no-deps -r requirements-label.txt")
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables |= {"HOME": str(tmp_path_factory.mktemp("home")), "PYTHONUNBUFFERED": "1"}
    tried = subprocess.run([PYTHON, "-c", "import torchvision"], capture_output=True, text=True)
    if "operator torchvision::nms does not exist" in tried.stderr:
        variables["PYTHONPATH"] = str(Path(__file__).parents[1] / "torchvision_beside_cpu_torch")
    return variables


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A folder with each case as NIfTI, and below it one with each as NRRD."""
    folder = tmp_path_factory.mktemp("scans")
    (folder / "nrrd").mkdir()
    for case, axcodes in CASES.items():
        image = scan_image(axcodes)
        assert nib.aff2axcodes(image.affine) == tuple(axcodes)
        nib.save(image, folder / f"{case}.nii.gz")
        write_nrrd(folder / "nrrd" / f"{case}.nrrd", image)
    return folder


@pytest.fixture(scope="module")
def server(environment, scans, tmp_path_factory):
    """A running server whose `monaibundle` app has a copy of the bundle, and whose datastore the scans."""
    folder = tmp_path_factory.mktemp("label")
    monailabel = [PYTHON, "-m", "monailabel.main"]
    download = [*monailabel, "apps", "--download", "--name", "monaibundle", "--output", str(folder)]
    subprocess.run(download, env=environment, check=True, capture_output=True)
    app = folder / "monaibundle"
    shutil.copytree(CONFIGS.parent, app / "model" / NAME, ignore=shutil.ignore_patterns("__pycache__"))
    train = app / "model" / NAME / "configs" / "train.json"
    short = {"validation_interval": 3, "batch_size": 4}
    train.write_text(json.dumps(json.loads(train.read_text()) | short))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = ["start_server", "--app", str(app), "--studies", str(folder / "studies"), "--conf", "models", NAME]
    start += ["--conf", "zoo_source", "local", "--conf", "sam2", "false", "--host", "127.0.0.1", "--port", str(port)]
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*monailabel, *start], cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        client = Client(port, app, log)
        wait_for(client, process)
        for case in CASES:
            client.call("PUT", "/datastore/image", {"image": case}, {"file": scans / f"{case}.nii.gz"})
            client.call("PUT", "/datastore/image", {"image": f"{case}_nrrd"}, {"file": scans / "nrrd" / f"{case}.nrrd"})
        yield client
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the server and, in a training, its child
        process.wait()


def wait_for(client, process):
    """Wait until the server answers."""
    for _ in range(600):
        assert process.poll() is None, client.log.read_text()[-3000:]
        try:
            return client.call("GET", "/info/")
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError(f"The server does not answer: {client.log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def segmented(environment, server, scans, tmp_path_factory):
    """The masks that `monai.bundle run inference` writes for the scans, by the name of the case."""
    return segment(environment, server.bundle, scans, tmp_path_factory.mktemp("segmented"))


def segment(environment, bundle, scans, output, cases=CASES):
    config = str(bundle / "configs" / "inference.json")
    command = [PYTHON, "-m", "monai.bundle", "run", "inference", "--config_file", config]
    command += ["--dataset_dir", str(scans), "--output_dir", str(output)]
    subprocess.run(command, env=environment, cwd=output, check=True, capture_output=True)
    return {case: np.asanyarray(nib.load(output / case / f"{case}_anomaly_mask.nii.gz").dataobj) for case in cases}


def test_lists_of_the_viewer_show_the_model_its_label_and_its_options(server):
    info = json.loads(server.call("GET", "/info/"))
    model, trainer = info["models"][NAME], info["trainers"][NAME]
    assert model["type"] == "segmentation" and model["labels"] == {"anomaly": 1} and info["labels"] == ["anomaly"]
    assert model["description"] == trainer["description"] == description()
    options = {name: value for name, value in model["config"].items() if name not in ("device", "model_filename")}
    assert options == {"threshold_scale": 1.0, "tolerance": 0.01, "max_iterations": 100}
    assert model["config"]["model_filename"] == ["model.pt"]


def description():
    return json.loads((CONFIGS / "metadata.json").read_text())["description"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("upload", [False, True], ids=["by id", "by upload"])
@pytest.mark.parametrize("case", CASES)
def test_mask_is_that_of_the_command_line_voxel_for_voxel(server, scans, segmented, case, upload, suffix):
    stored = case if suffix == ".nii.gz" else f"{case}_nrrd"
    folder = scans if suffix == ".nii.gz" else scans / "nrrd"
    content = server.infer(file=folder / f"{case}{suffix}") if upload else server.infer(stored)
    mask = voxels_of(content, suffix)
    assert np.array_equal(mask, segmented[case])
    assert 0 < mask.mean() < 0.5


def test_mask_lies_in_the_space_of_the_scan(server, scans, tmp_path):
    for case in CASES:
        (tmp_path / "mask.nii.gz").write_bytes(server.infer(case))
        mask, scan = nib.load(tmp_path / "mask.nii.gz"), nib.load(scans / f"{case}.nii.gz")
        assert mask.shape == scan.shape and nib.aff2axcodes(mask.affine) == tuple(CASES[case])
        np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-4)


def test_option_of_a_request_changes_that_result_alone(server, segmented):
    sizes = [server.mask("permuted", threshold_scale=scale).sum() for scale in (0.3, 1.0, 3.0)]
    assert sizes[0] > sizes[1] > sizes[2] > 0
    with pytest.raises(urllib.error.HTTPError, match="500"):
        server.infer("permuted", tolerance=20)
    assert server.logs("`tolerance` must be in [0, 1], got 20.0; did you pass a percentage?")
    assert np.array_equal(server.mask("permuted"), segmented["permuted"])


@needs_deepbet
def test_scan_with_its_skull_is_stripped_as_by_the_command_line(environment, server, tmp_path):
    voxels, brain = round_head(noise=1.0)
    scan = write_nifti(tmp_path / "scans/head.nii.gz", voxels, np.diag([4.0, 4, 4, 1]))
    server.call("PUT", "/datastore/image", {"image": "head"}, {"file": scan})
    mask = server.mask("head")
    (tmp_path / "output").mkdir()
    expected = segment(environment, server.bundle, scan.parent, tmp_path / "output", ["head"])
    assert np.array_equal(mask, expected["head"])
    assert mask.any() and not mask[~ndimage.binary_dilation(brain, iterations=2)].any()


class TestTraining:
    """What the Train button does; comes last, because it changes the model."""

    @pytest.fixture
    def labeled(self, server, scans, tmp_path):
        """Gives each of the two scans a label, all voxels of one value."""

        def label(value):
            for case in CASES:
                image = nib.load(scans / f"{case}.nii.gz")
                path = write_nifti(tmp_path / f"{case}.nii.gz", np.full(image.shape, value, np.uint8), image.affine)
                server.put_label(case, path)

        return label

    def test_scans_without_healthy_slice_leave_the_model_as_it_was(self, server, labeled):
        before = server.weights.read_bytes()
        labeled(1)
        task = server.train({"device": "cpu", "multi_gpu": False})
        assert task["status"] == "ERROR"
        assert server.logs("No slice of the wanted kind in any of the 1 training scans")
        assert server.weights.read_bytes() == before and os.listdir(server.weights.parent) == ["model.pt"]

    def test_scans_with_empty_labels_train_the_model_that_the_server_then_uses(
        self, environment, server, scans, labeled, segmented, tmp_path
    ):
        before = torch.load(server.weights, weights_only=True)
        labeled(0)
        # the button of 3D Slicer sends all options as they are shown, of lists the first entry
        shown = json.loads(server.call("GET", "/info/"))["trainers"][NAME]["config"]
        task = server.train({name: value[0] if isinstance(value, list) else value for name, value in shown.items()})
        assert task["status"] == "DONE", server.log.read_text()[-3000:]
        after = torch.load(server.weights, weights_only=True)
        assert server.log.read_text().count(f"Model: {server.weights}") == 1  # trained once
        assert os.listdir(server.weights.parent) == ["model.pt"] and after.keys() == before.keys()
        networks = [name for name in after if name.startswith("network.")]
        change = sum(float((after[name].float() - before[name]).abs().sum()) for name in networks)
        size = sum(float(before[name].float().abs().sum()) for name in networks)
        assert 0 < change < 0.2 * size  # it went on from the weights that were there
        measured = {"slice_low_threshold", "slice_high_threshold"}
        assert all(torch.equal(after[name], before[name]) for name in set(after) - set(networks) - measured)
        (tmp_path / "output").mkdir()
        expected = segment(environment, server.bundle, scans, tmp_path / "output")
        mask = server.mask("anisotropic")
        assert np.array_equal(mask, expected["anisotropic"])
        assert not np.array_equal(mask, segmented["anisotropic"])
