"""Turns frames into training patches on the training device; knows tensors and random numbers, not where pixels lie.

Every patch has its own random numbers, so that it is the same patch whichever worker makes it. (What a CPU and a GPU
draw as noise differs: the generators are torch's.)
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unetpp.errors import ConfigError
from unetpp.span import Span
from unetpp.train.config import AugmentConfig
from unetpp.train.sampling import Frames

# Optical density of haematoxylin, eosin and DAB in red, green, blue: Ruifrok and Johnston 2001, table of section 2.
_STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))


def patches(frames: Frames, side: int, config: AugmentConfig, device: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Warp and recolour frames.

    Returns:
        pixels (n, C, side, side) float32 in the source's units, labels (n, side, side) int64 with 255 where a pixel
        does not count, objects (n, side, side) int32 or None.
    """
    randoms = [np.random.default_rng(seed) for seed in frames.seeds]
    grid = _grid(frames, side, config, randoms).to(device)
    image = frames.pixels.to(device).permute(0, 3, 1, 2).float()
    pixels = F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
    labels = _nearest(frames.labels.to(device), grid).long()
    objects = None if frames.objects is None else _nearest(frames.objects.to(device), grid).int()
    return _recoloured(pixels, frames.span, config, randoms), labels, objects


def check_augment(config: AugmentConfig, span: Span) -> None:
    """Raise `ConfigError` where samples of this span are not what a change of colour is for."""
    if config.stain and (len(span.high) != 3 or span.most != 255):
        raise ConfigError(
            f"augment.stain = {config.stain}: stains are those of slides of three bands of 8 bits, and these images "
            f"have {len(span.high)} band(s) up to {span.most:g}; set it to 0"
        )


def _recoloured(pixels: Tensor, span: Span, config: AugmentConfig, randoms: list[np.random.Generator]) -> Tensor:
    """Recolour raw samples (n, C, side, side) in parts of their span; they stay what their type can hold."""
    low, high = (
        torch.tensor(values, dtype=torch.float32, device=pixels.device).view(1, -1, 1, 1)
        for values in (span.low, span.high)
    )
    changed = recolour((pixels - low) / (high - low), config, randoms)
    return (changed * (high - low) + low).clamp(span.least, span.most)


def _nearest(values: Tensor, grid: Tensor) -> Tensor:
    """Sample whole numbers (n, R, R), as float64: numbers of objects may be any of int32."""
    sampled = F.grid_sample(
        values[:, None].double(), grid.double(), mode="nearest", padding_mode="reflection", align_corners=False
    )
    return sampled[:, 0]


def _grid(frames: Frames, side: int, config: AugmentConfig, randoms: list[np.random.Generator]) -> Tensor:
    """Return where each patch pixel lies in its frame, (n, side, side, 2) in -1..1."""
    count, reach = len(randoms), frames.labels.shape[-1] / 2
    grid = F.affine_grid(frames.theta, [count, 1, side, side], align_corners=False)
    if config.elastic:
        nodes = config.elastic_nodes
        bent = np.stack([random.standard_normal((2, nodes, nodes), np.float32) for random in randoms])
        field = F.interpolate(torch.from_numpy(bent), (side, side), mode="bicubic", align_corners=True)
        grid = grid + field.permute(0, 2, 3, 1) * (config.elastic / reach)
    return grid


def recolour(x: Tensor, config: AugmentConfig, randoms: list[np.random.Generator]) -> Tensor:
    """Change stain, brightness, contrast, tint and saturation, blur and add noise.

    Args:
        x: (n, C, H, W), most of it in 0..1. What lies outside is kept there, and the brightness curve leaves it alone.
    """
    count, bands = x.shape[:2]

    def draw(low: float, high: float, size: int = 1) -> Tensor:
        values = np.stack([random.uniform(low, high, size) for random in randoms])
        return torch.from_numpy(values).float().to(x.device).view(count, size, 1, 1)

    if config.stain:
        x = restain(x, 1 + draw(-config.stain, config.stain, 3), draw(-config.stain / 10, config.stain / 10, 3))
    inside = x.clamp(0, 1)
    x = inside ** torch.exp(draw(-config.gamma, config.gamma)) + (x - inside)
    x = x * draw(1 - config.gain, 1 + config.gain) * draw(1 - config.tint, 1 + config.tint, bands)
    x = x + draw(-config.offset, config.offset) + draw(-config.tint / 2, config.tint / 2, bands)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * draw(*config.saturation)
    blurred = [random.random() < config.blur for random in randoms]
    sigma = [random.uniform(0, config.blur_sigma) * on for random, on in zip(randoms, blurred, strict=True)]
    x = blur(x, sigma) if any(blurred) else x
    for index, random in enumerate(randoms):
        if random.random() < config.noise:
            generator = torch.Generator(x.device).manual_seed(int(random.integers(2**62)))
            noise = torch.randn(x[index].shape, generator=generator, device=x.device)
            x[index] += noise * random.uniform(0, config.noise_sigma)
    return x


def restain(x: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    """Change the amounts of three stains in RGB patches (n, 3, H, W) in 0..1.

    Optical density -ln(x) is a sum of stains' densities times their amounts (Beer and Lambert); amounts are multiplied
    by `factor` and moved by `shift`, both (n, 3, 1, 1).
    """
    stains = torch.tensor(_STAINS, device=x.device)
    stains = stains / stains.norm(dim=1, keepdim=True)
    density = -torch.log(x.clamp(min=1 / 255))
    amounts = torch.einsum("nchw,cs->nshw", density, torch.linalg.inv(stains))
    return torch.exp(-torch.einsum("nshw,sc->nchw", amounts * factor + shift, stains)).clamp(0, 1)


def blur(x: Tensor, sigma: list[float]) -> Tensor:
    """Blur each patch (n, C, H, W) with its own Gaussian; sigma 0 leaves it as it is."""
    count, bands, height, width = x.shape
    radius = max(1, math.ceil(3 * max(sigma)))
    offset = torch.arange(-radius, radius + 1, dtype=torch.float32, device=x.device)
    spread = torch.tensor(sigma, device=x.device).clamp(min=1e-3)[:, None]
    kernel = torch.exp(-0.5 * (offset / spread) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(bands, 0)
    planes = F.pad(x.reshape(1, count * bands, height, width), (radius,) * 4, mode="replicate")
    planes = F.conv2d(planes, kernel[:, None, :, None], groups=count * bands)
    planes = F.conv2d(planes, kernel[:, None, None, :], groups=count * bands)
    return planes.reshape(x.shape)
