from __future__ import annotations

import pytest
import torch

from codec.base import Codec, CodecError, Tokens
from codec.registry import codec_info, load_codec


def noise(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    waveforms = torch.rand(len(lengths), max(lengths), generator=generator) - 0.5
    return waveforms, torch.tensor(lengths)


def test_it_has_the_numbers_of_longcat() -> None:
    info = load_codec("calibrated:").info
    assert (info.sample_rate_hz, info.frame_size, info.semantic_cardinality) == (16000, 960, 8192)
    assert info.acoustic_cardinalities == (8100, 8100, 8100)
    assert isinstance(load_codec("calibrated:"), Codec)


def test_ids_are_those_of_the_clip_alone() -> None:
    codec = load_codec("calibrated:")
    waveforms, lengths = noise(5000, 960, 16000, 1)
    together = codec.encode(waveforms, lengths)
    assert together.num_frames.tolist() == [6, 1, 17, 1]
    assert together.semantic is not None
    assert together.acoustic is not None
    for row, length in enumerate(lengths.tolist()):
        alone = codec.encode(waveforms[row : row + 1, :length], lengths[row : row + 1])
        assert alone.semantic is not None
        assert alone.acoustic is not None
        frames = int(alone.num_frames[0])
        assert torch.equal(together.semantic[row, :frames], alone.semantic[0])
        assert torch.equal(together.acoustic[row, :, :frames], alone.acoustic[0])
        assert not together.semantic[row, frames:].any()
        assert not together.acoustic[row, :, frames:].any()


def test_ids_tell_audio_apart() -> None:
    codec = load_codec("calibrated:")
    waveforms, lengths = noise(480000)
    found = codec.encode(waveforms, lengths)
    assert found.semantic is not None
    assert found.acoustic is not None
    streams = [found.semantic[0], *found.acoustic[0]]
    for ids, cardinality in zip(streams, (8192, 8100, 8100, 8100), strict=True):
        assert 0 <= int(ids.min()) < 1000 < cardinality - 1000 < int(ids.max()) < cardinality
        assert len(ids.unique()) > 450  # of 500 frames, by chance about 485
    # One sample changed by one step of 16 bits changes its own frame, in every stream.
    waveforms[0, 960] += 1.5 / 32767
    changed = codec.encode(waveforms, lengths)
    assert changed.semantic is not None
    assert (changed.semantic[0] != found.semantic[0]).nonzero().tolist() == [[1]]


def test_ids_stay_the_same_from_release_to_release() -> None:
    tokens = load_codec("calibrated:").encode(torch.linspace(-1, 1, 1000)[None], torch.tensor([1000]))
    assert tokens.semantic is not None
    assert tokens.acoustic is not None
    assert tokens.semantic.tolist() == [[6128, 5486]]
    assert tokens.acoustic.tolist() == [[[6671, 2485], [2862, 4853], [4531, 5586]]]


def test_zero_ids_have_the_shapes_of_others_and_refuse_what_others_refuse() -> None:
    zero, other = load_codec("calibrated:ids=zero"), load_codec("calibrated:")
    waveforms, lengths = noise(5000, 960, 1)
    for asked in ({}, {"semantic": False}, {"num_acoustic_codebooks": 2}, {"num_acoustic_codebooks": 0}):
        found, expected = zero.encode(waveforms, lengths, **asked), other.encode(waveforms, lengths, **asked)
        assert torch.equal(found.num_frames, expected.num_frames)
        for ids, shaped in ((found.semantic, expected.semantic), (found.acoustic, expected.acoustic)):
            assert (ids is None) == (shaped is None)
            if ids is not None and shaped is not None:
                assert (ids.shape, ids.dtype) == (shaped.shape, shaped.dtype)
                assert not ids.any()
    assert zero.info.checkpoint_hash != other.info.checkpoint_hash
    with pytest.raises(ValueError, match="audio samples"):
        zero.encode(waveforms, torch.tensor([5000, 0, 1]))


def test_streams_and_options_are_followed() -> None:
    codec = load_codec("calibrated:frame_size=480,codebooks=2")
    waveforms, lengths = noise(4800)
    tokens = codec.encode(waveforms, lengths, semantic=False, num_acoustic_codebooks=1)
    assert tokens.semantic is None
    assert tokens.acoustic is not None
    assert tokens.acoustic.shape == (1, 1, 10)
    assert codec.encode(waveforms, lengths, num_acoustic_codebooks=0).acoustic is None


def test_the_hash_follows_what_decides_the_ids() -> None:
    def hash_of(uri: str) -> str:
        return codec_info(uri).checkpoint_hash

    assert hash_of("calibrated:") == hash_of("calibrated:cost_s=0.1,per=audio_s,mode=spin")
    assert len({hash_of("calibrated:"), hash_of("calibrated:frame_size=480"), hash_of("calibrated:codebooks=2")}) == 3


@pytest.mark.parametrize(
    ("options", "spent_s"),
    [
        ("cost_s=0.25", 0.25),
        ("cost_s=0.25,per=audio_s", 0.03),
        ("cost_s=0.25,per=audio_s,ids=zero", 0.03),
        ("per=audio_s", 0.0),
    ],
)
def test_a_batch_costs_what_was_set(monkeypatch: pytest.MonkeyPatch, options: str, spent_s: float) -> None:
    slept_s: list[float] = []
    monkeypatch.setattr("codec.calibrated.time.sleep", slept_s.append)
    load_codec(f"calibrated:{options}").encode(*noise(960, 900))
    assert slept_s == [pytest.approx(spent_s)]


def test_spinning_reads_the_clock_until_the_cost_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    readings_s = iter([10.0, 10.1, 10.2, 10.26])
    monkeypatch.setattr("codec.calibrated.time.perf_counter", lambda: next(readings_s))
    load_codec("calibrated:cost_s=0.25,mode=spin").encode(*noise(960))
    assert list(readings_s) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("cost=1", "cost='1'.*options are cost_s, per"),
        ("cost_s=fast", "cost_s='fast'"),
        ("cost_s=-1", "cost_s='-1'"),
        ("cost_s=nan", "cost_s='nan'"),
        ("per=hour", "per='hour'.*'batch' or 'audio_s'"),
        ("mode=idle", "mode='idle'.*'sleep' or 'spin'"),
        ("codebooks=1.5", "codebooks='1.5'"),
        ("frame_size=0", "frame_size='0'"),
        ("per", "per=''"),
        ("codebooks=1,codebooks=2", "'codebooks' stands there twice"),
    ],
)
def test_a_wrong_option_is_named(options: str, message: str) -> None:
    for open_it in (codec_info, load_codec):
        with pytest.raises(CodecError, match=message):
            open_it(f"calibrated:{options}")


def test_it_cannot_decode() -> None:
    tokens = Tokens(torch.zeros(1, 2, dtype=torch.int64), None, torch.tensor([2]))
    with pytest.raises(CodecError, match="cannot decode"):
        load_codec("calibrated:").decode(tokens, 16000)
