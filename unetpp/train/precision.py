"""Decides in which precision a training multiplies; knows devices, no networks."""

from __future__ import annotations

import logging
from typing import Literal

import numpy as np
import torch

from unetpp.processor import cpu_has_bf16
from unetpp.train.ranks import Ranks

log = logging.getLogger(__name__)


def multiplies_bf16(device: str) -> bool:
    """Say whether the device has instructions for bf16, without which torch emulates it."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return cpu_has_bf16()


def settled(asked: str, device: str, ranks: Ranks | None = None) -> Literal["bf16", "fp32"]:
    """Return what "auto" is here: bf16 where every worker's device has it, else fp32; the others are what they are.

    A step of the nuclei recipe's network took 1.6 s in fp32 and 29 s in emulated bf16 on one core of an AMD EPYC
    without AVX-512 (torch 2.13): who asks for bf16 there is told.

    Args:
        asked: "auto", "bf16" or "fp32".
        ranks: all workers of the training, who must call this together and get the same answer.
    """
    slow = not multiplies_bf16(device)
    if asked == "auto":
        anywhere = (ranks or Ranks()).sum(np.array([float(slow)]), device)[0] > 0
        return "fp32" if anywhere else "bf16"
    if asked == "bf16" and slow:
        log.warning(
            "this device does not multiply bf16, emulating it is many times slower; give precision auto or fp32"
        )
    return "bf16" if asked == "bf16" else "fp32"
