"""The networks of a model as ONNX files, each compared with PyTorch before it is put in place."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from monai.networks import convert_to_onnx
from monai.utils import optional_import
from torch import Tensor, nn

from ..common.outputs import atomic, check_outputs, check_writable
from ..method.model import Model

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3
SLICE_SIZE = 128  # pixels, of a network that sees slices of any size


@torch.no_grad()
def network_inputs(model: Model) -> dict[str, Tensor]:
    """What each network of a calibrated model sees of one slice of noise, (1, C, H, W), by the network's name."""
    networks = {name: getattr(model, name) for name in model.networks}
    seen: dict[nn.Module, Tensor] = {}

    def remember(network: nn.Module, inputs: tuple[Tensor]) -> None:
        seen[network] = inputs[0]

    handles = [network.register_forward_pre_hook(remember) for network in networks.values()]
    size = getattr(model, "image_size", SLICE_SIZE)
    image = torch.randn((1, model.modalities, size, size), generator=torch.Generator().manual_seed(0))
    model(torch.cat([image, torch.ones_like(image[:, :1])], dim=1))
    for handle in handles:
        handle.remove()
    return {name: seen[network][:1] for name, network in networks.items()}


def export_networks(model: Model, output_dir: str) -> list[Path]:
    """Write each network of a model as ONNX; batches of any size, slices of its own size.

    The refinement around the networks branches on its data, which ONNX cannot express: TorchScript (MONAI's
    `ckpt_export`) holds the whole method.

    Args:
        model: Calibrated networks, see `model_file.load_model`.
        output_dir: Where ``<network>.onnx`` goes.

    Returns:
        The files.

    Raises:
        ModuleNotFoundError: When a package that this needs is not installed.
        ValueError: When a file is in the way that an export did not write.
        RuntimeError: When onnxruntime's output differs from PyTorch's by more than 0.001.
    """
    for name in PACKAGES:
        if not optional_import(name)[1]:
            raise ModuleNotFoundError(f"ONNX export needs {', '.join(PACKAGES)}: pip install {' '.join(PACKAGES)}")
    folder = check_writable(output_dir)
    check_outputs(folder / f"{name}.onnx" for name in model.networks)
    model = model.cpu().eval()
    inputs, files = network_inputs(model), []
    for name in model.networks:
        network, path = getattr(model, name), folder / f"{name}.onnx"
        with atomic(path) as temporary:
            _export_network(network, inputs[name], temporary)
        channels = " x ".join(["N", *(str(length) for length in inputs[name].shape[1:])])
        print(f"{path}: input {channels}, differs from PyTorch by at most {TOLERANCE:g}")
        files.append(path)
    return files


def _export_network(network: nn.Module, example: Tensor, path: Path) -> None:
    for chatty in ("onnxscript", "onnx_ir"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    two = example.expand(2, -1, -1, -1).contiguous()  # a batch of one would be taken as a constant
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            convert_to_onnx(
                network,
                [two],
                filename=str(path),
                input_names=["image"],
                output_names=["reconstruction"],
                dynamic_shapes=({0: torch.export.Dim("slices")},),
                external_data=False,
                verbose=False,
                verify=True,
                device=torch.device("cpu"),
                use_ort=True,
                rtol=TOLERANCE,
                atol=TOLERANCE,
            )
    except AssertionError:
        raise RuntimeError(
            f"The ONNX network differs from PyTorch's by more than {TOLERANCE:g}: nothing was written, export the "
            "method with `ckpt_export`."
        ) from None
