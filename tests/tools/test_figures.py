"""The figures of README."""

import numpy as np
import torch
from PIL import Image
from scripts.common.model_file import save_model
from scripts.evaluation.pictures import draw
from scripts.method.volume import VolumeResult
from scripts.tools.figures import itermask_panels, lesion_network_panels
from scripts.tools.phantoms import make_phantoms


def test_figures_show_each_method_on_the_slice_with_most_of_the_lesion(model, tmp_path):
    make_phantoms(tmp_path / "scans", 0, 0, 1, shape=(24, 28, 6))
    (tmp_path / "training").mkdir()
    save_model(model, tmp_path / "training" / "model.pt")
    image, label = torch.rand(1, 20, 24, 10), torch.zeros(1, 20, 24, 10)
    label[0, 5:8, 5:8, 4] = 1
    found = VolumeResult(label > 0, label, image, threshold=0.4)
    refined = itermask_panels(tmp_path)
    seen = lesion_network_panels(image[0].numpy(), found, label[0].numpy())
    assert np.array_equal(seen[0].plane, image[0, ..., 4]) and seen[3].outlines["red"].sum() == 9
    assert torch.equal(refined[0].plane, refined[-1].plane) and refined[-1].outlines["red"].dtype == torch.bool
    draw([("IterMask2", refined), ("lesion network", seen)], tmp_path / "method.jpg")
    with Image.open(tmp_path / "method.jpg") as picture:
        assert picture.format == "JPEG" and picture.width == 1000
