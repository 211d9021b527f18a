"""`voxmill qa`: some of a job's rows, drawn by a seed, decoded and scored against what they were made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from jobs.decode_prepare import Decoding, open_decoding
from jobs.decode_setup import load_synthesizer
from jobs.executor import InlineExecutor
from jobs.qa_codebooks import CodebookUse
from jobs.qa_draw import DrawnRow, beginning, draw
from jobs.qa_scores import Scores, at_scored_rate, check_installed, score, unit
from jobs.qa_sources import Source, read_sources
from pipeline.audio_config import load_decode_config
from pipeline.config import Device, JobConfig, load_config
from pipeline.decoder import DecoderPool
from pipeline.encoder import Progress
from pipeline.errors import ConfigError
from pipeline.layout import output_place
from pipeline.settings import RetryConfig, StorageConfig
from pipeline.storage import Stores, store_options
from pipeline.token_batcher import token_windows
from pipeline.token_reader import TokenReader
from pipeline.types import AudioRow, TokenRow

_MEASURES = ("stoi", "pesq", "log_mel_db")
CLIPS_MAX = 200
"""Of one page, which holds some megabytes of each."""
SCORED_S_MAX = 30.0
"""Of a clip, its first segments up to so many seconds are decoded, scored and played."""


@dataclass(frozen=True, slots=True)
class ComparedClip:
    """A drawn row: its source [T] at the codec's rate, or why there is none; what was decoded, and scores, by rate."""

    drawn: DrawnRow
    source: Source
    decoded: Mapping[int, AudioRow]
    scores: Mapping[int, Scores]

    @property
    def key(self) -> str:
        """The row's."""
        return self.drawn.row.key

    @property
    def worst_first(self) -> tuple[bool, float]:
        """Clips sorted by it begin with those not compared, then those without a score, then the least intelligible."""
        stois = [one.stoi for one in self.scores.values() if one.stoi is not None]
        return bool(self.scores), min(stois, default=-2.0)


@dataclass
class QaReport:
    """What was drawn and found."""

    tokens: str
    codec: str
    fingerprint: str
    seed: int
    source_rate_hz: int
    decoders: Mapping[int, str]
    use: CodebookUse
    clips: Sequence[ComparedClip]
    page: str = ""

    @property
    def missing(self) -> list[str]:
        """Drawn rows whose source could not be had, each with why."""
        return [f"{clip.key}: {clip.source}" for clip in self.clips if isinstance(clip.source, str)]

    @property
    def exit_code(self) -> int:
        """0 when every drawn row was compared with its source, else 1."""
        return int(bool(self.missing))

    def values(self, rate_hz: int, measure: str) -> list[float]:
        """A measure of all clips that have it."""
        found = [getattr(clip.scores[rate_hz], measure) for clip in self.clips if rate_hz in clip.scores]
        return [value for value in found if value is not None]

    def lines(self) -> list[str]:
        """For people."""
        num_compared = len(self.clips) - len(self.missing)
        lines = [f"{num_compared} of {len(self.clips)} drawn rows compared with their source (seed {self.seed})"]
        for rate_hz in self.decoders:
            medians = [
                f"{measure} {median(values):.3g} ({len(values)} clips)"
                for measure in _MEASURES
                if (values := self.values(rate_hz, measure))
            ]
            lines.append(f"decoded at {rate_hz} Hz, medians: {', '.join(medians) or 'no scores'}")
        lines += [
            f"{one.name}: perplexity {one.perplexity:.1f} of {one.cardinality}, {one.num_dead} entries not seen in "
            f"{self.use.num_frames} frames, {one.repetition:.1%} repeat the one before"
            for one in self.use.codebooks
        ]
        lines += [f"not compared: {line}" for line in self.missing]
        return [*lines, f"page: {self.page}"] if self.page else lines

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "tokens": self.tokens,
            "codec": self.codec,
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "decoders": {str(rate_hz): why for rate_hz, why in self.decoders.items()},
            "rows_counted": self.use.num_rows,
            "frames_counted": self.use.num_frames,
            "codebooks": [
                {
                    "name": one.name,
                    "cardinality": one.cardinality,
                    "used": one.num_used,
                    "dead": one.num_dead,
                    "perplexity": one.perplexity,
                    "repetition": one.repetition,
                    "longest_run": one.longest_run,
                    "longest_run_key": one.longest_run_key,
                }
                for one in self.use.codebooks
            ],
            "clips": [
                {
                    "key": clip.key,
                    "shard_id": clip.drawn.record.shard_id,
                    "not_compared": clip.source if isinstance(clip.source, str) else None,
                    "scores": {
                        str(rate_hz): {measure: getattr(scores, measure) for measure in _MEASURES}
                        for rate_hz, scores in clip.scores.items()
                    },
                }
                for clip in self.clips
            ],
            "page": self.page,
        }


