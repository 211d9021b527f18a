"""Decoding a stream: what `decode` gives, as soon as it is settled, however the tokens are cut."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codec.base import CodecError, Tokens
from codec.framing import Delay
from codec.longcat.config import PUBLISHED
from codec.longcat.decoder import WaveformDecoder
from codec.longcat.model import LongCatCodec
from codec.longcat.reach import delay_of
from codec.registry import load_codec
from tests.codec.golden import GOLDEN, Expected
from tests.codec.streams import decoded, state_bytes

pytestmark = pytest.mark.usefixtures("one_thread")

CLIP = "16k_mono"
DECODINGS = {
    "decoder_16k_4codebooks": (16000, 3),
    "decoder_24k_4codebooks": (24000, 3),
    "decoder_24k_2codebooks": (24000, 1),
    "decoder_16k_4codebooks/1_acoustic": (16000, 1),
}
FRAMES_SIZES = st.lists(st.integers(0, 20), min_size=1, max_size=8).filter(any)


def ids_of(expected: Expected, clip: str, num_codebooks: int) -> tuple[torch.Tensor, torch.Tensor]:
    return expected[f"{clip}/semantic"][None], expected[f"{clip}/acoustic"][None, :num_codebooks]


@pytest.mark.parametrize("clip", ["16k_mono", "16k_short_350ms", "22k_mono"])
@pytest.mark.parametrize("decoding", DECODINGS)
def test_the_joined_waveform_is_the_whole_one(
    codec: LongCatCodec, expected: Expected, clip: str, decoding: str
) -> None:
    sample_rate_hz, num_codebooks = DECODINGS[decoding]
    semantic, acoustic = ids_of(expected, clip, num_codebooks)
    stream = codec.stream_decoder(sample_rate_hz, num_acoustic_codebooks=num_codebooks)
    found = decoded(stream, semantic, acoustic, [1, 4])
    offline = codec.decode(Tokens(semantic, acoustic, torch.tensor([semantic.shape[1]])), sample_rate_hz)
    assert found.shape == offline.shape
    assert (found - offline).abs().max() <= 1e-5 * offline.abs().max()
    reference = expected[f"{clip}/{decoding}"]
    assert (found[0] - reference).abs().max() <= 1e-4 * reference.abs().max()


@pytest.mark.parametrize("sample_rate_hz", [16000, 24000])
@settings(deadline=None, max_examples=8)
@given(sizes=FRAMES_SIZES, num_frames=st.integers(1, 20))
def test_cuts_change_no_bit(
    codec: LongCatCodec, expected: Expected, sample_rate_hz: int, sizes: list[int], num_frames: int
) -> None:
    semantic, acoustic = (ids[..., :num_frames] for ids in ids_of(expected, CLIP, 3))
    at_once, cut = (
        decoded(codec.stream_decoder(sample_rate_hz), semantic, acoustic, by) for by in ([num_frames], sizes)
    )
    assert torch.equal(at_once, cut)


@pytest.mark.parametrize(
    ("sample_rate_hz", "held"), [(16000, 3 * 960 + 6212), (24000, 3 * 1440)]
)  # 6212: see StreamDecoder
def test_each_frame_settles_what_it_can(
    codec: LongCatCodec, expected: Expected, sample_rate_hz: int, held: int
) -> None:
    stream = codec.stream_decoder(sample_rate_hz)
    assert stream.delay == Delay(60 * sample_rate_hz // 1000, held)
    semantic, acoustic = ids_of(expected, CLIP, 3)
    num_out = 0
    for frame in range(20):
        num_out += stream.push(semantic[:, frame, None], acoustic[..., frame, None]).shape[1]
        assert num_out == max((frame + 1) * stream.delay.rate - held, 0)
    assert num_out + stream.finish().shape[1] == 20 * stream.delay.rate


@pytest.mark.parametrize("name", PUBLISHED.decoders)
def test_the_look_ahead_is_the_least(codec: LongCatCodec, name: str) -> None:
    """The last sample that n frames settle does hear the last of them; the next sample hears frame n."""
    decoder = copy.deepcopy(codec.decoder(name).decoder).double()
    delay, num_frames = delay_of(decoder), 14
    latents = torch.randn(1, 16, 80, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    waveform = decoder(latents, torch.tensor([16]))[0]
    last_settled = num_frames * delay.rate - delay.held - 1
    for sample, frame_heard in ((last_settled, num_frames - 1), (last_settled + 1, num_frames)):
        (heard,) = torch.autograd.grad(waveform[sample], latents, retain_graph=True)
        assert heard[0].abs().sum(-1).nonzero().max() == frame_heard


def test_the_published_sizes_look_as_far_ahead() -> None:
    with torch.device("meta"):
        found = {name: delay_of(WaveformDecoder(2304, sizes)) for name, sizes in PUBLISHED.decoders.items()}
    causal = Delay(1440, 3 * 1440)
    assert found == {
        "16k_4codebooks": Delay(960, 3 * 960 + 6212),
        "24k_4codebooks": causal,
        "24k_2codebooks": causal,
    }


@pytest.mark.parametrize("sample_rate_hz", [16000, 24000])
def test_either_stream_decodes_alone(codec: LongCatCodec, expected: Expected, sample_rate_hz: int) -> None:
    semantic, acoustic = ids_of(expected, "16k_short_350ms", 3)
    num_frames = torch.tensor([6])
    alone = decoded(codec.stream_decoder(sample_rate_hz, num_acoustic_codebooks=0), semantic, None, [2])
    torch.testing.assert_close(alone, codec.decode(Tokens(semantic, None, num_frames), sample_rate_hz))
    alone = decoded(codec.stream_decoder(sample_rate_hz, semantic=False), None, acoustic, [2])
    torch.testing.assert_close(alone, codec.decode(Tokens(None, acoustic, num_frames), sample_rate_hz))


def test_streams_in_step_are_each_as_if_alone(codec: LongCatCodec, expected: Expected) -> None:
    semantic, acoustic = ids_of(expected, CLIP, 3)
    both = torch.cat((semantic[:, :12], semantic[:, 20:32])), torch.cat((acoustic[..., :12], acoustic[..., 20:32]))
    together = decoded(codec.stream_decoder(16000, num_streams=2), *both, [3])
    for row in range(2):
        alone = decoded(codec.stream_decoder(16000), both[0][row, None], both[1][row, None], [12])
        assert (together[row] - alone[0]).abs().max() <= 1e-5 * alone.abs().max()


@pytest.mark.parametrize("sample_rate_hz", [16000, 24000])
def test_what_is_kept_does_not_grow(codec: LongCatCodec, sample_rate_hz: int) -> None:
    stream = codec.stream_decoder(sample_rate_hz)
    semantic, acoustic = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 3, 1, dtype=torch.int64)
    kept = []
    for _ in range(4):
        for _ in range(20):
            stream.push(semantic, acoustic)
        kept.append(state_bytes(stream))
    assert 0 < kept[0] == kept[1] == kept[2] == kept[3] < 1 << 20


@pytest.mark.parametrize("sample_rate_hz", [16000, 24000])
def test_a_stream_of_nothing_is_empty(codec: LongCatCodec, sample_rate_hz: int) -> None:
    stream = codec.stream_decoder(sample_rate_hz)
    nothing = torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 3, 0, dtype=torch.int64)
    assert stream.push(*nothing).shape == (1, 0)
    assert stream.finish().shape == (1, 0)
    with pytest.raises(CodecError, match="was finished"):
        stream.push(*nothing)
    with pytest.raises(CodecError, match="was finished"):
        stream.finish()


def ids(*shape: int, value: int = 0) -> torch.Tensor:
    return torch.full(shape, value, dtype=torch.int64)


@pytest.mark.parametrize(
    ("semantic", "acoustic", "message"),
    [
        (None, None, "neither semantic nor acoustic"),
        (ids(1, 2, value=256), ids(1, 3, 2), "semantic ids 256 to 256 in codebook 0; allowed: 0 to 255"),
        (ids(1, 2), ids(1, 3, 2, value=8100), "acoustic ids 8100 to 8100.*allowed: 0 to 8099"),
        (ids(1, 2), ids(1, 3, 3), "2 semantic and 3 acoustic frames"),
        (ids(1, 3), ids(1, 3, 2), "3 semantic and 2 acoustic frames"),
        (ids(1, 2).float(), ids(1, 3, 2), "semantic ids torch.float32"),
        (ids(2), ids(1, 3, 2), "allowed: torch.int64 of 2 dimensions"),
        (torch.tensor(0), ids(1, 3, 2), "allowed: torch.int64 of 2 dimensions"),
        (ids(1, 2), ids(1, 4, 2), "4 acoustic codebooks; the codec has 3"),
        (None, ids(1, 3, 2), "no semantic ids and 3 .* made for semantic ids and 3 acoustic codebooks of 1 stream"),
        (ids(1, 2), None, "semantic ids and 0 acoustic"),
        (ids(1, 2), ids(1, 2, 2), "semantic ids and 2 acoustic"),
        (ids(2, 2), ids(2, 3, 2), r"of 2 stream\(s\)"),
        (ids(2, 2), ids(1, 3, 2), r"num_frames torch.int64 \[2\]"),
    ],
)
def test_tokens_that_cannot_be_are_refused_and_harm_nothing(
    codec: LongCatCodec, semantic: torch.Tensor | None, acoustic: torch.Tensor | None, message: str
) -> None:
    stream, undisturbed = codec.stream_decoder(24000), codec.stream_decoder(24000)
    good = ids(1, 4, value=7), ids(1, 3, 4, value=7)
    assert torch.equal(stream.push(*good), undisturbed.push(*good))
    with pytest.raises(ValueError, match=message):
        stream.push(semantic, acoustic)
    assert torch.equal(stream.finish(), undisturbed.finish())


def test_streams_that_cannot_be_are_refused(codec: LongCatCodec) -> None:
    with pytest.raises(ValueError, match="no decoder for 44100 Hz"):
        codec.stream_decoder(44100)
    with pytest.raises(ValueError, match="num_acoustic_codebooks=4"):
        codec.stream_decoder(24000, num_acoustic_codebooks=4)
    with pytest.raises(ValueError, match="neither"):
        codec.stream_decoder(24000, semantic=False, num_acoustic_codebooks=0)
    with pytest.raises(ValueError, match="num_streams=0"):
        codec.stream_decoder(24000, num_streams=0)


def test_a_stream_that_failed_is_not_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = load_codec(str(GOLDEN))
    assert isinstance(codec, LongCatCodec)
    decoder, encoder = codec.stream_decoder(24000), codec.stream_encoder()

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patched:
        patched.setattr(decoder, "_stage", full)
        patched.setattr(encoder, "_acoustic", full)
        with pytest.raises(torch.OutOfMemoryError):
            decoder.push(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 3, 2, dtype=torch.int64))
        with pytest.raises(torch.OutOfMemoryError):
            encoder.push(torch.zeros(1, 16000))
    for again in (decoder.finish, encoder.finish):
        with pytest.raises(CodecError, match="whose state is lost; make another"):
            again()
