"""Encoding a stream: acoustic ids of the whole, semantic ids of a window, however the audio is cut."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from codec.base import CodecError
from codec.framing import num_frames
from codec.longcat.acoustic import AcousticEncoder
from codec.longcat.checkpoint import open_checkpoint
from codec.longcat.config import PUBLISHED
from codec.longcat.model import LongCatCodec
from codec.longcat.reach import reach_of
from codec.longcat.stream_semantic import SemanticWindow
from codec.sources import LocalFolder
from tests.codec.golden import CLIPS, GOLDEN, Expected
from tests.codec.streams import encoded, state_bytes

pytestmark = pytest.mark.usefixtures("one_thread")

FRAME_SIZE = 960
LOOK_AHEAD = 7168
COVERING = {"context_s": 10.0, "look_ahead_s": 10.0}
"""A window that holds every golden clip whole."""


@pytest.mark.parametrize("clip", CLIPS)
def test_tokens_are_the_reference_s(codec: LongCatCodec, expected: Expected, clip: str) -> None:
    """The semantic ones too, where the window covers the clip."""
    tokens = encoded(codec.stream_encoder(**COVERING), expected[f"{clip}/wav16k"][None], [960])
    assert tokens.semantic is not None
    assert tokens.acoustic is not None
    assert torch.equal(tokens.semantic[0], expected[f"{clip}/semantic"])
    assert torch.equal(tokens.acoustic[0], expected[f"{clip}/acoustic"])


# The same draws always: of endless other audio some id would lie so close between two entries that last bits decide.
@settings(deadline=None, max_examples=12, derandomize=True)
@given(
    sizes=st.lists(st.one_of(st.integers(0, 40), st.integers(0, 5000)), min_size=1, max_size=8).filter(
        lambda sizes: sum(sizes) >= 20 * len(sizes)
    ),
    num_samples=st.integers(1, 20000),
    hop_frames=st.integers(1, 3),
)
def test_cuts_change_no_token(
    codec: LongCatCodec, expected: Expected, sizes: list[int], num_samples: int, hop_frames: int
) -> None:
    waveform = expected["22k_mono/wav16k"][None, :num_samples]
    window = {"context_s": 0.3, "look_ahead_s": 0.12, "hop_frames": hop_frames}
    at_once, cut = (encoded(codec.stream_encoder(**window), waveform, by) for by in ([num_samples], sizes))
    assert at_once.semantic is not None
    assert at_once.acoustic is not None
    assert cut.semantic is not None
    assert cut.acoustic is not None
    assert torch.equal(at_once.semantic, cut.semantic)
    assert torch.equal(at_once.acoustic, cut.acoustic)
    alone = codec.encode(waveform, torch.tensor([num_samples]))
    assert alone.acoustic is not None
    assert torch.equal(cut.acoustic, alone.acoustic)


@pytest.mark.parametrize("sizes", [[1, 400, 700], [3000], [959, 2]])
def test_cuts_change_no_bit_of_what_is_quantized(codec: LongCatCodec, expected: Expected, sizes: list[int]) -> None:
    waveform = expected["16k_mono/wav16k"][None, :16000]
    seen: list[torch.Tensor] = []
    looked_up = codec.encoder.semantic_tokenizer.kmeans, codec.encoder.acoustic_quantizer.quantizers[0].in_proj_a
    hooks = [part.register_forward_pre_hook(lambda _, given: seen.extend(given)) for part in looked_up]
    try:
        joined = []
        for by in (sizes, [16000]):
            seen.clear()
            encoded(codec.stream_encoder(context_s=0.3), waveform, by)
            joined.append([torch.cat([x for x in seen if x.shape[-1] == width], dim=1) for width in (48, 32)])
    finally:
        for hook in hooks:
            hook.remove()
    for cut, at_once in zip(*joined, strict=True):
        assert cut.shape[1] == 17
        assert torch.equal(cut, at_once)


@pytest.mark.parametrize(
    ("asked", "look_ahead"),
    [
        ({}, LOOK_AHEAD),
        ({"semantic": False}, LOOK_AHEAD),
        ({"look_ahead_s": 0.0}, LOOK_AHEAD),
        ({"look_ahead_s": 0.6}, 10 * 960 - 560),
        ({"num_acoustic_codebooks": 0}, 8 * 960 - 560),
        ({"num_acoustic_codebooks": 0, "look_ahead_s": 0.0}, -560),
        ({"num_acoustic_codebooks": 0, "look_ahead_s": 0.12, "hop_frames": 3}, 4 * 960 - 560),
    ],
)
def test_a_frame_comes_as_soon_as_its_look_ahead_has_come(
    codec: LongCatCodec, expected: Expected, asked: dict[str, float], look_ahead: int
) -> None:
    stream = codec.stream_encoder(context_s=0.3, **asked)  # type: ignore[arg-type]
    assert stream.look_ahead == look_ahead
    waveform = expected["16k_mono/wav16k"][None]
    hop = int(asked.get("hop_frames", 1))
    # What counts is the look-ahead of a hop's first frame.
    due = [(frame + 1) * FRAME_SIZE + look_ahead for frame in range(0, 12, hop)]
    num_pushed = num_out = 0
    for samples in due:
        num_out += int(stream.push(waveform[:, num_pushed : samples - 1]).num_frames)
        before = num_out
        num_out += int(stream.push(waveform[:, samples - 1 : samples]).num_frames)
        num_pushed = samples
        assert num_out == before + hop
    assert num_out == len(due) * hop
    num_out += int(stream.push(waveform[:, num_pushed:]).num_frames)
    assert num_out + int(stream.finish().num_frames) == num_frames(waveform.shape[1], FRAME_SIZE)


def test_the_acoustic_look_ahead_is_the_least(codec: LongCatCodec) -> None:
    """A frame hears the last sample of its look-ahead, and none behind it; so it does in the past."""
    encoder = copy.deepcopy(codec.encoder.encoder).double()
    reach, frame = reach_of(encoder), 9
    assert reach.look_ahead == LOOK_AHEAD
    waveform = 0.3 * torch.randn(1, 20 * FRAME_SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    latents = encoder(waveform.requires_grad_(), None)
    (heard,) = torch.autograd.grad(latents[0, frame].square().sum(), waveform)
    samples = heard[0].nonzero().flatten()
    assert samples.max() == (frame + 1) * FRAME_SIZE - 1 + LOOK_AHEAD
    assert samples.min() == frame * FRAME_SIZE - reach.before


def test_the_published_sizes_look_as_far_ahead() -> None:
    with torch.device("meta"):
        assert reach_of(AcousticEncoder(PUBLISHED.acoustic)).look_ahead == LOOK_AHEAD


@torch.no_grad()
def test_acoustic_ids_of_a_stream_longer_than_any_clip(codec: LongCatCodec, expected: Expected) -> None:
    waveform = torch.cat([expected[f"{clip}/wav16k"] for clip in CLIPS] * 2)[None]
    assert waveform.shape[1] > codec.info.segment_s_max * codec.info.sample_rate_hz
    tokens = encoded(codec.stream_encoder(semantic=False), waveform, [16000])
    missing = -waveform.shape[1] % FRAME_SIZE
    latents = codec.encoder.encoder(functional.pad(waveform, (0, missing)), None)
    assert tokens.semantic is None
    assert tokens.acoustic is not None
    assert torch.equal(tokens.acoustic, codec.encoder.acoustic_quantizer.nearest(latents, 3))


@torch.no_grad()
@pytest.mark.parametrize(
    ("context_frames", "look_ahead_frames", "hop_frames"),
    [(0, 0, 1), (5, 0, 1), (0, 3, 2), (7, 2, 1), (9, 4, 5), (50, 3, 1)],
)
def test_semantic_ids_are_those_of_the_window(
    codec: LongCatCodec, expected: Expected, context_frames: int, look_ahead_frames: int, hop_frames: int
) -> None:
    """Frame by frame, of the encoder's first part over the whole clip: the clip's padding is at its start alone."""
    waveform = expected["16k_mono/wav16k"][None]
    padded = functional.pad(waveform, (0, -waveform.shape[1] % FRAME_SIZE))
    model, log_mel = codec.encoder.semantic_tokenizer.model, codec._log_mel
    frames = model.subsampling(log_mel(padded))
    num = frames.shape[1]
    features = []
    for frame in range(num):
        hop = frame - frame % hop_frames
        begin = max(hop - context_frames, 0)
        seen = model.in_context(frames[:, begin : min(hop + hop_frames, num) + look_ahead_frames])
        features.append(seen[:, frame - begin])
    true = codec.encoder.semantic_tokenizer.kmeans(torch.stack(features, dim=1))
    window = {"context_s": context_frames * 0.06, "look_ahead_s": look_ahead_frames * 0.06, "hop_frames": hop_frames}
    tokens = encoded(codec.stream_encoder(num_acoustic_codebooks=0, **window), waveform, [2000])  # type: ignore[arg-type]
    assert tokens.acoustic is None
    assert tokens.semantic is not None
    assert torch.equal(tokens.semantic, true)


def test_more_look_ahead_brings_the_ids_of_the_whole(codec: LongCatCodec, expected: Expected) -> None:
    """The golden weights are random, so how near is of no meaning; that all is the end of it is."""
    waveform, whole = expected["16k_mono/wav16k"][None], expected["16k_mono/semantic"]
    agreement = []
    for look_ahead_s in (0.0, 2.9):
        stream = codec.stream_encoder(num_acoustic_codebooks=0, context_s=3.0, look_ahead_s=look_ahead_s)
        semantic = encoded(stream, waveform, [960]).semantic
        assert semantic is not None
        agreement.append(float((semantic[0] == whole).float().mean()))
    assert agreement[0] < agreement[1] == 1.0


def test_streams_in_step_are_each_as_if_alone(codec: LongCatCodec, expected: Expected) -> None:
    waveform = expected["16k_mono/wav16k"]
    both = torch.stack((waveform[:15000], waveform[20000:35000]))
    together = encoded(codec.stream_encoder(num_streams=2), both, [700])
    assert together.semantic is not None
    assert together.acoustic is not None
    for row in range(2):
        alone = encoded(codec.stream_encoder(), both[row, None], [15000])
        assert alone.semantic is not None
        assert alone.acoustic is not None
        assert torch.equal(together.semantic[row], alone.semantic[0])
        assert torch.equal(together.acoustic[row], alone.acoustic[0])


def test_what_is_kept_does_not_grow(codec: LongCatCodec) -> None:
    stream = codec.stream_encoder(context_s=0.6)
    kept = []
    for _ in range(4):
        for _ in range(24):
            stream.push(torch.zeros(1, FRAME_SIZE))
        kept.append(state_bytes(stream))
    assert 0 < kept[0] == kept[1] == kept[2] == kept[3] < 1 << 20
    # However much is pushed at once.
    stream.push(torch.zeros(1, 40 * FRAME_SIZE))
    assert state_bytes(stream) == kept[0]


def test_what_is_not_asked_for_is_not_computed(codec: LongCatCodec) -> None:
    codec = LongCatCodec(codec.checkpoint)

    def refuse(*_: object) -> None:
        raise AssertionError("this part was not asked for")

    for part in codec.encoder.encoder.modules():
        part.register_forward_pre_hook(refuse)
    semantic_alone = codec.stream_encoder(num_acoustic_codebooks=0)
    assert semantic_alone.push(torch.zeros(1, 12 * FRAME_SIZE)).acoustic is None


def test_other_precisions_stream_too(expected: Expected) -> None:
    try:
        codec = LongCatCodec(open_checkpoint(LocalFolder(GOLDEN)), precision="bfloat16")
    except CodecError as refused:  # on a processor whose bfloat16 kernels are wrong
        assert "kernels compute wrongly" in str(refused)  # noqa: PT017
        return
    waveform = expected["16k_mono/wav16k"][None]
    streamed = encoded(codec.stream_encoder(**COVERING), waveform, [960])
    offline = codec.encode(waveform, torch.tensor([waveform.shape[1]]))
    for found, true in ((streamed.semantic, offline.semantic), (streamed.acoustic, offline.acoustic)):
        assert found is not None
        assert true is not None
        assert (found == true).float().mean() > 0.8


def test_a_stream_of_nothing_is_empty(codec: LongCatCodec) -> None:
    stream = codec.stream_encoder()
    for tokens in (stream.push(torch.zeros(1, 0)), stream.finish()):
        assert tokens.semantic is not None
        assert tokens.acoustic is not None
        assert tokens.semantic.shape == (1, 0)
        assert tokens.acoustic.shape == (1, 3, 0)
        assert tokens.num_frames.tolist() == [0]
    with pytest.raises(CodecError, match="was finished"):
        stream.push(torch.zeros(1, 960))
    with pytest.raises(CodecError, match="was finished"):
        stream.finish()


@pytest.mark.parametrize(
    ("waveforms", "message"),
    [
        (torch.zeros(960), r"torch.float32 \[960\]; allowed: torch.float32 \[1, T\]"),
        (torch.zeros(2, 960), r"\[2, 960\]"),
        (torch.zeros(1, 960, dtype=torch.float64), "torch.float64"),
        (torch.full((1, 960), float("nan")), "NaN or infinity"),
        (torch.full((1, 960), float("inf")), "NaN or infinity"),
    ],
)
def test_audio_that_cannot_be_is_refused_and_harms_nothing(
    codec: LongCatCodec, expected: Expected, waveforms: torch.Tensor, message: str
) -> None:
    stream = codec.stream_encoder(semantic=False)
    clip = expected["16k_short_350ms/wav16k"][None]
    stream.push(clip[:, :1000])
    with pytest.raises(ValueError, match=message):
        stream.push(waveforms)
    stream.push(clip[:, 1000:])
    acoustic = stream.finish().acoustic
    assert acoustic is not None
    assert torch.equal(acoustic[0], expected["16k_short_350ms/acoustic"])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"context_s": -1.0}, "context_s=-1.0.*seconds of 0 and more"),
        ({"look_ahead_s": float("nan")}, "look_ahead_s=nan"),
        ({"hop_frames": 0}, "hop_frames=0.*1 frame and more"),
        (
            {"context_s": 29.0, "look_ahead_s": 1.0},
            "a context of 484, a look-ahead of 17 and a hop of 1 .* 500 together",
        ),
        ({"num_acoustic_codebooks": 4}, "num_acoustic_codebooks=4"),
        ({"num_acoustic_codebooks": 0, "semantic": False}, "neither"),
        ({"num_streams": 0}, "num_streams=0"),
    ],
)
def test_streams_that_cannot_be_are_refused(codec: LongCatCodec, asked: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codec.stream_encoder(**asked)  # type: ignore[arg-type]


def test_seconds_become_whole_frames(codec: LongCatCodec) -> None:
    assert SemanticWindow.of(codec.info, context_s=0.48, look_ahead_s=0.061) == SemanticWindow(8, 2, 1)
