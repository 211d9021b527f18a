"""Codecs of installed packages: the example of infra/CODECS.md as a package, and what is refused."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from codec.base import Codec, CodecError
from codec.registry import check_arithmetic, codec_info, load_codec

PAGE = Path(__file__).parents[2] / "infra" / "CODECS.md"


def example() -> str:
    """The page's example."""
    found = re.search(r"<!-- example -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert found
    return found.group(1)


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a package with one module and its entry points on the path, as an installer does."""
    site, modules = tmp_path / "site", set(sys.modules)

    def put(module: str, source: str, **entry_points: str) -> None:
        metadata = site / f"{module}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in entry_points.items()]
        (metadata / "entry_points.txt").write_text("\n".join(["[voxmill.codecs]", *lines]))
        (site / f"{module}.py").write_text(source)
        importlib.invalidate_caches()

    monkeypatch.syspath_prepend(str(site))
    yield put
    for module in set(sys.modules) - modules:
        del sys.modules[module]


def test_the_example_is_a_codec(install: Install) -> None:
    assert len(example().splitlines()) <= 45
    install("tiny_codec", example(), loudness="tiny_codec:Loader")
    codec = load_codec("plugin:loudness")
    assert isinstance(codec, Codec)
    assert codec.info == codec_info("plugin:loudness")
    waveforms = torch.cat([torch.full((2, 640), 0.1), torch.full((2, 640), float("nan"))], dim=1)
    tokens = codec.encode(waveforms, torch.tensor([640, 321]), semantic=False)
    assert tokens.num_frames.tolist() == [2, 2]
    assert tokens.acoustic is not None
    # -20 dB, and a frame of one such sample alone 25 dB below that.
    assert tokens.acoustic.tolist() == [[[75, 75, 0, 0]], [[75, 50, 0, 0]]]
    check_arithmetic("plugin:loudness", codec.info, device="cuda", precision="anything")


def test_an_unknown_plugin_is_refused_with_those_there_are(install: Install) -> None:
    with pytest.raises(CodecError, match=r"plugin:loudness, but no installed package offers it.*: none"):
        codec_info("plugin:loudness")
    install("tiny_codec", example(), loudness="tiny_codec:Loader")
    with pytest.raises(CodecError, match=r"plugin:loud, but no installed package.*: plugin:loudness"):
        codec_info("plugin:loud")


def test_a_module_is_not_imported_by_naming_it(install: Install) -> None:
    install("trap", "raise AssertionError('imported')", loudness="tiny_codec:Loader")
    for name in ("plugin:trap", "plugin:trap:Loader", "plugin:os:getcwd"):
        with pytest.raises(CodecError, match="no installed package offers it"):
            codec_info(name)
    assert "trap" not in sys.modules


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_module", "broken:Loader. cannot be made: ModuleNotFoundError"),
        ("", "cannot be made: AttributeError"),
        ("def Loader(): raise RuntimeError('no licence')", "cannot be made: RuntimeError: no licence"),
        ("def Loader(): return 3", "gives a int without info and load"),
    ],
)
def test_a_broken_plugin_is_named(install: Install, source: str, message: str) -> None:
    install("broken", source, broken="broken:Loader")
    with pytest.raises(CodecError, match=message):
        codec_info("plugin:broken")


def test_two_packages_with_one_name_are_refused(install: Install) -> None:
    install("tiny_codec", example(), loudness="tiny_codec:Loader")
    install("other_codec", example(), loudness="other_codec:Loader")
    with pytest.raises(CodecError, match="2 packages offer it"):
        codec_info("plugin:loudness")