def qa(
    tokens: str,
    *,
    num_clips: int,
    seed: int,
    storage: StorageConfig,
    retry: RetryConfig,
    codec: str = "",
    device: Device | Literal["auto"] = "auto",
) -> QaReport:
    """Draw, decode at every rate the codec has, fetch the sources, and score.

    Raises `RefusedError` when there is no job of tokens or a package is missing, `codec.base.CodecError` for a codec
    that cannot be had, `DataError` for a damaged token shard.
    """
    check_installed()
    if not 1 <= num_clips <= CLIPS_MAX or seed < 0:
        raise ConfigError(
            f"found {num_clips} clips and seed {seed}; allowed: 1 to {CLIPS_MAX} clips, all on one page, a seed from 0"
        )
    tokens = output_place(tokens).base
    store = Stores(storage, retry)(tokens)
    source = TokenReader.open(tokens, store=store)
    use = CodebookUse.of(source.rules)
    drawn = list(draw(source, num_clips, seed, use))
    if not drawn:
        raise ConfigError(f"no row is committed in {tokens}; run the job of the tokens first")
    rate_hz = source.rules.sample_rate_hz
    length_max = int(SCORED_S_MAX * rate_hz)
    rows = [beginning(one.row, length_max) for one in drawn]
    settings = {"storage": storage, "retry": retry}
    config = load_config(source.job.config).model_copy(update=settings)
    sources = _sources(drawn, rows, config, rate_hz)
    decodings = _decodings(tokens, codec, device, source, settings)
    decoded = {to_hz: _decoded(decoding, rows) for to_hz, decoding in decodings.items()}
    clips = [
        ComparedClip(one, found, {to_hz: by_row[index] for to_hz, by_row in decoded.items()}, {})
        for index, (one, found) in enumerate(zip(drawn, sources, strict=True))
    ]
    scored = [clip if isinstance(clip.source, str) else _scored(clip, clip.source, rate_hz) for clip in clips]
    return QaReport(
        tokens=tokens,
        codec=source.job.codec.name,
        fingerprint=source.job.fingerprint,
        seed=seed,
        source_rate_hz=rate_hz,
        decoders={to_hz: decoding.why for to_hz, decoding in decodings.items()},
        use=use,
        clips=sorted(scored, key=lambda clip: clip.worst_first),
    )


def _sources(drawn: Sequence[DrawnRow], rows: Sequence[TokenRow], config: JobConfig, rate_hz: int) -> list[Source]:
    """Of each drawn row; shard by shard."""
    found: list[Source] = []
    with DecoderPool(config.decoding, rate_hz) as decoder:
        pairs = list(zip(drawn, rows, strict=True))
        for _, of_shard in groupby(pairs, key=lambda pair: pair[0].record.shard_id):
            ours = list(of_shard)
            length_max = max(row.num_audio_samples for _, row in ours)
            by_key = read_sources([one for one, _ in ours], config, decoder, length_max)
            for _, row in ours:
                source = by_key[row.key]
                found.append(source if isinstance(source, str) else source[: row.num_audio_samples])
    return found


def _decodings(
    tokens: str,
    codec: str,
    device: Device | Literal["auto"],
    source: TokenReader,
    settings: Mapping[str, Any],
) -> dict[int, Decoding]:
    """One for each rate that the codec has a decoder for."""
    from codec.registry import codec_info

    name = codec or str(source.job.config.get("codec", ""))
    options = store_options(name, settings["storage"]) if name.startswith("s3://") else {}
    rates = codec_info(name, storage_options=options).decoder_sample_rates_hz
    if not rates:
        raise ConfigError(f"codec {name} has no decoder: there is nothing to hear; see `voxmill verify` for the rest")
    picked = InlineExecutor().pick_device(device)
    stores = Stores(settings["storage"], settings["retry"])
    decodings = {}
    for rate_hz in rates:
        named = {"codec": codec} if codec else {}
        values = {"tokens": tokens, "output": f"{tokens}.qa", "sample_rate_hz": rate_hz, **named}
        config = load_decode_config(values).model_copy(update=settings)
        decodings[rate_hz] = open_decoding(config, picked, stores=stores)
    return decodings


def _decoded(decoding: Decoding, rows: Sequence[TokenRow]) -> list[AudioRow]:
    rules, synthesizer, progress = decoding.source.rules, load_synthesizer(decoding.setup), Progress()
    frame_rate_hz = rules.sample_rate_hz / rules.frame_size
    windows = token_windows(rows, decoding.config.batching, frame_rate_hz=frame_rate_hz)
    return [row for window in windows for row in synthesizer.synthesize(window, ticket=0, progress=progress)]


def _scored(clip: ComparedClip, source: NDArray[np.float32], rate_hz: int) -> ComparedClip:
    true = at_scored_rate(source, rate_hz)
    scores = {to_hz: score(true, at_scored_rate(unit(row.pcm), to_hz)) for to_hz, row in clip.decoded.items()}
    return replace(clip, scores=scores)


def write_page(report: QaReport, out: str) -> None:
    """Write the report as one HTML page, and note where."""
    from jobs.qa_page import page

    if "://" in out:
        raise ConfigError(f"found page {out}; it is written to a local file, copy it from there")
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(report), encoding="utf-8")
    report.page = str(path)
