"""Memory that there is for networks on a device."""

from __future__ import annotations

import torch

from dmft.running import memory


def free_memory(device: torch.device) -> int:
    """Bytes: of a GPU those that are free, with what PyTorch holds from batches before; of a CPU those of the host."""
    if device.type != "cuda":
        return memory.available_on_host()
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
