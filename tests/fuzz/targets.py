"""The fuzz targets: a strategy of inputs and what must hold of each, by name."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pipeline.clip_limits import AudioRejectedError
from pipeline.containers import missing_part, with_sound_header
from pipeline.containers_mp3 import is_mp3, walk_mp3, with_length
from pipeline.errors import RefusedError
from pipeline.layout import TOKEN_FOLDERS, OutputPlace, parse_commit_path, parse_token_path, token_path
from pipeline.media_track import media_container
from pipeline.media_walk import walk
from pipeline.records import CommitRecord
from tests.fuzz import audio, configs, decoding, inputs, records, tars
from tests.fuzz.bounds import bounded
from tests.fuzz.config_oracle import check_config, check_input
from tests.fuzz.tar_oracle import check_shard

COUNTS: Counter[str] = Counter()
"""How many inputs came to what, by target: a target all of whose inputs are refused at the door tests little."""


@given(tars.archives)
def shards(archive: bytes) -> None:
    COUNTS["shards " + check_shard(archive)] += 1


@given(configs.job_files, configs.flags)
def config(job_file: bytes, flags: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        COUNTS["config " + check_config(Path(folder), job_file, flags)] += 1


@given(inputs.given_inputs, inputs.object_names, inputs.list_files)
def listing(text: str, objects: list[str], lines: bytes) -> None:
    COUNTS["listing " + check_input(text, objects, lines)] += 1


@given(audio.files())
def containers(file: audio.File) -> None:
    """Any bytes are whole or not, in words; what is mended is mended once, and still what it was."""
    with bounded():
        shown = with_sound_header(file.audio)
        mended = shown.audio
        missing = missing_part(file.audio, file.container, shown.mp3)
    assert missing is None or 0 < len(missing) < 300
    assert with_sound_header(mended).audio == mended
    assert len(mended) <= len(file.audio) + 2000
    if is_mp3(file.audio):
        assert with_length(mended, walk_mp3(mended)) == mended
    COUNTS[f"containers {file.container} " + ("whole" if missing is None else "not whole")] += 1


@given(decoding.damaged())
def sound(audio_file: bytes) -> None:
    COUNTS["sound " + decoding.check_audio(audio_file)] += 1


@given(decoding.damaged_media())
def media(audio_file: bytes) -> None:
    """Packets of a damaged file lie in it, in a bounded number; what is decoded is a sound clip or a reject."""
    container = media_container(audio_file)
    told = "no container" if container is None else "refused"
    with suppress(AudioRejectedError), bounded():
        if container is not None:
            track = walk(audio_file, container)
            assert len(track.offsets) == len(track.sizes) <= len(audio_file)
            assert (track.offsets >= 0).all()
            assert (track.offsets + track.sizes <= len(audio_file)).all()
            told = "walked"
    COUNTS[f"media {told} {decoding.check_audio(audio_file)}"] += 1


@given(records.contents)
def record(changed: tuple[type[CommitRecord], bytes]) -> None:
    """Any bytes are a record or refused; what is taken is written and read as the same."""
    kind, content = changed
    try:
        with bounded():
            found = kind.from_bytes(content, "s3://b/record.json")
    except RefusedError as error:
        refusal = str(error)
    else:
        again = found.to_bytes()
        if b"null" not in again:  # as which infinity is written, which JSON has no number for
            assert kind.from_bytes(again, "again") == found
        refusal = ""
    assert len(refusal) < 100_000
    COUNTS["record " + ("refused" if refusal else "taken")] += 1


SHARD_IDS = ("a-00000000", "a.b-0123abcd", "-00000000", "a/../b-00000000", "\n-00000000", "a-0000000", "A-0000000G")
endings = st.sampled_from(["parquet", "tar", "json", "1.json", "01.json", "999999999.json", "parquet\n", "x"])
paths = st.one_of(
    st.builds(
        lambda folder, shard_id, attempt, ending: f"{folder}/{shard_id}.{attempt}.{ending}",
        st.sampled_from((*TOKEN_FOLDERS, "commits", "tokens/..")),
        st.sampled_from(SHARD_IDS),
        st.sampled_from(["0" * 32, "f" * 31, "F" * 32, "0" * 32 + "." + "1" * 32]),
        endings,
    ),
    st.builds(
        lambda shard_id, ending: f"commits/{shard_id}.{ending}",
        st.sampled_from(SHARD_IDS) | st.text(max_size=5),
        endings,
    ),
    st.text(max_size=60),
)


@given(paths, st.sampled_from(TOKEN_FOLDERS))
def names(path: str, folder: str) -> None:
    """A name that is understood is the one name of what it says."""
    with bounded():
        owner, commit = parse_token_path(path), parse_commit_path(path)
    if owner is not None:
        assert path in [token_path(each, *owner) for each in TOKEN_FOLDERS]
        assert parse_token_path(token_path(folder, *owner)) == owner
    if commit is not None:
        assert OutputPlace("/out").commit(*commit) == f"/out/{path}"
    COUNTS["names " + ("understood" if owner or commit else "foreign")] += 1


Target = Callable[[], None]
TARGETS: dict[str, Target] = {
    target.__name__: target for target in (shards, config, listing, containers, sound, media, record, names)
}
