"""Get the common tests of the transformers that is installed, with pip, and make them importable."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import transformers

PACKAGE = "transformers_tests"
"""The name that the fetched tests are imported by."""

_PARAMETERIZED = "parameterized==0.9.0"
_WANTED = (
    "test_configuration_common.py",
    "test_feature_extraction_common.py",
    "test_modeling_common.py",
    "test_sequence_feature_extraction_common.py",
)
# What the fetched files import and the source distribution leaves out: mixins for exporting and for generating text,
# neither of which a codec does, and values that a config has to keep.
_LEFT_OUT = {
    "exporters/test_export.py": "class ExportTesterMixin: ...\n",
    "generation/test_utils.py": "class GenerationTesterMixin: ...\n",
    "utils/test_configuration_utils.py": """config_common_kwargs = {
    "return_dict": False,
    "output_hidden_states": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": "0"},
    "problem_type": "regression",
}
""",
}


class NotFetchedError(Exception):
    """The package index did not give the tests."""


def fetch(folder: Path) -> Path:
    """The folder to put on the path, so that `PACKAGE` can be imported; what an earlier call fetched is kept.

    Raises `NotFetchedError` with pip's last words.
    """
    done = folder / f"transformers-{transformers.__version__}"
    if done.exists():
        return done
    making = folder / "making"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    _pip("install", "--no-deps", "--target", str(making), _PARAMETERIZED)
    wanted = f"transformers=={transformers.__version__}"
    _pip("download", "--no-deps", "--no-binary", "transformers", "--dest", str(making), wanted)
    (archive,) = making.glob("transformers-*.tar.gz")
    package = making / PACKAGE
    package.mkdir()
    (package / "__init__.py").touch()
    with tarfile.open(archive) as tar:
        for name in _WANTED:
            held = tar.extractfile(f"transformers-{transformers.__version__}/tests/{name}")
            assert held is not None
            (package / name).write_bytes(held.read())
    for name, text in _LEFT_OUT.items():
        (package / name).parent.mkdir()
        (package / name).parent.joinpath("__init__.py").touch()
        (package / name).write_text(text)
    archive.unlink()
    making.rename(done)
    return done


def _pip(*arguments: str) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    result = subprocess.run(pip, capture_output=True, text=True, check=False)
    if result.returncode:
        raise NotFetchedError("\n".join(result.stderr.splitlines()[-3:]))
