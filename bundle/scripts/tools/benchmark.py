"""How fast the bundle is, as ratios from one run: ``python -m scripts.tools.benchmark`` in the bundle's folder.

Variants of a part take turns, and the fastest turn of each counts, so that a busy machine slows all alike. The first
variant is the plain one. *Of the device* is the share of what a large matrix product reaches in the same precision.
"""

from __future__ import annotations

import argparse
import os
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


def read_config(*names: str, **overrides: object) -> ConfigParser:
    """Configs of the bundle, one over the other, with options set."""
    parser = ConfigParser()
    parser.read_config([str(path) for path in config_files(*names)])
    parser.update(overrides)
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


def table(title: str, times: Mapping[str, float], number: int, flops: float, device: str) -> str:
    """A table in Markdown of the slices that each variant does in a second, and the ratio to the first one.

    Args:
        title: Of the first column.
        times: Seconds of each variant, whose name begins with its precision.
        number: Slices done in these seconds.
        flops: Floating point operations in these seconds.
        device: Where they were done.
    """
    first = next(iter(times.values()))
    rates = {precision: matrix_rate(device, precision) for precision in ("float32", "bfloat16")}
    rows = [[title, "slices/s", "ratio", "of the device"], ["---"] * 4]
    for name, seconds in times.items():
        share = flops / seconds / rates[name.partition(",")[0]]
        rows.append([name, f"{number / seconds:.3g}", f"{first / seconds:.2f}", f"{share:.0%}"])
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
    """

    def __init__(self, names: Sequence[str], options: Mapping[str, object], order: str):
        parser = read_config(*names, **options)
        parser["model"] = f"$@network_def.to(@device, memory_format=torch.{order})"
        parts = ("network", "loss", "optimizer", "train#prepare_batch", "train#dataloader", "device")
        self.network, self.loss, self.optimizer, self.prepare, loader, self.device = map(
            parser.get_parsed_content, parts
        )
        self.network.train()
        self.batch = next(iter(loader))

    def __call__(self) -> None:
        inputs, targets = self.prepare(self.batch, self.device)
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.network(inputs), targets).backward()
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
        "float32, channels first": "contiguous_format",
        "float32, channels last": "channels_last",
        "bfloat16, channels last": "channels_last",
    }
    settings = {"dataset_dir": options.dataset_dir, "output_dir": options.folder, "batch_size": options.batch_size}
    settings |= {"device": torch.device(options.device), "slice_range": None, "planes": ["axial"]}
    tables = []
    for title, names in (("train.json", ["train"]), ("train.json with paper.json", ["train", "paper"])):
        steps = {
            name: TrainingStep(names, {**settings, "precision": name.partition(",")[0]}, order)
            for name, order in variants.items()
        }
        times, flops = fastest(steps, options.repeats), next(iter(steps.values())).flops()
        title = f"{title}, batches of {options.batch_size}"
        tables.append(table(title, times, options.batch_size, flops, options.device))
    return "\n".join(tables)


def benchmark_segmentation(options: argparse.Namespace) -> str:
    """A prepared volume, from tensors to mask."""
    config = read_config("inference", device=torch.device(options.device), model_file=options.model_file)
    model, inferer = config.get_parsed_content("network"), config.get_parsed_content("inferer")
    inferer.progress = False
    scan = find_scans("", ["flair"], image=options.image)[0]
    volume = list_data_collate([config.get_parsed_content("preprocessing")(scan)])["image"].to(options.device)

    @torch.no_grad()
    def run(order: torch.memory_format) -> None:
        inferer(volume, model.to(memory_format=order))

    orders = {"float32, channels first": torch.contiguous_format, "float32, channels last": torch.channels_last}
    times = fastest({name: partial(run, order) for name, order in orders.items()}, options.repeats)
    with FlopCounterMode(display=False) as counter:
        run(torch.channels_last)
    title = f"{' x '.join(map(str, volume.shape[2:]))} voxels"
    return table(title, times, volume.shape[-1], counter.get_total_flops(), options.device)


PARTS = {"training": benchmark_training, "segmentation": benchmark_segmentation}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS], help="what to measure (default: all)")
    parser.add_argument("--image", type=os.path.abspath, help="a FLAIR volume (default: a synthetic head of 1 mm)")
    parser.add_argument("--dataset_dir", help="scans that the training takes (default: phantoms)")
    parser.add_argument("--model_file", default=str(BUNDLE / "models" / "model.pt"), help="weights to segment with")
    parser.add_argument("--batch_size", type=int, default=8, help="of a training step (default: 8)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each variant, of which the fastest counts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
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
