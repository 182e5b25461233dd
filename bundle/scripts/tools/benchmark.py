"""How fast the bundle is, as ratios from one run: ``python -m scripts.tools.benchmark`` in the bundle's folder.

Variants of a part take turns, and the fastest turn of each counts, so that a busy machine slows all alike. The first
variant is the plain one. *Of the device* is the share of what a large matrix product reaches in the same precision.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from monai.data import list_data_collate
from torch.utils.flop_counter import FlopCounterMode

BUNDLE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(BUNDLE))

from scripts.common.errors import report_errors  # noqa: E402
from scripts.common.paths import config_files  # noqa: E402
from scripts.data.scans import find_scans  # noqa: E402
from scripts.tools.demo import make_scan  # noqa: E402
from scripts.tools.phantoms import make_phantoms  # noqa: E402

SLAB = 20  # slices of a volume that are segmented as slices


def read_config(*names: str, **overrides: object) -> ConfigParser:
    """Configs of the bundle, one over the other, with options set."""
    parser = ConfigParser()
    parser.read_config([str(path) for path in config_files(*names)])
    for name, value in overrides.items():
        parser[name] = value
    return parser


def fastest(variants: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of each variant: the fastest of several turns, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats + 1):
        for name, work in variants.items():
            start = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: min(found[1:] or found) for name, found in times.items()}


def table(title: str, unit: str, times: Mapping[str, float], amount: float, flops: float = 0, device: str = "") -> str:
    """A table in Markdown of what each variant does in a second, and the ratio to the first one.

    Args:
        title: Of the first column.
        unit: What ``amount`` counts.
        times: Seconds of each variant; a name begins with its precision where ``flops`` is given.
        amount: Done in these seconds.
        flops: Floating point operations in these seconds, for a column of the share of the matrix rate; 0: none.
        device: Where they were done.
    """
    first = next(iter(times.values()))
    rows = [[title, f"{unit}/s", "ratio"], ["---"] * 3]
    rows += [[name, f"{amount / seconds:.3g}", f"{first / seconds:.2f}"] for name, seconds in times.items()]
    if flops:
        rates = {precision: matrix_rate(device, precision) for precision in ("float32", "bfloat16")}
        shares = (flops / seconds / rates[name.partition(",")[0]] for name, seconds in times.items())
        for row, cell in zip(rows, ["of the device", "---", *(f"{share:.0%}" for share in shares)], strict=True):
            row.append(cell)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def matrix_rate(device: str, precision: str) -> float:
    """Floating point operations a second of a large matrix product: what the device can do."""
    size = 1024 if device == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device, dtype=getattr(torch, precision)) for _ in range(2))
    return 2 * size**3 / fastest({"product": lambda: left @ right}, 5)["product"]


class TrainingStep:
    """One training of a config, taken apart, so that each call is one step.

    Args:
        names: The config and its override configs.
        options: Options to set.
        order: Memory order of the networks, "contiguous_format" or "channels_last".
        compiled: Compile the networks.
    """

    def __init__(self, names: Sequence[str], options: Mapping[str, object], order: str, compiled: bool = False):
        parser = read_config(*names, **options)
        parser["model"] = f"$@network_def.to(@device, memory_format=torch.{order})"
        parts = ("network", "loss", "optimizer", "train#prepare_batch", "train#dataloader", "device")
        self.network, self.loss, self.optimizer, self.prepare, loader, self.device = map(
            parser.get_parsed_content, parts
        )
        self.network.train()
        self.forward = torch.compile(self.network) if compiled else self.network
        self.batch = next(iter(loader))

    def __call__(self) -> None:
        inputs, targets = self.prepare(self.batch, self.device)
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.forward(inputs), targets).backward()
        self.optimizer.step()

    def flops(self) -> int:
        """Floating point operations of the forward and backward pass of a step."""
        inputs, targets = self.prepare(self.batch, self.device)
        with FlopCounterMode(display=False) as counter:
            self.loss(self.network(inputs), targets).backward()
        return counter.get_total_flops()


def benchmark_training(options: argparse.Namespace) -> str:
    """Training steps of the lesion network and of the published method."""
    variants = {
        "float32, channels first": ("contiguous_format", False),
        "float32, channels last": ("channels_last", False),
        "bfloat16, channels last": ("channels_last", False),
    }
    if options.compile:
        variants["bfloat16, channels last, compiled"] = ("channels_last", True)
    settings = {"dataset_dir": options.dataset_dir, "output_dir": options.folder, "batch_size": options.batch_size}
    settings |= {"device": torch.device(options.device), "slice_range": None, "planes": ["axial"]}
    tables = []
    for title, names in (("train.json", ["train"]), ("train.json with paper.json", ["train", "paper"])):
        steps = {
            name: TrainingStep(names, {**settings, "precision": name.partition(",")[0]}, *variant)
            for name, variant in variants.items()
        }
        times, flops = fastest(steps, options.repeats), next(iter(steps.values())).flops()
        title = f"{title}, batches of {options.batch_size}"
        tables.append(table(title, "slices", times, options.batch_size, flops, options.device))
    return "\n".join(tables)


def benchmark_segmentation(options: argparse.Namespace) -> str:
    """A prepared volume, and some of its slices, from tensors to mask."""
    config = read_config("inference", device=torch.device(options.device), model_file=options.model_file)
    model, inferer = config.get_parsed_content("network"), config.get_parsed_content("inferer")
    inferer.progress = False
    scan = find_scans("", ["flair"], image=options.image)[0]
    volume = list_data_collate([config.get_parsed_content("preprocessing")(scan)])["image"]
    middle = volume.shape[-1] // 2
    slab = volume[..., middle - SLAB // 2 : middle + SLAB // 2]
    orders = {"float32, channels first": torch.contiguous_format, "float32, channels last": torch.channels_last}

    @torch.no_grad()
    def run(images: torch.Tensor, order: torch.memory_format) -> None:
        inferer(images.to(options.device), model.to(memory_format=order))

    tables = []
    for kind, images in (("volume", volume), ("slices", slab)):
        times = fastest({name: partial(run, images, order) for name, order in orders.items()}, options.repeats)
        with FlopCounterMode(display=False) as counter:
            run(images, torch.channels_last)
        title = f"{kind}, {' x '.join(map(str, images.shape[2:]))} voxels"
        tables.append(table(title, "slices", times, images.shape[-1], counter.get_total_flops(), options.device))
    return "\n".join(tables)


def benchmark_command(options: argparse.Namespace) -> str:
    """The command that segments a scan, from its start to the files; another version of the bundle beside it."""

    def run(bundle: str | Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "monai.bundle", "run", "inference"]
            command += ["--config_file", "configs/inference.json", "--image", options.image, "--output_dir", folder]
            subprocess.run(command, cwd=bundle, check=True, capture_output=True)

    variants = {options.against: partial(run, options.against)} if options.against else {}
    times = fastest({**variants, "this bundle": partial(run, BUNDLE)}, options.repeats)
    return table("one scan, from start to files", "scans", times, 1)


PARTS = {"training": benchmark_training, "segmentation": benchmark_segmentation, "command": benchmark_command}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS], help="what to measure (default: all)")
    parser.add_argument("--image", type=os.path.abspath, help="a FLAIR volume (default: a synthetic head of 1 mm)")
    parser.add_argument("--dataset_dir", help="scans that the training takes (default: phantoms)")
    parser.add_argument("--model_file", default=str(BUNDLE / "models" / "model.pt"), help="weights to segment with")
    parser.add_argument("--against", help="another version of the folder `bundle`, to compare the command with")
    parser.add_argument("--batch_size", type=int, default=8, help="of a training step (default: 8)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each variant, of which the fastest counts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile the networks of the training too")
    options = parser.parse_args(arguments)
    report_errors()
    name = "CPU" if options.device == "cpu" else torch.cuda.get_device_name(options.device)
    print(f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as options.folder:
        options.image = options.image or str(make_scan(Path(options.folder), seed=0)[0])
        if options.dataset_dir is None and "training" in options.parts:
            options.dataset_dir = str(make_phantoms(Path(options.folder) / "scans", 8, 4, 2))
        for part in options.parts:
            print(f"\n### {part.capitalize()}\n\n{PARTS[part](options)}", flush=True)


if __name__ == "__main__":
    main()
