"""The LongCat codec on one device: waveforms to ids and back."""

from __future__ import annotations

import torch

from codec.arithmetic import arithmetic, check_device
from codec.base import CodecInfo, Tokens
from codec.batch import PaddedBatch, check_streams, pad_batch, past_end_mask
from codec.longcat.decoder import LongCatDecoder
from codec.longcat.features import LogMel
from codec.longcat.precision import check_near, narrow, weights_dtype
from codec.longcat.staging import Stager
from codec.longcat.strips import StripEncoder
from codec.longcat.tokens import choose_decoder
from codec.longcat.weights import Weights
from codec.tokens import own_tokens


class LongCatCodec:
    """A `codec.base.Codec`. In float32 a clip's tokens do not depend on what it is batched with.

    On a CPU float32 is computed without padding, clips end to end (`strips.py`); all else in padded batches.
    Other precisions change the two encoders alone: features, codebook searches and decoding stay float32.
    They are first compared with float32 on a probe: kernels that compute something else are refused (`CodecError`).
    `encoder` is the module with the tensors of `checkpoint`'s encoder file, on `device`. One thread at a time may
    compute (see `arithmetic`). With `packed=False` nothing is derived from the weights, which may then change, or be of
    another dtype already (`precision` float32 leaves them as they are).
    """

    def __init__(
        self, checkpoint: Weights, *, device: str = "cpu", precision: str = "float32", packed: bool = True
    ) -> None:
        self.device = check_device(device)
        asked_dtype = weights_dtype(precision, self.device)
        self.checkpoint = checkpoint
        self._info = checkpoint.info()
        self._log_mel = LogMel(
            checkpoint.load_feature_constants(), sample_rate_hz=self._info.sample_rate_hz, device=self.device
        )
        self.encoder = checkpoint.load_encoder().to(self.device)
        self._dtype, self._tf32 = self.encoder.semantic_tokenizer.model.subsampling.affine.weight.dtype, False
        self._decoders: dict[str, LongCatDecoder] = {}
        is_packed = packed and self.device.type == "cpu" and precision == "float32"
        self._strips = StripEncoder(self.encoder.encoder) if is_packed else None
        self._stager = Stager(self.device) if self.device.type == "cuda" else None
        if precision != "float32":
            true = self._probe()
            self._dtype, self._tf32 = asked_dtype, precision == "tf32"
            for part in (self.encoder.encoder, self.encoder.semantic_tokenizer.model):
                narrow(part, self._dtype)
            check_near(self._probe(), true, precision=precision, device=self.device)

    @property
    def info(self) -> CodecInfo:
        """What the codec is."""
        return self._info

    @property
    def computes_padding(self) -> bool:
        """Not where clips stand end to end."""
        return self._strips is None

    def stage(self, waveforms: torch.Tensor) -> torch.Tensor:
        """The batch on a CUDA device, copied beside the kernels that run there; on a CPU it is there already."""
        return waveforms if self._stager is None else self._stager(waveforms)

    @torch.no_grad()
    def encode(
        self,
        waveforms: torch.Tensor,
        lengths: torch.Tensor,
        *,
        semantic: bool = True,
        num_acoustic_codebooks: int | None = None,
    ) -> Tokens:
        """Tokens of a batch of clips, as `codec.base.Codec.encode` says; the ids come back on the CPU.

        F is `ceil(T / frame size)`. What is not asked for is not computed.
        """
        num_codebooks = check_streams(semantic, num_acoustic_codebooks, info=self._info)
        batch = self._pad(waveforms, lengths)
        past_end = past_end_mask(batch.num_frames, batch.num_frames_max)
        semantic_ids = self._semantic_ids(batch).masked_fill(past_end, 0) if semantic else None
        acoustic_ids = None
        if num_codebooks:
            acoustic_ids = self._acoustic_ids(batch, num_codebooks).masked_fill(past_end[:, None], 0)
        return Tokens(semantic=semantic_ids, acoustic=acoustic_ids, num_frames=batch.num_frames)

    @torch.no_grad()
    def decode(self, tokens: Tokens, sample_rate_hz: int) -> torch.Tensor:
        """Waveforms float32 [B, T'] on the CPU, zero past each clip's own frames; each clip as if it were alone.

        The decoder is the one made for exactly so many acoustic codebooks, else the rate's largest; it is loaded
        when first needed. A missing stream counts as zero latents. Raises `ValueError` on a rate without a
        decoder, wrong shapes or ids out of range; `CheckpointError` when the decoder's file is missing or wrong.
        """
        own = own_tokens(tokens, self._info)
        num_codebooks = 0 if own.acoustic is None else own.acoustic.shape[1]
        decoder = self.decoder(choose_decoder(self.checkpoint.config.decoders, sample_rate_hz, num_codebooks))
        semantic, acoustic = (None if ids is None else ids.to(self.device) for ids in (own.semantic, own.acoustic))
        with arithmetic(tf32=False):
            waveforms: torch.Tensor = decoder(semantic, acoustic, own.num_frames.to(self.device))
        return waveforms.cpu()

    @torch.no_grad()
    def semantic_features(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The semantic encoder's output float32 [B, F, width], before it is normalised and quantized."""
        return self._semantic_features(self._pad(waveforms, lengths))

    @torch.no_grad()
    def acoustic_latents(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The acoustic encoder's output float32 [B, F, latent_dim], before it is quantized."""
        return self._acoustic_latents(self._pad(waveforms, lengths))

    def decoder(self, name: str) -> LongCatDecoder:
        """A decoder of the config, loaded at its first use. Raises `CheckpointError` as `Checkpoint.load_decoder`."""
        if name not in self._decoders:
            self._decoders[name] = self.checkpoint.load_decoder(name).to(self.device)
        return self._decoders[name]

    @torch.no_grad()
    def _probe(self) -> dict[str, torch.Tensor]:
        """What both encoders make of a second of noise and a shorter clip."""
        num_samples = self._info.sample_rate_hz
        noise = 0.1 * torch.randn(2, num_samples, generator=torch.Generator().manual_seed(0))
        batch = noise, torch.tensor([num_samples, num_samples * 3 // 5])
        return {"semantic": self.semantic_features(*batch), "acoustic": self.acoustic_latents(*batch)}

    def _pad(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> PaddedBatch:
        return pad_batch(waveforms, lengths, info=self._info, device=self.device)

    def _semantic_features(self, batch: PaddedBatch) -> torch.Tensor:
        model = self.encoder.semantic_tokenizer.model
        with arithmetic(tf32=False):
            log_mel = self._log_mel(batch.waveforms)
            if self._strips is not None:
                return _unpacked(model.packed(log_mel, batch.num_frames.tolist()), batch)
        past_end = None
        if not batch.is_full:
            past_end = past_end_mask(batch.num_frames.to(self.device), batch.num_frames_max)
        with arithmetic(tf32=self._tf32):
            features: torch.Tensor = model(log_mel.to(self._dtype), past_end)
        return features.float()

    def _acoustic_latents(self, batch: PaddedBatch) -> torch.Tensor:
        if self._strips is not None:
            with arithmetic(tf32=False):
                return _unpacked(self._strips(batch.waveforms, batch.num_frames.tolist()), batch)
        lengths = None if batch.is_full else batch.num_frames.to(self.device) * self._info.frame_size
        with arithmetic(tf32=self._tf32):
            latents: torch.Tensor = self.encoder.encoder(batch.waveforms.to(self._dtype), lengths)
        return latents.float()

    def _semantic_ids(self, batch: PaddedBatch) -> torch.Tensor:
        features = self._semantic_features(batch)
        with arithmetic(tf32=False):
            ids: torch.Tensor = self.encoder.semantic_tokenizer.kmeans(features)
        return ids.cpu()

    def _acoustic_ids(self, batch: PaddedBatch, num_codebooks: int) -> torch.Tensor:
        latents = self._acoustic_latents(batch)
        with arithmetic(tf32=False):
            return self.encoder.acoustic_quantizer.nearest(latents, num_codebooks).cpu()


def _unpacked(packed: torch.Tensor, batch: PaddedBatch) -> torch.Tensor:
    """[sum of num_frames, D] as [B, F, D], zero past each clip's end."""
    result = packed.new_zeros(len(batch.waveforms), batch.num_frames_max, packed.shape[1])
    result[~past_end_mask(batch.num_frames, batch.num_frames_max)] = packed
    return result
