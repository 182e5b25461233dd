"""How fast the bundle is, as ratios from one run: ``python -m scripts.tools.benchmark`` in the bundle's folder.

Variants of a part take turns, and the fastest turn of each counts, so that a busy machine slows all alike. The first
variant is the plain one. *Of the device* is the share of what a large matrix product reaches in the same precision.
"""

from __future__ import annotations

import argparse
import gzip
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from monai.data import list_data_collate
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

BUNDLE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(BUNDLE))

from scripts.common.errors import report_errors  # noqa: E402
from scripts.common.outputs import write_text  # noqa: E402
from scripts.common.paths import config_files  # noqa: E402
from scripts.data.scans import find_scans  # noqa: E402
from scripts.tools.demo import make_scan  # noqa: E402
from scripts.tools.phantoms import make_phantoms  # noqa: E402

PARTS = ("training", "segmentation", "reading", "command")
ORDERS = {"float32, channels first": torch.contiguous_format, "float32, channels last": torch.channels_last}
SLAB = 20  # slices of a volume that are segmented as slices


def read_config(*names: str, **overrides: object) -> ConfigParser:
    """Configs of the bundle, one over the other, with options set."""
    parser = ConfigParser()
    parser.read_config([str(path) for path in config_files(*names)])
    for name, value in overrides.items():
        parser[name] = value
    return parser


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fastest(variants: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Seconds of each variant: the fastest of several turns, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats + 1):
        for name, work in variants.items():
            synchronize(device)
            start = time.perf_counter()
            work()
            synchronize(device)
            times[name].append(time.perf_counter() - start)
    return {name: min(found[1:] or found) for name, found in times.items()}


def settings_of(device: torch.device, compiled: bool) -> dict[str, tuple[str, bool, bool]]:
    """Variants of how networks compute: precision, channels last, compiled."""
    variants = {
        "float32, channels first": ("float32", False, False),
        "float32, channels last": ("float32", True, False),
        "bfloat16, channels last": ("bfloat16", True, False),
    }
    return variants | ({"bfloat16, channels last, compiled": ("bfloat16", True, True)} if compiled else {})


