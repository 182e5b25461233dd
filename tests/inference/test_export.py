"""The networks of a model as ONNX."""

import sys

import onnxruntime
import pytest
import torch
from conftest import run_bundle
from scripts.inference import export


def test_networks_of_the_bundle_agree_with_onnxruntime(tmp_path, capsys):
    run_bundle("inference", run_id="export_onnx", output_dir=str(tmp_path), dataset_dir=str(tmp_path))
    assert sorted(path.name for path in tmp_path.glob("*.onnx")) == ["network.onnx"]
    assert "N x 2 x 128 x 128" in capsys.readouterr().out


def test_both_networks_of_the_published_method_agree_with_onnxruntime(tmp_path, model):
    files = export.export_networks(model, str(tmp_path))
    assert [path.name for path in files] == ["first_iteration.onnx", "masked.onnx"]
    assert sorted(path.name for path in tmp_path.glob("*.onnx")) == ["first_iteration.onnx", "masked.onnx"]
    slices = torch.rand(3, *export.network_inputs(model)["first_iteration"].shape[1:])
    (found,) = onnxruntime.InferenceSession(files[0]).run(None, {"image": slices.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model.first_iteration(slices), rtol=1e-3, atol=1e-3)


def test_network_that_onnx_changes_is_not_written(tmp_path, model, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", 0.0)
    with pytest.raises(RuntimeError, match="differs from PyTorch"):
        export.export_networks(model, str(tmp_path))
    assert not list(tmp_path.glob("*.onnx"))


def test_onnx_without_its_packages_says_what_to_install(tmp_path, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModuleNotFoundError, match="pip install onnx onnxscript onnxruntime"):
        export.export_networks(model, str(tmp_path))


def test_whole_method_is_refused_by_onnx_and_says_what_to_do(model):
    with pytest.raises(Exception, match="run export_onnx"):
        torch.onnx.export(model, (torch.ones(2, 2, 16, 16),), verbose=False)
