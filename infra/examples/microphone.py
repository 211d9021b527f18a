"""Speech through the codec as it is spoken: 60 ms in, tokens, 60 ms out; a WAV file stands for the microphone.

    python -m infra.examples.microphone speech.wav heard.wav --codec tests/data/longcat-golden

With a real microphone only `chunks` would change: it waits for the next 60 ms instead of reading them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch

from codec.base import CodecError
from codec.longcat.model import LongCatCodec
from codec.registry import load_codec

CHUNK_S = 0.06


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="WAV or FLAC at the codec's rate (16 kHz); channels are averaged")
    parser.add_argument("target", type=Path, help="WAV to write")
    parser.add_argument("--codec", default="longcat", help="default: the published weights on the hub")
    parser.add_argument("--sample-rate-hz", type=int, default=24000, help="of the target: 16000 or 24000 (default)")
    arguments = parser.parse_args()
    codec = load_codec(arguments.codec)
    if not isinstance(codec, LongCatCodec):
        raise SystemExit(f"found codec {arguments.codec!r}, which has no streams; give a LongCat checkpoint")
    torch.set_num_threads(1)  # steps are small: threads would mostly wait for each other
    try:
        num_frames = speak_and_hear(codec, arguments.source, arguments.target, arguments.sample_rate_hz)
    except (CodecError, soundfile.LibsndfileError) as error:
        raise SystemExit(str(error)) from None
    print(f"{num_frames} frames of {1e3 / codec.info.frame_rate_hz:g} ms -> {arguments.target}")


def speak_and_hear(codec: LongCatCodec, source: Path, target: Path, sample_rate_hz: int) -> int:
    """Encode and decode a file piece by piece; returns the number of frames.

    Raises `CodecError` when the source is not at the codec's rate, or the target is the source.
    """
    if target.exists() and source.samefile(target):
        raise CodecError(f"source and target are both {source}; give another target")
    rate_hz = soundfile.info(source).samplerate
    if rate_hz != codec.info.sample_rate_hz:
        raise CodecError(f"{source} is at {rate_hz} Hz; give one at the codec's {codec.info.sample_rate_hz} Hz")
    encoder = codec.stream_encoder()
    decoder = codec.stream_decoder(sample_rate_hz)
    num_frames = 0
    with soundfile.SoundFile(target, "w", sample_rate_hz, channels=1, subtype="PCM_16", format="WAV") as heard:
        for chunk in chunks(source, codec.info.sample_rate_hz):
            tokens = encoder.push(chunk)
            num_frames += int(tokens.num_frames)
            heard.write(decoder.push(tokens.semantic, tokens.acoustic)[0].numpy())
        tokens = encoder.finish()
        num_frames += int(tokens.num_frames)
        heard.write(decoder.push(tokens.semantic, tokens.acoustic)[0].numpy())
        heard.write(decoder.finish()[0].numpy())
    return num_frames


def chunks(source: Path, sample_rate_hz: int) -> Iterator[torch.Tensor]:
    """Pieces of 60 ms, float32 [1, T]; the last one may be shorter."""
    with soundfile.SoundFile(source) as file:
        for block in file.blocks(round(CHUNK_S * sample_rate_hz), dtype="float32", always_2d=True):
            yield torch.from_numpy(np.ascontiguousarray(block.mean(axis=1)))[None]


if __name__ == "__main__":
    main()