def matrix_rate(device: torch.device, precision: str) -> float:
    """Floating point operations a second of a large matrix product: what the device can do."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=getattr(torch, precision)) for _ in range(2))
    return 2 * size**3 / fastest({"product": lambda: left @ right}, 5, device)["product"]


def rows_of(
    times: Mapping[str, float], flops: Mapping[str, float], rates: Mapping[str, float], batch_size: int
) -> list[list[str]]:
    """For each variant its slices a second, the ratio to the first one, and the share of the matrix rate."""
    first = next(iter(times.values()))
    return [
        [name, f"{batch_size / t:.1f}", f"{first / t:.2f}", f"{flops[name] / t / rates[name.partition(',')[0]]:.0%}"]
        for name, t in times.items()
    ]


class TrainingStep:
    """One training of a config, taken apart, so that each call is one step.

    Args:
        names: The config and its override configs.
        options: Options to set.
        channels_last: Memory order of the networks.
        compiled: Compile the networks.
    """

    def __init__(self, names: Sequence[str], options: Mapping[str, object], channels_last: bool, compiled: bool):
        order = "channels_last" if channels_last else "contiguous_format"
        parser = read_config(*names, **options)
        parser["model"] = f"$@network_def.to(@device, memory_format=torch.{order})"
        parts = ("device", "network", "loss", "optimizer", "train#prepare_batch", "train#dataloader")
        self.device, self.network, self.loss, self.optimizer, self.prepare, loader = map(
            parser.get_parsed_content, parts
        )
        self.network.train()
        self.forward = torch.compile(self.network) if compiled else self.network
        self.loader, self.batches = loader, iter(loader)

    def next_batch(self) -> tuple:
        """Inputs and targets of the next step; the data are endless."""
        try:
            batch = next(self.batches)
        except StopIteration:
            self.batches = iter(self.loader)
            batch = next(self.batches)
        return self.prepare(batch, self.device)

    def __call__(self) -> None:
        inputs, targets = self.next_batch()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.forward(inputs), targets).backward()
        self.optimizer.step()

    def flops(self) -> int:
        """Floating point operations of the forward and backward pass of a step."""
        inputs, targets = self.next_batch()
        with FlopCounterMode(display=False) as counter:
            self.loss(self.network(inputs), targets).backward()
        return counter.get_total_flops()


def benchmark_training(options: argparse.Namespace, device: torch.device) -> str:
    """Training steps of the lesion network and of the published method."""
    tables = []
    variants = settings_of(device, options.compile)
    rates = {precision: matrix_rate(device, precision) for precision in ("float32", "bfloat16")}
    for title, names in (("train.json", ["train"]), ("train.json with paper.json", ["train", "paper"])):
        settings = {"dataset_dir": options.dataset_dir, "device": device, "batch_size": options.batch_size}
        settings |= {"slice_range": None, "planes": ["axial"]}
        steps = {
            name: TrainingStep(
                names,
                {**settings, "output_dir": options.folder, "precision": precision},
                channels_last,
                compiled,
            )
            for name, (precision, channels_last, compiled) in variants.items()
        }
        times = fastest(steps, options.repeats, device)
        flops = dict.fromkeys(steps, float(next(iter(steps.values())).flops()))
        columns = [f"{title}, batches of {options.batch_size}", "slices/s", "ratio", "of the device"]
        tables.append(markdown(columns, rows_of(times, flops, rates, options.batch_size)))
    found = ", ".join(f"{name} {rate / 1e12:.2f} TFLOP/s" for name, rate in rates.items())
    return "\n".join(tables) + f"\nMatrix product: {found}.\n"


@contextmanager
def counted(model: nn.Module) -> Iterator[list[tuple[nn.Module, torch.Tensor]]]:
    """Each network of a model with each input that it gets while the block runs, in whatever thread."""
    seen: list[tuple[nn.Module, torch.Tensor]] = []
    hooks = [
        network.register_forward_pre_hook(lambda network, inputs: seen.append((network, inputs[0])))
        for network in model.children()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def flops_of(calls: Sequence[tuple[nn.Module, torch.Tensor]]) -> float:
    """Floating point operations of some calls of networks."""
    total, known = 0.0, {}
    for network, inputs in calls:
        key = (id(network), inputs.shape[1:])
        if key not in known:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                network(inputs[:1])
            known[key] = counter.get_total_flops()
        total += known[key] * len(inputs)
    return total


def benchmark_segmentation(options: argparse.Namespace, device: torch.device) -> str:
    """A prepared volume, and some of its slices, from tensors to mask."""
    config = read_config("inference", device=device, model_file=options.model_file)
    model, inferer = config.get_parsed_content("network"), config.get_parsed_content("inferer")
    inferer.progress = False
    scan = find_scans("", ["flair"], image=options.image, brain_mask=options.brain_mask)[0]
    volume = list_data_collate([config.get_parsed_content("preprocessing")(scan)])["image"]
    middle = volume.shape[-1] // 2
    tables = []
    rates = {precision: matrix_rate(device, precision) for precision in ("float32", "bfloat16")}
    for title, images in (("volume", volume), ("slices", volume[..., middle - SLAB // 2 : middle + SLAB // 2])):
        runs, flops = {}, {}
        for name, order in (
            ("float32, channels first", torch.contiguous_format),
            ("float32, channels last", torch.channels_last),
        ):

            def run(images: torch.Tensor = images, order: torch.memory_format = order) -> None:
                with torch.no_grad():
                    inferer(images.to(device), model.to(memory_format=order))

            with counted(model) as calls:
                run()
            runs[name], flops[name] = run, flops_of(calls)
        times = fastest(runs, options.repeats, device)
        columns = [f"{title}, {' x '.join(map(str, images.shape[2:]))} voxels", "slices/s", "ratio", "of the device"]
        tables.append(markdown(columns, rows_of(times, flops, rates, images.shape[-1])))
    return "\n".join(tables)


def benchmark_reading(options: argparse.Namespace, device: torch.device) -> str:
    """Reading and preparing a scan against unpacking its file."""
    transform = read_config("inference").get_parsed_content("preprocessing")
    scan = find_scans("", ["flair"], image=options.image, brain_mask=options.brain_mask)[0]
    variants = {
        "unpacking the file": lambda: gzip.decompress(Path(options.image).read_bytes()),
        "reading and preparing it": lambda: transform(dict(scan)),
    }
    times = fastest(variants, options.repeats, torch.device("cpu"))
    first = times["unpacking the file"]
    return markdown(["one scan", "s", "ratio"], [[name, f"{t:.3f}", f"{first / t:.2f}"] for name, t in times.items()])


def benchmark_command(options: argparse.Namespace, device: torch.device) -> str:
    """The command that segments a scan, from its start to the files; another version of the bundle beside it."""

    def command(bundle: str | Path) -> Callable[[], object]:
        def run() -> None:
            with tempfile.TemporaryDirectory() as folder:
                line = [sys.executable, "-m", "monai.bundle", "run", "inference", "--config_file"]
                line += [
                    "configs/inference.json",
                    "--image",
                    str(Path(options.image).resolve()),
                    "--output_dir",
                    folder,
                ]
                subprocess.run(line, cwd=bundle, check=True, capture_output=True)

        return run

    variants = {str(options.against): command(options.against)} if options.against else {}
    times = fastest({**variants, "this bundle": command(BUNDLE)}, options.repeats, device)
    first = next(iter(times.values()))
    rows = [[name, f"{t:.2f}", f"{first / t:.2f}"] for name, t in times.items()]
    return markdown(["one scan, from start to files", "s", "ratio"], rows)


def make_data(options: argparse.Namespace) -> None:
    """A synthetic head, and phantoms to train on, in place of the data that was not given."""
    folder = Path(options.folder)
    if options.image is None:
        options.image = str(make_scan(folder, seed=0)[0])
    if options.dataset_dir is None and "training" in options.parts:
        options.dataset_dir = str(folder / "scans")
        make_phantoms(folder / "scans", 8, 4, 2, num_workers=2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    parser.add_argument("--image", help="a FLAIR volume (default: a synthetic head of 1 mm)")
    parser.add_argument("--brain_mask", help="its brain mask (default: as for inference)")
    parser.add_argument("--dataset_dir", help="scans that the training takes (default: phantoms)")
    parser.add_argument("--model_file", default=str(BUNDLE / "models" / "model.pt"), help="weights to segment with")
    parser.add_argument("--against", help="another version of the folder `bundle`, to compare the command with")
    parser.add_argument("--batch_size", type=int, default=8, help="of a training step (default: 8)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each variant, of which the fastest counts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile the networks of the training too")
    parser.add_argument("--output_file", help="write the tables there too (Markdown)")
    options = parser.parse_args(arguments)
    report_errors()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {os.cpu_count()} cores"
    text = f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    print(text, flush=True)
    with tempfile.TemporaryDirectory() as options.folder:
        make_data(options)
        for part in options.parts:
            table = f"\n### {part.capitalize()}\n\n{globals()[f'benchmark_{part}'](options, device)}"
            print(table, flush=True)
            text += table
    if options.output_file:
        write_text(options.output_file, text)


if __name__ == "__main__":
    main()
