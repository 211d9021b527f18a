"""Looking at a job's tokens: a fair draw, true scores, true counts, and a page that a browser shows and plays."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

from jobs import cli
from jobs.qa import qa, write_page
from jobs.qa_codebooks import Codebook, CodebookUse
from jobs.qa_draw import beginning, draw
from jobs.qa_scores import RATE_HZ, log_mel_distance_db, score
from jobs.run import run_job
from pipeline.config import load_config
from pipeline.resample import resample
from pipeline.settings import RetryConfig, StorageConfig
from pipeline.token_reader import TokenReader
from pipeline.types import Segment, TokenRow
from tests.corpus import CLIPS, GOLDEN, put_shards, speech_shards, store_of, tar_of

HOSTILE = "<script>alert(1)</script>"
NUM_DRAWN = 4


def tokenized(folder, shards):
    config = {"input": put_shards(f"{folder}/in", shards), "output": f"{folder}/out", "codec": str(GOLDEN)}
    report = run_job(load_config(config | {"executor": "inline", "decoding": {"workers": 1}}), plain=True)
    assert report.exit_code == 0
    return f"{folder}/out"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """The speech in three shards, one clip of it under a key that is no friend of pages."""
    shards = speech_shards()
    shards["odd.tar"] = tar_of([(f"{HOSTILE}.flac", CLIPS[0].read_bytes())])
    return tokenized(tmp_path_factory.mktemp("qa"), shards)


def looked_at(tokens, num_clips=NUM_DRAWN, seed=0):
    return qa(tokens, num_clips=num_clips, seed=seed, storage=StorageConfig(), retry=RetryConfig())


def speech():
    waveform, rate_hz = soundfile.read(CLIPS[-1], dtype="float32")
    assert rate_hz == RATE_HZ
    return waveform


def test_a_perfect_copy_has_the_best_scores_and_noise_costs_some_of_each():
    source = speech()
    perfect = score(source, source)
    assert perfect.stoi == pytest.approx(1, abs=1e-6)
    assert perfect.pesq == pytest.approx(4.644, abs=0.01)
    assert perfect.log_mel_db == 0
    noise = np.random.default_rng(0).normal(0, 0.02, len(source)).astype(np.float32)
    noisy = score(source, source + noise)
    assert noisy.stoi < 0.98
    assert noisy.pesq < 3
    assert noisy.log_mel_db > 3


def test_twice_as_loud_is_six_decibels_away_where_there_is_speech():
    tone = np.sin(2 * np.pi * np.arange(RATE_HZ) * np.linspace(100, 7000, RATE_HZ) / RATE_HZ).astype(np.float32)
    # A sweep is in few bands at a time, all others are below the floor: there both are the same.
    assert 0 < log_mel_distance_db(0.1 * tone, 0.2 * tone) <= 20 * np.log10(2) + 1e-3
    noise = np.random.default_rng(0).normal(0, 0.1, RATE_HZ).astype(np.float32)
    assert log_mel_distance_db(noise, 2 * noise) == pytest.approx(20 * np.log10(2), abs=1e-3)


def test_what_cannot_be_scored_has_no_score():
    assert score(speech()[: RATE_HZ // 4], speech()[: RATE_HZ // 4]).stoi is None
    silence = np.zeros(2 * RATE_HZ, np.float32)
    for one, other in [(silence, silence), (silence, speech())]:
        found = score(one, other)
        assert (found.stoi, found.pesq) == (None, None)
        assert np.isfinite(found.log_mel_db)


def test_silence_in_place_of_speech_is_the_worst_that_there_is():
    found = score(speech(), np.zeros_like(speech()))
    assert (found.stoi, found.pesq) == (0.0, 1.0)
    assert np.isfinite(found.log_mel_db)


def test_more_utterances_than_pesq_has_room_for_are_scored_in_parts():
    noise = np.random.default_rng(0).normal(0, 0.1, (60, round(0.22 * RATE_HZ)))
    bursts = np.pad(noise, ((0, 0), (0, RATE_HZ // 4))).ravel().astype(np.float32)
    assert score(bursts, bursts).pesq > 4.5


def row(key="k", semantic=(), num_frames=None, segments=()):
    ids = np.asarray(semantic, np.uint16)
    num_frames = len(ids) if num_frames is None else num_frames
    return TokenRow(key, num_frames, num_frames * 960, 16000, 1, tuple(segments), ids, np.tile(ids, (2, 1)))


def test_codebooks_are_counted():
    use = CodebookUse([Codebook("semantic", np.zeros(4, np.int64)), Codebook("acoustic_0", np.zeros(8, np.int64))])
    use.count(row("a", [0, 0, 1, 1]))
    use.count(row("b", [1, 1, 1, 1, 0]))
    semantic = use.codebooks[0]
    assert (use.num_rows, use.num_frames) == (2, 9)
    assert semantic.counts.tolist() == [3, 6, 0, 0]
    assert (semantic.num_used, semantic.num_dead, semantic.cardinality) == (2, 2, 4)
    assert (semantic.longest_run, semantic.longest_run_key) == (4, "b")
    assert semantic.repetition == pytest.approx(5 / 7)
    assert semantic.perplexity == pytest.approx(3 ** (1 / 3) * 1.5 ** (2 / 3))
    assert use.codebooks[1].counts.tolist() == [3, 6, 0, 0, 0, 0, 0, 0]


def test_a_long_row_begins_with_whole_segments():
    segments = [Segment(0, 1900, 2), Segment(1900, 960, 1), Segment(2860, 900, 1)]
    long = row(semantic=[5, 6, 7, 8], segments=segments)
    for length_max, num_segments in [(1, 1), (1900, 1), (2859, 1), (2860, 2), (10_000, 3)]:
        short = beginning(long, length_max)
        assert short.segments == long.segments[:num_segments]
        assert short.num_frames == len(short.semantic) == short.acoustic.shape[1]
        assert short.num_frames == sum(segment.num_frames for segment in short.segments)
        assert short.num_audio_samples == sum(segment.length for segment in short.segments)


def test_the_draw_is_by_its_seed_and_every_row_is_as_likely(tokens):
    source = TokenReader.open(tokens)

    def keys(num, seed):
        return [one.row.key for one in draw(source, num, seed, CodebookUse.of(source.rules))]

    everything = keys(100, 0)
    assert sorted(everything) == sorted([HOSTILE, *(clip.stem for clip in CLIPS)])
    assert keys(4, 3) == keys(4, 3)
    assert set(keys(4, 3)) < set(everything)
    drawn = Counter(key for seed in range(150) for key in keys(4, seed))
    expected = 150 * 4 / len(everything)
    for key in everything:  # four standard deviations of a share of 4 in 11
        assert abs(drawn[key] - expected) < 4 * (expected * (1 - 4 / len(everything))) ** 0.5


def test_decoded_rows_are_compared_with_what_they_were_made_of(tokens):
    report = looked_at(tokens)
    assert report.exit_code == 0
    assert [type(clip.source) for clip in report.clips] == [np.ndarray] * NUM_DRAWN
    for clip in report.clips:
        own = next(path for path in CLIPS if path.stem == clip.key) if clip.key != HOSTILE else CLIPS[0]
        np.testing.assert_array_equal(clip.source, soundfile.read(own, dtype="float32")[0])
        for rate_hz in (16_000, 24_000):
            decoded = clip.decoded[rate_hz].pcm / np.float32(32768)
            assert len(decoded) == len(clip.source) * rate_hz // 16_000
            at_16k = decoded if rate_hz == 16_000 else resample(decoded[None], rate_hz, 16_000)[0]
            assert clip.scores[rate_hz] == score(clip.source, at_16k)
    stois = [min(scores.stoi for scores in clip.scores.values()) for clip in report.clips]
    assert stois == sorted(stois)
    found = report.to_json()
    assert [clip["key"] for clip in found["clips"]] == [clip.key for clip in report.clips]
    assert json.loads(json.dumps(found)) == found


def test_sources_that_changed_or_went_are_named_and_the_rest_is_done(tmp_path, capsys, monkeypatch):
    shards = speech_shards(3)
    output = tokenized(tmp_path, shards)
    names = sorted(shards)
    store = store_of(output)
    store.put(f"{tmp_path}/in/{names[0]}", shards[names[1]])
    Path(f"{tmp_path}/in/{names[1]}").unlink()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["qa", output, "--num-clips=10", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    reasons = {clip["key"]: clip["not_compared"] for clip in found["clips"]}
    by_shard = {clip["shard_id"].rpartition("-")[0]: clip["not_compared"] for clip in found["clips"]}
    assert "changed" in by_shard[Path(names[0]).stem]
    assert "could not be read" in by_shard[Path(names[1]).stem]
    assert by_shard[Path(names[2]).stem] is None
    assert sum(reason is None for reason in reasons.values()) == 3
    assert {clip["key"] for clip in found["clips"][:7]} == {key for key, reason in reasons.items() if reason}
    assert (tmp_path / "qa.html").stat().st_size > 100_000


def test_a_place_without_tokens_is_refused(tmp_path, capsys):
    assert cli.main(["qa", str(tmp_path)]) == 2
    assert "holds no voxmill job" in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A real one, without a screen."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("needs chromium and its driver (Debian: chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--window-size=1300,1500",
        "--autoplay-policy=no-user-gesture-required", "--mute-audio",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ]:  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chromium = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield chromium
    chromium.quit()


def test_a_browser_shows_and_plays_the_page(tokens, browser, tmp_path):
    report = looked_at(tokens, num_clips=11)
    write_page(report, str(tmp_path / "page" / "qa.html"))
    browser.get(f"file://{report.page}")
    players = browser.find_elements("tag name", "audio")
    assert len(players) == 3 * len(report.clips)
    WebDriverWait(browser, 60).until(
        lambda _: all(browser.execute_script("return arguments[0].readyState >= 1", player) for player in players)
    )
    lengths_s = [browser.execute_script("return arguments[0].duration", player) for player in players]
    expected_s = [len(clip.source) / RATE_HZ for clip in report.clips for _ in range(3)]
    assert lengths_s == pytest.approx(expected_s, abs=0.01)
    browser.execute_script("arguments[0].play()", players[0])  # its clock moves only when the audio can be played
    WebDriverWait(browser, 60).until(
        lambda _: browser.execute_script("return arguments[0].currentTime > 0.1", players[0])
    )
    images = browser.find_elements("tag name", "img")
    assert len(images) == 4 + len(report.clips)
    for image in images:
        assert browser.execute_script("return arguments[0].naturalWidth", image) > 100
        shot = tmp_path / "image.png"
        image.screenshot(str(shot))
        with Image.open(shot) as picture:
            assert np.asarray(picture.convert("L")).std() > 10, f"{image.get_attribute('alt')} is blank"
    titles = [title.text for title in browser.find_elements("css selector", "article h3")]
    assert titles == [clip.key for clip in report.clips]
    assert HOSTILE in titles, "what came from a shard is shown, not run"
    cells = [cell.text for cell in browser.find_elements("css selector", "#codebooks td:first-child")]
    assert cells == ["semantic", "acoustic_0", "acoustic_1", "acoustic_2"]
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("flag", ["--num-clips=0", "--num-clips=201", "--seed=-1"])
def test_draws_that_cannot_be_are_refused(flag, tmp_path, capsys):
    assert cli.main(["qa", str(tmp_path), flag]) == 2
    assert "allowed: 1 to 200 clips" in capsys.readouterr().err
