from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from codec.base import CodecError
from codec.registry import codec_info, load_codec


def test_a_folder_is_a_codec(golden: Path) -> None:
    for uri in (str(golden), f"file://{golden}"):
        assert load_codec(uri).info == codec_info(uri)


def test_files_may_stand_in_ckpts(golden: Path, tmp_path: Path) -> None:
    shutil.copytree(golden, tmp_path / "ckpts")
    # A config.json at the top belongs to something else: the one beside the weights counts.
    (tmp_path / "config.json").write_text("{}")
    assert codec_info(str(tmp_path)) == codec_info(str(golden))


def test_info_reads_no_weights(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(torch, "load", refuse)
    assert codec_info(str(golden)).semantic_cardinality == 256


@pytest.mark.parametrize("name", ["nano", "longcaat", "http://somewhere/model", "/no/such/folder", "calibrated"])
def test_an_unknown_name_is_refused_with_what_is_known(name: str) -> None:
    for open_it in (codec_info, load_codec):
        with pytest.raises(CodecError, match=rf"'{name}'.*known: longcat, hf://owner/name, s3://.*calibrated:"):
            open_it(name)


@pytest.mark.parametrize("name", ["hf://owner", "hf://owner/name/more", "hf://user:secret@owner/name"])
def test_a_malformed_repository_is_refused(name: str) -> None:
    with pytest.raises(CodecError, match="hf://owner/name"):
        codec_info(name)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CodecError, match=r"has no LongCatAudioCodec_encoder\.pt and no LongCatAudioCodec_encoder_cmvn"):
        codec_info(str(tmp_path))
