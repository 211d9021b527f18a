"""A batch on its way to a CUDA device while the one before it is encoded."""

from __future__ import annotations

import torch


class Stager:
    """Copies to one device from pinned memory, on a stream of its own; safe from several threads."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, waveforms: torch.Tensor) -> torch.Tensor:
        """`waveforms` on the device, there when this returns; as they are where it has no room, as `encode` will find.

        The copy waits for no kernel of the batch that is encoded meanwhile, and no kernel for the copy.
        """
        try:
            # Pinned memory and the copy belong to the current device's context, which is the first one's by default.
            with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                staged = waveforms.pin_memory().to(self._device, non_blocking=True)
        except RuntimeError:  # no room on the device, or no more memory that the host may pin
            return waveforms
        self._stream.synchronize()
        # Its memory belongs to this stream; it may be used again only when the kernels that read it are done.
        staged.record_stream(torch.cuda.default_stream(self._device))
        return staged
