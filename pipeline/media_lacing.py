"""Several packets in one Matroska block (RFC 9559, 10.3)."""

from __future__ import annotations

from typing import Final

from pipeline.media_track import truncated

_XIPH, _FIXED = 1, 2


def laced_sizes(audio: bytes, position: int, end: int, lacing: int) -> tuple[int, list[int]]:
    """Where the packets of a block begin, one behind the other up to `end`, and their sizes.

    `position` is that behind the block's header, `lacing` its two bits. Raises `AudioRejectedError` where the sizes
    do not fit into the block, `IndexError` at the end of the file.
    """
    if lacing == 0:
        return position, [end - position]
    num_packets = audio[position] + 1
    position += 1
    sizes: list[int] = []
    if lacing == _FIXED:
        sizes = [(end - position) // num_packets] * (num_packets - 1)
    elif lacing == _XIPH:
        for _ in range(num_packets - 1):
            size = 0
            while audio[position] == 255:
                size += 255
                position += 1
            sizes.append(size + audio[position])
            position += 1
    else:
        for index in range(num_packets - 1):
            value, num_bytes = _vint(audio, position)
            # Each but the first is told by its difference from the one before.
            sizes.append(sizes[-1] + value - _BIAS[num_bytes] if index else value)
            position += num_bytes
    last = end - position - sum(sizes)
    if min([*sizes, last]) < 1 or (lacing == _FIXED and last not in sizes[:1] + [last] * (num_packets == 1)):
        raise truncated(f"the packets of the block that ends at byte {end} do not fit into it")
    return position, [*sizes, last]


_BIAS: Final = {num_bytes: (1 << 7 * num_bytes - 1) - 1 for num_bytes in range(1, 9)}


def _vint(audio: bytes, position: int) -> tuple[int, int]:
    num_bytes = 9 - audio[position].bit_length()
    if num_bytes > 8:
        raise truncated(f"the size of a packet at byte {position} is damaged")
    value = int.from_bytes(audio[position : position + num_bytes], "big")
    return value & (1 << 7 * num_bytes) - 1, num_bytes
