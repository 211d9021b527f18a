"""Which decoder fits its tokens."""

from __future__ import annotations

from collections.abc import Mapping

from codec.longcat.config import DecoderConfig


def choose_decoder(decoders: Mapping[str, DecoderConfig], sample_rate_hz: int, num_acoustic_codebooks: int) -> str:
    """The decoder made for exactly so many acoustic codebooks, else the rate's largest, which takes fewer.

    Raises `ValueError` when the rate has none, or none so large.
    """
    of_rate = {name: decoder for name, decoder in decoders.items() if decoder.sample_rate_hz == sample_rate_hz}
    if not of_rate:
        rates = sorted({decoder.sample_rate_hz for decoder in decoders.values()})
        raise ValueError(f"found no decoder for {sample_rate_hz} Hz; this checkpoint decodes to {rates} Hz")
    for name, decoder in of_rate.items():
        if decoder.num_codebooks == num_acoustic_codebooks:
            return name
    largest = max(of_rate, key=lambda name: of_rate[name].num_codebooks)
    if of_rate[largest].num_codebooks < num_acoustic_codebooks:
        raise ValueError(
            f"found {num_acoustic_codebooks} acoustic codebooks; the decoders for {sample_rate_hz} Hz take at most "
            f"{of_rate[largest].num_codebooks}; give the first ones alone"
        )
    return largest
