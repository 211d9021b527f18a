"""What a job file and `--set` may hold: plain values; all else is a `ConfigError` that is short and tells no secret."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from jobs.options import JOB_FILE_BYTES_MAX, config_of
from pipeline.config import JobConfig
from pipeline.errors import ConfigError

SECRET = "hunter2"
BOMB = "\n".join(["a0: &a0 [lol]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))])


def config(folder: Path, job_file: str | bytes = "", *assignments: str) -> JobConfig:
    path = folder / "job.yaml"
    path.write_bytes(job_file if isinstance(job_file, bytes) else job_file.encode())
    flags = {"input": ["/in/a.tar"], "output": None if "output" in str(job_file) + str(assignments) else "/out"}
    return config_of(argparse.Namespace(job=str(path), set=list(assignments), ray_address=None, **flags))


def refusal(folder: Path, job_file: str | bytes = "", *assignments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config(folder, job_file, *assignments)
    return str(caught.value)


@pytest.mark.parametrize(
    ("job_file", "words"),
    [
        ("carry: [2026-99-99]", "month must be in 1..12"),
        ("carry: 0x_", "invalid literal"),
        ("carry: " + "9" * 5000, "4300 digits"),
        ("carry: " + "[" * 100_000, "more than 16 deep"),
        ("output: /out\ncarry: !!bool maybe", "line 2, column 8: a tag"),
        ("carry: !!timestamp x", "a tag"),
        ("carry: !!python/object/apply:os.system ['true']", "a tag"),
        (BOMB, "alias"),
        (b"carry: \xff", "utf-8"),
        (b"x" * (JOB_FILE_BYTES_MAX + 1), "bytes"),
        ("output: a: b", "line 1, column 10: mapping values are not allowed here"),
        ("[]", "must be a mapping"),
        ("1: 2", "1: "),
        ('output: "/a\\0b"', "NUL"),
    ],
)
def test_a_job_file_that_is_none_is_refused(tmp_path: Path, job_file: str | bytes, words: str) -> None:
    assert words in refusal(tmp_path, job_file)


@pytest.mark.parametrize(
    ("job_file", "words"),
    [
        (
            "num-acoustic-codebooks: 3",
            "num-acoustic-codebooks: no such setting; did you mean 'num_acoustic_codebooks'?",
        ),
        ("storage: {end-point_url: x}", "storage.end-point_url: no such setting; did you mean 'endpoint_url'?"),
        ("'?': 3", "'?': no such setting; known: "),
    ],
)
def test_a_name_that_is_no_setting_is_told_with_the_nearest(tmp_path: Path, job_file: str, words: str) -> None:
    assert words in refusal(tmp_path, job_file)


def test_values_in_a_message_are_cut(tmp_path: Path) -> None:
    assert len(refusal(tmp_path, "carry: [" + "X, " * 5000 + "]")) < 3000
    assert len(refusal(tmp_path, "codec: [" + "x, " * 5000 + "]")) < 1000
    assert len(refusal(tmp_path, "x" * 1000 + ": 1")) < 3000


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://key:{SECRET}@bucket/a.tar",
        f"s3://key:pa ss'{SECRET}@bucket/a.tar",
        f"s3:///key:/{SECRET}@bucket/a.tar",
        f"https://bucket.host/a.tar?X-Amz-Credential=A&X-Amz-Signature={SECRET}",
    ],
)
@pytest.mark.parametrize("name", ["output", "codec", "carry", "storage.endpoint_url", "replicas", "no_such_setting"])
def test_no_message_holds_a_secret_of_a_uri(tmp_path: Path, name: str, uri: str) -> None:
    *groups, last = name.split(".")
    setting = "".join(f"{group}: {{" for group in groups) + f'{last}: "{uri}"' + "}" * len(groups)
    not_yaml = f"{name}: {uri}: x: ["  # PyYAML's own words would show the line
    messages = [refusal(tmp_path, not_yaml), refusal(tmp_path, "", f"{name}=[{uri}")]
    if name != "storage.endpoint_url" or "@" in uri:
        messages.append(refusal(tmp_path, setting))
    assert SECRET not in "\n".join(messages)
