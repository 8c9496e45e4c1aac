"""What a training loop asks of the other workers of its run; one worker alone asks nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """This worker's place among `world` workers; made outside the loop, by whoever started them.

    Attributes:
        rank, world: number of this worker and how many there are.
        wrap: returns the module with its gradients averaged over workers.
        reduce: sums a tensor over workers, with gradients; None alone.
    """

    rank: int = 0
    world: int = 1
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module
    reduce: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def of_process_group(cls) -> Ranks:
        """Return the place in torch.distributed's default group, with DistributedDataParallel; alone without one."""
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return cls()
        from torch.distributed.nn.functional import all_reduce

        return cls(dist.get_rank(), dist.get_world_size(), _distributed, all_reduce)

    def share(self, count: int) -> range:
        """Return which of `count` things this worker does: contiguous, and all workers' shares make the whole."""
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def sum(self, array: NDArray[Any], device: str = "cpu") -> NDArray[np.float64]:
        """Return the sum over workers, in float64: exact for counts below 2^53."""
        total = np.asarray(array, np.float64)
        if self.world == 1:
            return total
        import torch.distributed as dist

        tensor = torch.from_numpy(total.copy()).to(device)
        dist.all_reduce(tensor)
        result: NDArray[np.float64] = tensor.cpu().numpy()
        return result


def _distributed(module: nn.Module) -> nn.Module:
    from torch.nn.parallel import DistributedDataParallel

    # Batch statistics are the same on every worker already, so buffers need not be sent.
    return DistributedDataParallel(module, broadcast_buffers=False)
