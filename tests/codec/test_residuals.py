"""What the acoustic codebooks leave of a clip: compared with a plain computation, alone, in batches and in segments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from codec.arithmetic import arithmetic
from codec.base import CodecError, ResidualCodec, Tokens
from codec.calibrated import CalibratedCodec, parse_options
from codec.longcat.model import LongCatCodec
from codec.registry import codec_info, load_codec
from tests.codec.golden import CLIPS, GOLDEN, Expected

CALIBRATED = CalibratedCodec(parse_options("calibrated:"))


def plain_energies(latents: NDArray[np.float64], ids: NDArray[np.int64]) -> list[float]:
    """Of latents [F, latent_dim] and ids [K, F], in float64, straight from the checkpoint's tensors."""
    tensors = torch.load(GOLDEN / "LongCatAudioCodec_encoder.pt", weights_only=True)
    energies, residual = [float((latents**2).sum())], latents
    for index, own in enumerate(ids):
        halves = []
        for half, entries in (("a", own // 90), ("b", own % 90)):
            name = f"acoustic_quantizer.quantizers.{index}"
            codebook = tensors[f"{name}.codebook_{half}.weight"].double().numpy()
            v, g, bias = (
                tensors[f"{name}.out_proj_{half}.{part}"].double().numpy() for part in ("weight_v", "weight_g", "bias")
            )
            weight = (g * v / np.sqrt((v**2).sum((1, 2), keepdims=True)))[:, :, 0]
            halves.append(codebook[entries] @ weight.T + bias)
        residual = residual - np.concatenate(halves, axis=1)
        energies.append(float((residual**2).sum()))
    return energies


def batch_of(expected: Expected, clips: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    waveforms = [expected[f"{clip}/wav16k"] for clip in clips]
    return torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True), torch.tensor([len(w) for w in waveforms])


@pytest.mark.parametrize("clip", CLIPS)
def test_energies_are_those_of_latents_less_codebook_values(codec: LongCatCodec, expected: Expected, clip: str) -> None:
    waveforms, lengths = batch_of(expected, (clip,))
    _, energies = codec.encode_with_residuals(waveforms, lengths)
    latents = codec.acoustic_latents(waveforms, lengths)[0].double().numpy()
    wanted = plain_energies(latents, expected[f"{clip}/acoustic"].numpy())
    assert energies.dtype == torch.float64
    assert energies[0].tolist() == pytest.approx(wanted, rel=1e-5)


def padded_codec() -> LongCatCodec:
    """The golden codec, as it computes on a device without strips: in padded, masked batches."""
    loaded = load_codec(str(GOLDEN))
    assert isinstance(loaded, LongCatCodec)
    loaded._strips = None
    return loaded


@pytest.mark.parametrize("is_padded", [False, True], ids=["end to end", "padded"])
def test_padding_counts_nothing(codec: LongCatCodec, expected: Expected, is_padded: bool) -> None:
    one = padded_codec() if is_padded else codec
    waveforms, lengths = batch_of(expected, CLIPS)
    assert not (lengths == lengths.max()).all()
    _, together = one.encode_with_residuals(waveforms, lengths)
    for row, clip in enumerate(CLIPS):
        _, alone = one.encode_with_residuals(*batch_of(expected, (clip,)))
        assert together[row].tolist() == pytest.approx(alone[0].tolist(), rel=1e-5)


def test_equal_batches_give_equal_bits(codec: LongCatCodec, expected: Expected) -> None:
    waveforms, lengths = batch_of(expected, CLIPS)
    first, again = (codec.encode_with_residuals(waveforms, lengths)[1] for _ in range(2))
    assert torch.equal(first, again)


def assert_equal_ids(found: torch.Tensor | None, wanted: torch.Tensor | None) -> None:
    assert (found is None) == (wanted is None)
    assert found is None or wanted is None or torch.equal(found, wanted)


@pytest.mark.parametrize("semantic", [True, False])
def test_tokens_are_those_of_all_codebooks_and_of_which_fewer_are_the_first(
    codec: LongCatCodec, expected: Expected, semantic: bool
) -> None:
    waveforms, lengths = batch_of(expected, CLIPS[:4])
    for one in (codec, CALIBRATED):
        tokens, _ = one.encode_with_residuals(waveforms, lengths, semantic=semantic)
        assert tokens.acoustic is not None
        for num_codebooks in (1, 2, 3):
            fixed: Tokens = one.encode(waveforms, lengths, semantic=semantic, num_acoustic_codebooks=num_codebooks)
            assert_equal_ids(fixed.semantic, tokens.semantic)
            assert_equal_ids(fixed.acoustic, tokens.acoustic[:, :num_codebooks])


def test_codebooks_that_fit_leave_less_and_less(expected: Expected) -> None:
    fitted = padded_codec()
    quantizer = fitted.encoder.acoustic_quantizer
    waveforms, lengths = batch_of(expected, ("16k_mono",))
    with torch.no_grad(), arithmetic(tf32=False):
        residual = fitted.acoustic_latents(waveforms, lengths)
        for one in quantizer._first(3):
            ids = one.nearest(residual)[0]
            for half, (entries, out) in enumerate(
                ((one.codebook_a(ids // 90), one.out_proj_a), (one.codebook_b(ids % 90), one.out_proj_b))
            ):
                regressors = torch.cat([entries, torch.ones(len(ids), 1)], dim=1)
                found = torch.linalg.lstsq(regressors, residual[0, :, half * 16 : half * 16 + 16]).solution
                out.weight.copy_(found[:-1].T)
                out.bias.copy_(found[-1])
            residual = residual - one.value(ids[None])
    energies = fitted.encode_with_residuals(waveforms, lengths)[1][0].tolist()
    assert energies == sorted(energies, reverse=True)
    assert energies[3] == pytest.approx(float(residual.double().square().sum()), rel=1e-5)


def samples(*sizes: int) -> torch.Tensor:
    return torch.tensor([sizes], dtype=torch.float32) / 32767


def test_the_calibrated_codec_takes_three_bits_a_codebook() -> None:
    waveform = samples(4096 + 512 + 64 + 5, -(512 + 7), 0, 3)
    _, energies = CALIBRATED.encode_with_residuals(waveform, torch.tensor([4]))
    assert energies.tolist() == [[4677**2 + 519**2 + 9, 581**2 + 519**2 + 9, 69**2 + 7**2 + 9, 5**2 + 7**2 + 9]]
    beyond = CalibratedCodec(parse_options("calibrated:codebooks=7"))
    assert beyond.encode_with_residuals(waveform, torch.tensor([4]))[1][0, 5:].tolist() == [0, 0, 0]


def test_the_calibrated_codec_s_energies_are_exact_and_add_up() -> None:
    generator = torch.Generator().manual_seed(3)
    waveforms = torch.rand(3, 9600, generator=generator) - 0.5
    lengths = torch.tensor([9600, 5000, 1])
    _, together = CALIBRATED.encode_with_residuals(waveforms, lengths)
    for row, length in enumerate(lengths.tolist()):
        parts = [waveforms[row : row + 1, start : min(start + 960, length)] for start in range(0, length, 960)]
        found = [CALIBRATED.encode_with_residuals(part, torch.tensor([part.shape[1]]))[1][0] for part in parts]
        assert torch.equal(torch.stack(found).sum(0), together[row])


def test_silence_has_no_energy_in_the_calibrated_codec() -> None:
    assert not CALIBRATED.encode_with_residuals(torch.zeros(1, 960), torch.tensor([960]))[1].any()


@pytest.mark.parametrize("uri", ["calibrated:", "calibrated:codebooks=5", str(GOLDEN)])
def test_who_tells_residuals_says_so(uri: str) -> None:
    assert codec_info(uri).tells_residuals
    assert isinstance(load_codec(uri), ResidualCodec)


def test_a_codec_that_looks_at_no_sample_says_that_it_cannot_tell() -> None:
    assert not codec_info("calibrated:ids=zero").tells_residuals
    with pytest.raises(CodecError, match="looks at no sample"):
        CalibratedCodec(parse_options("calibrated:ids=zero")).encode_with_residuals(
            torch.zeros(1, 960), torch.tensor([960])
        )
