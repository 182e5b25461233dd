"""The reconstruction network of the paper, and the weights that its research code leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two normalized convolutions with a shortcut; halves or doubles the image between them on request.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        dropout: Probability of dropping an activation before the second convolution, in [0, 1).
        scale: ``"down"`` averages 2 x 2 pixels, ``"up"`` repeats each pixel 2 x 2, ``None`` keeps the size.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0, scale: str | None = None):
        super().__init__()
        rescaling = {"down": nn.AvgPool2d(2), "up": nn.Upsample(scale_factor=2.0, mode="nearest"), None: nn.Identity()}
        self.rescale = rescaling[scale]
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.conv1(self.rescale(F.silu(self.norm1(features))))
        hidden = self.conv2(self.dropout(F.silu(self.norm2(hidden))))
        return self.shortcut(self.rescale(features)) + hidden


class AttentionBlock(nn.Module):
    """Single-head self-attention over all pixels of a feature map, added to its input."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.projection = nn.Conv1d(channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        flat = self.norm(features).flatten(2)
        query, key, value = self.qkv(flat).transpose(1, 2).unsqueeze(1).chunk(3, dim=3)
        attended = F.scaled_dot_product_attention(query, key, value).squeeze(1)
        return features + self.projection(attended.transpose(1, 2)).reshape(features.shape)


def _stage(in_width: int, out_width: int, dropout: float, attends: bool, scale: str | None = None) -> nn.Sequential:
    blocks: list[nn.Module] = [ResidualBlock(in_width, out_width, dropout)]
    if attends:
        blocks.append(AttentionBlock(out_width))
    if scale:
        blocks.append(ResidualBlock(out_width, out_width, dropout, scale))
    return nn.Sequential(*blocks)


class ReconstructionUNet(nn.Module):
    """U-Net of residual blocks with attention at its coarse levels (Liang et al. 2024, section 3).

    Args:
        in_channels: M for the first-iteration network (high-frequency images of M modalities), 2 M for the
            masked network (corrupted images, then high-frequency images).
        out_channels: M reconstructed modalities.
        channels: Feature maps of the finest level.
        channel_multipliers: Feature maps of each level, finest first, as multiples of ``channels``.
        residual_blocks: Residual blocks of a level on the way down (one more on the way up).
        attention_levels: Levels, finest = 0, with attention; (2, 3, 4) is 32, 16 and 8 pixels of 128.
        dropout: Dropout probability inside the residual blocks.
        patch_size: Squares of this many pixels are one pixel of the finest level, with their pixels as channels; 1 is
            the paper's network, 2 takes a quarter of its time.

    Raises:
        ValueError: In the forward pass, when height or width is no multiple of
            ``patch_size * 2 ** (len(channel_multipliers) - 1)``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: int = 32,
        channel_multipliers: Sequence[int] = (1, 1, 2, 3, 4),
        residual_blocks: int = 2,
        attention_levels: Sequence[int] = (2, 3, 4),
        dropout: float = 0.1,
        patch_size: int = 1,
    ):
        super().__init__()
        self.size = {
            "channels": channels,
            "channel_multipliers": list(channel_multipliers),
            "residual_blocks": residual_blocks,
            "attention_levels": list(attention_levels),
            "dropout": dropout,
            "patch_size": patch_size,
        }
        widths = [channels * multiplier for multiplier in channel_multipliers]
        self.size_factor = patch_size * 2 ** (len(widths) - 1)
        self.to_patches, self.to_pixels = nn.PixelUnshuffle(patch_size), nn.PixelShuffle(patch_size)
        self.down = nn.ModuleList([nn.Sequential(nn.Conv2d(in_channels * patch_size**2, widths[0], 3, padding=1))])
        width, skips = widths[0], [widths[0]]
        for level, level_width in enumerate(widths):
            for _ in range(residual_blocks):
                self.down.append(_stage(width, level_width, dropout, level in attention_levels))
                width = level_width
                skips.append(width)
            if level < len(widths) - 1:
                self.down.append(nn.Sequential(ResidualBlock(width, width, dropout, "down")))
                skips.append(width)
        self.middle = nn.Sequential(
            ResidualBlock(width, width, dropout), AttentionBlock(width), ResidualBlock(width, width, dropout)
        )
        self.up = nn.ModuleList()
        for level, level_width in reversed(list(enumerate(widths))):
            for block in range(residual_blocks + 1):
                scale = "up" if level and block == residual_blocks else None
                attends = level in attention_levels
                self.up.append(_stage(width + skips.pop(), level_width, dropout, attends, scale))
                width = level_width
        last = nn.Conv2d(width, out_channels * patch_size**2, 3, padding=1)
        self.head = nn.Sequential(nn.BatchNorm2d(width), nn.SiLU(), last)

    def forward(self, image: Tensor) -> Tensor:
        """Reconstruct: (N, in_channels, H, W) to (N, out_channels, H, W)."""
        height, width = image.shape[-2], image.shape[-1]
        if height % self.size_factor != 0 or width % self.size_factor != 0:
            raise ValueError(
                f"Height and width must be multiples of {self.size_factor}, got {height} x {width}: "
                "set `image_size` to such a number."
            )
        skips: list[Tensor] = []
        features = self.to_patches(image)
        for block in self.down:
            features = block(features)
            skips.append(features)
        features = self.middle(features)
        for block in self.up:
            features = block(torch.cat([features, skips.pop()], dim=1))
        return self.to_pixels(self.head(features))


def convert_research_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of one network trained with the published research code to those of `ReconstructionUNet`.

    Parameters that the research network holds and never uses (its time embedding, a tenth of all) are left out.

    Args:
        state_dict: A state dict as the research code saves it.

    Returns:
        A state dict for a `ReconstructionUNet` of the same size.

    Raises:
        ValueError: When the keys are not those of the research network.
    """
    stages = {"input_blocks": "down", "middle_block": "middle", "output_blocks": "up", "out": "head"}
    layers = {
        ".in_layers.0.": ".norm1.",
        ".in_layers.2.": ".conv1.",
        ".out_layers.0.": ".norm2.",
        ".out_layers.3.": ".conv2.",
        ".skip_connection.": ".shortcut.",
        ".proj_out.": ".projection.",
    }
    converted = {}
    for name, value in state_dict.items():
        if name.startswith("time_embed.") or ".emb_layers." in name:
            continue
        stage, _, rest = name.partition(".")
        if stage not in stages:
            raise ValueError(
                f"Expected the weights of a research network ({', '.join(stages)}), got {name!r}: "
                "pass the state dict of one network, as its training saved it."
            )
        name = f"{stages[stage]}.{rest}"
        for research, ours in layers.items():
            name = name.replace(research, ours)
        converted[name] = value
    return converted
