from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
import torch

from codec.base import CodecError, CodecUnavailableError, Tokens
from codec.registry import codec_info, load_codec
from codec.source_s3 import S3Folder
from tests.codec.small_models import save_small_model
from tests.servers import free_port

FAILS_AT_ONCE = {"config_kwargs": {"retries": {"max_attempts": 0}, "connect_timeout": 1}}
ENCODER = "LongCatAudioCodec_encoder.pt"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "voxmill" / "checkpoints"


@pytest.fixture
def checkpoint(bucket: str, golden: Path) -> str:
    """The golden encoder and one decoder in a bucket."""
    store = fsspec.filesystem("s3", skip_instance_cache=True)
    names = ("LongCatAudioCodec_encoder_cmvn.npy", "config.json", "LongCatAudioCodec_decoder_16k_4codebooks.pt")
    for name in (ENCODER, *names):
        store.pipe_file(f"{bucket}/model/ckpts/{name}", (golden / name).read_bytes())
    return f"{bucket}/model"


def cached(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*/*") if path.name != ".lock")


def test_a_bucket_folder_is_a_codec_and_a_decoder_is_fetched_when_needed(
    checkpoint: str, cache: Path, golden: Path
) -> None:
    assert codec_info(checkpoint) == codec_info(str(golden))
    encoder_files = [ENCODER, "LongCatAudioCodec_encoder_cmvn.npy", "config.json"]
    assert cached(cache) == encoder_files
    codec = load_codec(checkpoint)
    assert cached(cache) == encoder_files
    codec.decode(Tokens(torch.zeros(1, 1, dtype=torch.int64), None, torch.tensor([1])), 16000)
    assert cached(cache) == sorted([*encoder_files, "LongCatAudioCodec_decoder_16k_4codebooks.pt"])


def test_a_bucket_folder_of_transformers_is_known_by_its_config(bucket: str, cache: Path, tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "dac", "dac")
    store = fsspec.filesystem("s3", skip_instance_cache=True)
    for path in folder.iterdir():
        store.pipe_file(f"{bucket}/dac/{path.name}", path.read_bytes())
    store.pipe_file(f"{bucket}/dac/pytorch_model.bin", b"a pickle")
    assert codec_info(f"{bucket}/dac") == codec_info(str(folder))
    assert cached(cache) == ["config.json", "model.safetensors"]


def test_the_cache_is_used_while_the_store_holds_the_same(
    checkpoint: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fsspec.filesystem("s3")
    fetched: list[str] = []
    get_file = store.get_file

    def counted(path: str, target: str) -> None:
        fetched.append(Path(path).name)
        get_file(path, target)

    monkeypatch.setattr(store, "get_file", counted)
    first = codec_info(checkpoint).checkpoint_hash
    assert codec_info(checkpoint).checkpoint_hash == first
    assert len(fetched) == 3
    store.pipe_file(f"{checkpoint}/ckpts/config.json", b"{}")
    with pytest.raises(CodecError, match=r"config\.json has"):
        codec_info(checkpoint)
    assert len(fetched) == 6


@pytest.mark.parametrize("change", ["cut short", "replaced"])
def test_a_file_that_changes_under_way_is_not_kept(
    checkpoint: str, cache: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    store = fsspec.filesystem("s3")

    def broken(path: str, target: str) -> None:
        data = store.cat_file(path)
        Path(target).write_bytes(data[1:] if change == "cut short" else data)
        if change == "replaced":
            store.pipe_file(path, data[::-1])

    monkeypatch.setattr(store, "get_file", broken)
    with pytest.raises(
        CodecUnavailableError, match=rf"{ENCODER} arrived incomplete, or changed while it was being fetched"
    ):
        codec_info(checkpoint)
    assert cached(cache) == []


def test_what_is_not_there_is_named(bucket: str, cache: Path) -> None:
    with pytest.raises(CodecError, match=f"{bucket}/nothing was not found"):
        codec_info(f"{bucket}/nothing")
    with pytest.raises(CodecError, match="s3://no-such-bucket/model was not found"):
        codec_info("s3://no-such-bucket/model")


def test_missing_credentials_are_told(bucket: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(CodecError, match="denied: check the credentials"):
        codec_info(f"{bucket}/model", storage_options={"skip_instance_cache": True})


def test_a_store_that_does_not_answer_is_unavailable(bucket: str, cache: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    source = S3Folder(f"{bucket}/model", {"endpoint_url": endpoint, **FAILS_AT_ONCE})
    with pytest.raises(CodecUnavailableError, match="cannot be fetched now"):
        source.fetch([ENCODER])
