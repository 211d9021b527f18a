"""The hub client against a hub of our own on 127.0.0.1."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from codec.base import CodecError, CodecUnavailableError, Tokens
from codec.registry import LONGCAT_REPOSITORY, codec_info, load_codec
from tests.codec.small_models import save_small_model
from tests.servers import free_port

TOKEN = "hf_" + "secret" * 6
COMMIT = "c" * 40
DECODER = "LongCatAudioCodec_decoder_16k_4codebooks.pt"


@dataclass
class FakeHub:
    """One repository with the golden checkpoint; `refusal` is a status and a hub error code to answer instead."""

    files: dict[str, bytes]
    endpoint: str = ""
    main: str = COMMIT
    refusal: tuple[int, str] | None = None
    fetched: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)

    def answer(self, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        if self.refusal is not None:
            status, code = self.refusal
            return status, {"X-Error-Code": code, "X-Error-Message": "refused"}, b"{}"
        if path == f"/api/models/{LONGCAT_REPOSITORY}/revision/main":
            return 200, {}, json.dumps({"id": LONGCAT_REPOSITORY, "sha": self.main, "siblings": []}).encode()
        if path == f"/api/models/{LONGCAT_REPOSITORY}/tree/{COMMIT}":
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.files.items()
            ]
            return 200, {}, json.dumps(entries).encode()
        name = path.removeprefix(f"/{LONGCAT_REPOSITORY}/resolve/{COMMIT}/")
        if name not in self.files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        data = self.files[name]
        if method == "GET":
            self.fetched.append(Path(name).name)
        return 200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}, data


def handler_of(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            if LONGCAT_REPOSITORY in self.path:
                hub.tokens.add(self.headers.get("Authorization", ""))
            status, headers, body = hub.answer(self.command, urlsplit(self.path).path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD = _reply  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    return Handler


def use_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """What HF_ENDPOINT does at the client's import."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    checkpoint = {f"ckpts/{path.name}": path.read_bytes() for path in golden.iterdir() if path.suffix != ".flac"}
    hub = FakeHub({**checkpoint, "README.md": b"not needed", "config.json": b"not ours"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    use_endpoint(monkeypatch, hub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield hub
    huggingface_hub.close_session()
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_repository_is_a_codec_and_a_decoder_is_fetched_when_needed(hub: FakeHub, golden: Path) -> None:
    assert codec_info("longcat") == codec_info(str(golden))
    encoder_files = {"LongCatAudioCodec_encoder.pt", "LongCatAudioCodec_encoder_cmvn.npy", "config.json"}
    assert set(hub.fetched) == encoder_files
    assert hub.tokens == {f"Bearer {TOKEN}"}
    codec = load_codec(f"hf://{LONGCAT_REPOSITORY}")
    assert set(hub.fetched) == encoder_files
    # The repository moves on: the decoder still comes from the commit that the encoder came from.
    hub.main = "d" * 40
    codec.decode(Tokens(torch.zeros(1, 1, dtype=torch.int64), None, torch.tensor([1])), 16000)
    assert set(hub.fetched) == {*encoder_files, DECODER}


def test_a_repository_of_transformers_is_known_by_its_config(hub: FakeHub, tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "dac", "dac")
    hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.files |= {"pytorch_model.bin": b"a pickle", "modeling_dac.py": b"code", "README.md": b"not needed"}
    assert codec_info(f"hf://{LONGCAT_REPOSITORY}") == codec_info(str(folder))
    assert set(hub.fetched) == {"config.json", "model.safetensors"}


def test_the_cache_serves_offline(hub: FakeHub, golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codec_info("longcat")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    codec = load_codec("longcat")
    assert codec.info == codec_info(str(golden))
    with pytest.raises(CodecError, match="not whole in the local hub cache and HF_HUB_OFFLINE is set") as caught:
        codec.decode(Tokens(torch.zeros(1, 1, dtype=torch.int64), None, torch.tensor([1])), 16000)
    assert not isinstance(caught.value, CodecUnavailableError)


def test_offline_without_a_cache_is_told(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    with pytest.raises(CodecError, match="HF_HUB_OFFLINE is set"):
        codec_info("longcat")


@pytest.mark.parametrize(
    ("refusal", "error", "message"),
    [
        ((401, "GatedRepo"), CodecError, "is gated: accept its terms"),
        ((404, "RepoNotFound"), CodecError, "not found, or is private"),
        ((401, ""), CodecError, "check (the name|HF_TOKEN)"),
        ((403, ""), CodecError, "status 403: check HF_TOKEN"),
        ((500, ""), CodecUnavailableError, "cannot be fetched now"),
    ],
)
def test_a_refusal_is_told_without_the_token(
    hub: FakeHub, refusal: tuple[int, str], error: type[CodecError], message: str
) -> None:
    hub.refusal = refusal
    with pytest.raises(CodecError, match=message) as caught:
        codec_info("longcat")
    assert type(caught.value) is error
    assert LONGCAT_REPOSITORY in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_hub_that_does_not_answer_is_unavailable(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    use_endpoint(monkeypatch, f"http://127.0.0.1:{free_port()}")
    with pytest.raises(CodecUnavailableError, match="check the network and HF_ENDPOINT"):
        codec_info("longcat")
