"""What the codec computes when asked for less than all, in other precisions, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from codec.arithmetic import arithmetic
from codec.base import CodecError, Tokens
from codec.longcat.checkpoint import open_checkpoint
from codec.longcat.config import PUBLISHED
from codec.longcat.model import LongCatCodec
from codec.longcat.tokens import choose_decoder
from codec.sources import LocalFolder
from tests.codec.golden import GOLDEN, Expected

CLIP = "16k_short_350ms"


@pytest.fixture
def waveforms(expected: Expected) -> torch.Tensor:
    return expected[f"{CLIP}/wav16k"][None]


@pytest.fixture
def lengths(waveforms: torch.Tensor) -> torch.Tensor:
    return torch.tensor([waveforms.shape[1]])


def golden_codec(precision: str = "float32", device: str = "cpu") -> LongCatCodec:
    return LongCatCodec(open_checkpoint(LocalFolder(GOLDEN)), precision=precision, device=device)


def refuse_to_run(*_: object) -> None:
    raise AssertionError("this part was not asked for")


def test_semantic_alone_runs_no_acoustic_part(
    waveforms: torch.Tensor, lengths: torch.Tensor, expected: Expected
) -> None:
    codec = golden_codec()
    codec.encoder.encoder.register_forward_pre_hook(refuse_to_run)
    tokens = codec.encode(waveforms, lengths, num_acoustic_codebooks=0)
    assert tokens.acoustic is None
    assert tokens.semantic is not None
    assert torch.equal(tokens.semantic[0], expected[f"{CLIP}/semantic"])


@pytest.mark.parametrize("num_codebooks", [1, 2, 3])
def test_fewer_codebooks_run_no_more_than_they_need(
    waveforms: torch.Tensor, lengths: torch.Tensor, expected: Expected, num_codebooks: int
) -> None:
    codec = golden_codec()
    codec.encoder.semantic_tokenizer.register_forward_pre_hook(refuse_to_run)
    codec.encoder.semantic_tokenizer.model.register_forward_pre_hook(refuse_to_run)
    quantizers = list(codec.encoder.acoustic_quantizer.quantizers)
    for part in (part for quantizer in quantizers[num_codebooks:] for part in quantizer.children()):
        part.register_forward_pre_hook(refuse_to_run)
    # The last codebook asked for leaves its residual to nobody.
    quantizers[num_codebooks - 1].get_submodule("out_proj_a").register_forward_pre_hook(refuse_to_run)
    tokens = codec.encode(waveforms, lengths, semantic=False, num_acoustic_codebooks=num_codebooks)
    assert tokens.semantic is None
    assert tokens.acoustic is not None
    assert torch.equal(tokens.acoustic[0], expected[f"{CLIP}/acoustic"][:num_codebooks])


def test_bfloat16_is_near_float32_and_computed_in_bfloat16(codec: LongCatCodec, expected: Expected) -> None:
    try:
        narrow = golden_codec("bfloat16")
    except CodecError as refused:  # on a processor whose bfloat16 kernels are wrong
        assert "kernels compute wrongly" in str(refused)  # noqa: PT017
        return
    waveform = expected["16k_mono/wav16k"]
    batch = waveform[None], torch.tensor([len(waveform)])
    for found, true in (
        (narrow.semantic_features(*batch), codec.semantic_features(*batch)),
        (narrow.acoustic_latents(*batch), codec.acoustic_latents(*batch)),
    ):
        assert found.dtype == torch.float32
        error = (found - true).abs().max() / true.abs().max()
        assert 1e-4 < error < 0.1
    tokens = narrow.encode(*batch)
    assert tokens.semantic is not None
    assert (tokens.semantic[0] == expected["16k_mono/semantic"]).float().mean() > 0.8


def test_a_precision_that_computes_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = functional.linear

    def wrong(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return linear(x, weight, bias) * (1.5 if x.dtype == torch.bfloat16 else 1.0)

    monkeypatch.setattr(functional, "linear", wrong)
    with pytest.raises(CodecError, match=r"bfloat16: the \w+ encoder is \d\.\d+ off float32 on this cpu"):
        golden_codec("bfloat16")


@pytest.mark.parametrize("precision", ["tf32", "float16", "float64"])
def test_a_precision_the_cpu_does_not_offer_is_refused(precision: str) -> None:
    with pytest.raises(ValueError, match=f"{precision}.*allowed there: float32, bfloat16"):
        golden_codec(precision)


def test_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="'tpu'; allowed: cpu, cuda"):
        golden_codec(device="tpu")


def test_the_process_gets_its_arithmetic_back() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with arithmetic(tf32=False):
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


PRODUCTS = {
    torch.ops.aten.mm,
    torch.ops.aten.addmm,
    torch.ops.aten.addmm_,
    torch.ops.aten.bmm,
    torch.ops.aten.convolution,
}


def test_float32_is_full_precision_whatever_the_process_has_set(waveforms: torch.Tensor, lengths: torch.Tensor) -> None:
    codec = golden_codec()
    codec.decoder("16k_4codebooks")  # loaded beforehand: loading computes too, and no tokens
    seen: list[str] = []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func.overloadpacket in PRODUCTS:
                seen.append(torch.get_float32_matmul_precision())
            return func(*args, **(kwargs or {}))

    torch.set_float32_matmul_precision("medium")
    try:
        with Watched():
            tokens = codec.encode(waveforms, lengths)
            num_in_encoding = len(seen)
            codec.decode(tokens, 16000)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert num_in_encoding > 100
    assert len(seen) > num_in_encoding
    assert set(seen) == {"highest"}


@pytest.mark.parametrize(
    ("waveforms_shape", "lengths_list", "message"),
    [
        ((960,), [960], r"\[960\]; allowed: torch.float32 \[B, T\]"),
        ((0, 960), [], "B >= 1"),
        ((1, 960), [960, 960], r"\[2\]; allowed: torch.int64 \[1\]"),
        ((1, 960), [0], r"\[0\] audio samples.*put empty clips aside"),
        ((1, 960), [961], r"\[961\] audio samples in waveforms of 960"),
        ((1, 480001), [480001], r"1 to 480000 \(at most 30 s\)"),
    ],
)
def test_batches_that_cannot_be_are_refused(
    codec: LongCatCodec, waveforms_shape: tuple[int, ...], lengths_list: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        codec.encode(torch.zeros(waveforms_shape), torch.tensor(lengths_list, dtype=torch.int64))


def test_wrong_dtypes_and_requests_are_refused(
    codec: LongCatCodec, waveforms: torch.Tensor, lengths: torch.Tensor
) -> None:
    with pytest.raises(ValueError, match=r"torch\.float64"):
        codec.encode(waveforms.double(), lengths)
    with pytest.raises(ValueError, match=r"torch\.float32.*torch\.int64"):
        codec.encode(waveforms, lengths.float())
    with pytest.raises(ValueError, match="NaN"):
        codec.encode(waveforms.index_fill(1, torch.tensor([7]), float("nan")), lengths)
    with pytest.raises(ValueError, match="num_acoustic_codebooks=4; codec longcat has 0 to 3"):
        codec.encode(waveforms, lengths, num_acoustic_codebooks=4)
    with pytest.raises(ValueError, match="neither"):
        codec.encode(waveforms, lengths, semantic=False, num_acoustic_codebooks=0)


def tokens_of(semantic: torch.Tensor | None, acoustic: torch.Tensor | None, num_frames: int = 2) -> Tokens:
    return Tokens(semantic, acoustic, torch.tensor([num_frames]))


def ids(*shape: int, value: int = 0) -> torch.Tensor:
    return torch.full(shape, value, dtype=torch.int64)


@pytest.mark.parametrize(
    ("sample_rate_hz", "num_codebooks", "decoder"),
    [
        (16000, 0, "16k_4codebooks"),
        (16000, 1, "16k_4codebooks"),
        (16000, 3, "16k_4codebooks"),
        (24000, 0, "24k_4codebooks"),
        (24000, 1, "24k_2codebooks"),
        (24000, 2, "24k_4codebooks"),
        (24000, 3, "24k_4codebooks"),
    ],
)
def test_the_decoder_fits_the_tokens(sample_rate_hz: int, num_codebooks: int, decoder: str) -> None:
    assert choose_decoder(PUBLISHED.decoders, sample_rate_hz, num_codebooks) == decoder


def test_more_codebooks_than_a_rate_decodes_are_refused() -> None:
    small = {"24k_2codebooks": PUBLISHED.decoders["24k_2codebooks"]}
    with pytest.raises(ValueError, match="found 3 acoustic codebooks; the decoders for 24000 Hz take at most 1"):
        choose_decoder(small, 24000, 3)


@pytest.mark.parametrize("sample_rate_hz", [16000, 24000])
def test_either_stream_decodes_alone(codec: LongCatCodec, expected: Expected, sample_rate_hz: int) -> None:
    semantic, acoustic = expected[f"{CLIP}/semantic"][None], expected[f"{CLIP}/acoustic"][None]
    both = codec.decode(tokens_of(semantic, acoustic, 6), sample_rate_hz)
    semantic_alone = codec.decode(tokens_of(semantic, None, 6), sample_rate_hz)
    acoustic_alone = codec.decode(tokens_of(None, acoustic, 6), sample_rate_hz)
    assert semantic_alone.shape == acoustic_alone.shape == both.shape
    assert semantic_alone.abs().max() > 0
    assert not torch.equal(semantic_alone, both)
    assert not torch.equal(acoustic_alone, both)
    # No codebooks at all is the same as no acoustic stream.
    assert torch.equal(codec.decode(tokens_of(semantic, acoustic[:, :0], 6), sample_rate_hz), semantic_alone)


@pytest.mark.parametrize(
    ("tokens", "sample_rate_hz", "message"),
    [
        (tokens_of(ids(1, 2), None), 44100, r"no decoder for 44100 Hz.*\[16000, 24000\]"),
        (tokens_of(None, None), 16000, "neither"),
        (tokens_of(ids(1, 2, value=256), None), 16000, "semantic ids 256 to 256 in codebook 0; allowed: 0 to 255"),
        (tokens_of(ids(1, 2, value=-1), None), 16000, "semantic ids -1"),
        (tokens_of(None, ids(1, 2, 2, value=8100)), 24000, "acoustic ids 8100 to 8100.*allowed: 0 to 8099"),
        (tokens_of(None, ids(1, 4, 2)), 24000, "4 acoustic codebooks; the codec has 3"),
        (tokens_of(ids(1, 2), ids(1, 3, 3)), 16000, "2 semantic and 3 acoustic frames"),
        (tokens_of(ids(2, 2), None), 16000, r"num_frames torch.int64 \[1\]; allowed: torch.int64 \[2\]"),
        (tokens_of(ids(1, 2), None, num_frames=3), 16000, r"num_frames \[3\]; allowed: 1 to 2"),
        (tokens_of(ids(1, 2), None, num_frames=0), 16000, r"num_frames \[0\]"),
        (tokens_of(ids(1, 2).float(), None), 16000, "semantic ids torch.float32"),
        (tokens_of(ids(2), None), 16000, "allowed: torch.int64 of 2 dimensions"),
    ],
)
def test_tokens_that_cannot_be_are_refused(
    codec: LongCatCodec, tokens: Tokens, sample_rate_hz: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        codec.decode(tokens, sample_rate_hz)
