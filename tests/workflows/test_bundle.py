"""The bundle as MONAI and the Model Zoo look at it."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import CONFIGS, files_of, run_bundle, save_small_model
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_net_in_out
from monai.networks.nets import BasicUNet
from scripts.common.errors import innermost_message
from scripts.common.model_file import load_model, save_model
from scripts.method.lesion_network import LesionNetwork

ALL = sorted(CONFIGS.glob("*.json"))
MAIN = ["train", "evaluate_slices", "evaluate", "inference"]
BUNDLE = CONFIGS.parent
ROOT = BUNDLE.parent


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_configs_are_indented_by_four_and_say_what_they_are_for(path):
    text = path.read_text()
    content = json.loads(text)
    assert (
        text == json.dumps(content, indent=4, ensure_ascii=False) + "\n" or text == json.dumps(content, indent=4) + "\n"
    )
    if path.stem != "metadata":
        assert "_desc_" in content
    assert not re.search(r"\"/(work|home|root|tmp|workspace)\b", text)


@pytest.mark.parametrize(
    ("name", "override"),
    [
        *(("train", override) for override in (None, "paper", "demo", "basic_unet")),
        *(
            (name, override)
            for name in ("evaluate_slices", "evaluate", "inference")
            for override in (None, "basic_unet")
        ),
    ],
)
def test_monai_finds_every_property(name, override, tmp_path, two_modalities):
    options = {
        "output_dir": str(tmp_path / "run"),
        "model_file": str(tmp_path / "model.pt"),
        "modalities": ["flair", "t1"],
    }
    options |= {"dataset_dir": two_modalities["dataset_dir"], "device": "$torch.device('cpu')"}
    options |= {} if name == "inference" else {"slice_range": None}
    if override == "basic_unet":
        save_basic_unet(tmp_path / "model.pt", options["modalities"])
    elif name != "train":
        save_small_model(tmp_path / "model.pt", options["modalities"])
    kind = "train" if name == "train" else "infer"
    workflow = ConfigWorkflow(files_of(name, override), workflow_type=kind, logging_file=False, **options)
    workflow.initialize()
    assert not workflow.check_properties()


def save_basic_unet(path, modalities):
    model = LesionNetwork(partial(BasicUNet, spatial_dims=2, features=(16, 16, 32, 64, 96, 16)), modalities)
    for threshold in model.threshold_values():
        threshold.fill_(0.5)
    save_model(model, path)


@pytest.mark.parametrize("name", MAIN)
def test_every_config_runs_its_main_job_as_run(name):
    content = json.loads((CONFIGS / f"{name}.json").read_text())
    job = {"train": "training", "inference": "inference"}.get(name, "evaluate")
    content = json.loads((CONFIGS / "evaluate.json").read_text()) | content if job == "evaluate" else content
    assert content[job] == "%run" and content["run"][0] == "@checks"


@pytest.mark.parametrize("as_overlay", [True, False])
def test_configs_may_be_yaml(tmp_path, as_overlay):
    yaml = pytest.importorskip("yaml", reason="needs PyYAML (requirements.txt)")
    files = files_of("inference")
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"batch_size": 4} if as_overlay else json.loads(Path(files[0]).read_text()))
    )
    files = [*files, str(tmp_path / "config.yaml")] if as_overlay else [str(tmp_path / "config.yaml")]
    workflow = ConfigWorkflow(files, logging_file=False, dataset_dir=str(tmp_path / "gone"))
    workflow.initialize()
    with pytest.raises(Exception) as error:
        workflow.run()
    assert "gone" in innermost_message(error.value)


def test_verify_net_in_out(tmp_path):
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / "inference.json"),
        device="cpu",
        p=1,
        n=4,
        any=4,
    )


def test_version_is_the_newest_of_the_changelog():
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    newest = max(metadata["changelog"], key=lambda version: [int(part) for part in version.split(".")])
    assert metadata["version"] == newest


def test_pins_of_the_metadata_are_what_requirements_allow():
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    requirements = (ROOT / "requirements.txt").read_text()
    assert f"monai=={metadata['monai_version']}" in requirements
    assert f"torch=={metadata['pytorch_version']}" in requirements
    for name, version in metadata["required_packages_version"].items():
        pinned = re.search(rf"^{name}==(.*)$", requirements, re.MULTILINE)
        assert pinned is None or pinned[1] == version


def imported_packages(folder: Path) -> set[str]:
    """Packages that the modules of a folder import, without those of Python and of the repository."""
    trees = [ast.parse(path.read_text()) for path in folder.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    own = {path.stem for path in (ROOT / "tests").glob("*")} | {"scripts"}
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - own


def required_packages(name: str) -> set[str]:
    """Packages that a file of requirements names, those of the files that it includes among them."""
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    included = [required_packages(line.split()[1]) for line in lines if line.startswith("-r ")]
    return {re.split(r"[<>=~!]", line)[0] for line in lines if line and line[0] != "-"}.union(*included)


@pytest.mark.parametrize(
    ("folder", "requirements"), [(BUNDLE, "requirements.txt"), (ROOT / "tests", "requirements-dev.txt")]
)
def test_requirements_name_what_is_imported(folder, requirements):
    names = {"ignite": "pytorch-ignite", "PIL": "pillow", "yaml": "pyyaml", "skimage": "scikit-image"}
    imported = {names.get(name, name) for name in imported_packages(folder)}
    assert imported <= required_packages(requirements)


def test_torchscript_export_gives_the_same_mask(tmp_path, model, small_network):
    torch.save(model.state_dict(), tmp_path / "model.pt")
    parser = {
        "network_def": {
            "_target_": "scripts.common.model_file.load_model",
            "model_file": str(tmp_path / "model.pt"),
        }
    }
    (tmp_path / "configs").mkdir()
    ConfigParser.export_config_file(parser, str(tmp_path / "configs" / "inference.json"), fmt="json")
    shutil.copy(CONFIGS / "metadata.json", tmp_path / "configs")
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(tmp_path / "model.pt"),
        meta_file=str(tmp_path / "configs" / "metadata.json"),
        config_file=str(tmp_path / "configs" / "inference.json"),
    )
    exported = torch.jit.load(tmp_path / "model.ts")
    slices = torch.randn(3, 2, 32, 48, generator=torch.Generator().manual_seed(0))
    slices[:, 1] = 1
    with torch.no_grad():
        assert torch.equal(exported(slices), model(slices)) and model(slices).any()


def test_another_network_of_monai_trains_by_an_override_config(tmp_path, two_modalities):
    options = {name: value for name, value in two_modalities.items() if not name.startswith("backbone")}
    options |= {"iterations": 2, "validation_interval": 2, "batch_size": 2, "canvas_size": [32, 32]}
    run_bundle("train", "basic_unet", output_dir=str(tmp_path), **options)
    config = json.loads((CONFIGS / "basic_unet.json").read_text())["backbone"]
    model = load_model(str(tmp_path / "model.pt"), partial(BasicUNet, spatial_dims=2, features=config["features"]))
    assert isinstance(model.network, BasicUNet)


def test_request_for_the_whole_config_trains_once(tmp_path, two_modalities, capsys):
    """MONAI Label asks for all that is in the file."""
    options = {"iterations": 1, "validation_interval": 1, "batch_size": 2, **two_modalities}
    run_bundle("train", run_id="", output_dir=str(tmp_path), **options)
    assert capsys.readouterr().out.count("Model: ") == 1


def test_override_config_without_its_base_says_what_is_missing():
    with pytest.warns(UserWarning, match="checks"):
        workflow = ConfigWorkflow(str(CONFIGS / "evaluate.json"), run_id="evaluate", logging_file=False)
    workflow.initialize()
    with pytest.raises(Exception) as caught:
        workflow.run()
    expected = "the referring item `@.*` is not defined in the config content: put the config that this one overrides"
    assert re.match(expected, innermost_message(caught.value))


@pytest.mark.parametrize("folder", [ROOT, BUNDLE, None], ids=["repository", "bundle", "elsewhere"])
def test_commands_work_from_any_folder(folder, tmp_path):
    folder = tmp_path if folder is None else folder
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--dataset_dir", str(tmp_path / "none")]
    command += ["--config_file", os.path.relpath(CONFIGS / "train.json", folder), "--output_dir", str(tmp_path / "out")]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1 and last.startswith("error: ") and str(tmp_path / "none") in last


MODULES = """
import sys
import monai.bundle
before = set(sys.modules)
config, image, output = sys.argv[1:]
workflow = monai.bundle.ConfigWorkflow(config, run_id="run", logging_file=False, image=image, output_dir=output)
workflow.initialize()
workflow.run()
print(*sorted(set(sys.modules) - before))
"""


def test_inference_loads_nothing_that_only_other_steps_need(scans_dir, tmp_path):
    image = scans_dir / "d" / "d_flair.nii.gz"
    command = [sys.executable, "-c", MODULES, CONFIGS / "inference.json", image, tmp_path / "out"]
    done = subprocess.run([*map(str, command)], cwd=CONFIGS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules = done.stdout.splitlines()[-1].split()
    assert "scripts.inference.volumes" in modules
    rooms = {name for name in modules if name.startswith(("scripts.training", "scripts.evaluation", "scripts.tools"))}
    packages = {name.partition(".")[0] for name in modules}
    heavy = {"deepbet", "matplotlib", "onnx", "onnxruntime", "pandas", "tensorboard", "tensorboardX"}
    assert not rooms and not packages & heavy
    assert "torch._inductor" not in modules and "torch.utils.tensorboard" not in modules
