"""Rank: this process among those that torchrun started."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rank:
    """This process among those that torchrun started; alone without torchrun.

    Attributes:
        rank: Its number.
        world: How many there are.
        local: Its number on this machine.
    """

    rank: int
    world: int
    local: int

    @classmethod
    def from_environment(cls) -> Rank:
        """Read what torchrun sets. No process group is needed: the ranks share nothing but the folder.

        Raises:
            ValueError: If it cannot be.
        """
        try:
            rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
            local = int(os.environ.get("LOCAL_RANK", str(rank)))
        except ValueError as error:
            raise ValueError(
                f"RANK, WORLD_SIZE and LOCAL_RANK must be numbers, as torchrun sets them: {error}. Unset them, or "
                f"start the command with torchrun."
            ) from None
        if not 0 <= rank < world:
            raise ValueError(
                f"RANK must be 0 to WORLD_SIZE - 1, got RANK={rank} and WORLD_SIZE={world}. Unset them, or start the "
                f"command with torchrun."
            )
        return cls(rank, world, local)

    def owns(self, shard: int) -> bool:
        """Whether this rank writes the shard."""
        return shard % self.world == self.rank

    @property
    def is_first(self) -> bool:
        """Whether it is the one that speaks for all."""
        return self.rank == 0

    def own_device(self, device: str | torch.device | None) -> str | torch.device | None:
        """Give every rank of a machine its own CUDA device, unless one was named by number."""
        wants_cuda = device in (None, "auto") and torch.cuda.is_available()
        if self.world > 1 and (wants_cuda or str(device) == "cuda"):
            return f"cuda:{self.local % max(1, torch.cuda.device_count())}"
        return device
