"""Human speech to measure with: Debian's packages of recorded speech, or a folder of one's own.

    python -m infra.bench.speech [PACKAGE ...]

fetches the packages with apt (unpacked, not installed) and tells where they lie.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from codec.base import CodecError

PACKAGES = ("festvox-ru", "fillets-ng-data-nl", "fillets-ng-data-cs")
"""Read sentences (16 kHz WAV), and dialogue in Dutch and Czech (22.05 kHz Ogg Vorbis)."""

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus")


def cache_folder() -> Path:
    """Where fetched packages lie."""
    return Path.home() / ".cache" / "voxmill" / "speech"


def speech_files(package: str = PACKAGES[0], *, folder: str | None = None) -> list[Path]:
    """The audio files of a folder of one's own, or of a package, fetched at its first use; sorted by name.

    Raises `CodecError` where there are none, or apt cannot bring them.
    """
    root = Path(folder) if folder else fetched(package)
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise CodecError(f"{root} holds no audio files ({', '.join(SUFFIXES)}); give another folder with --speech")
    return files


def fetched(package: str) -> Path:
    """The folder of a package's files, downloaded and unpacked if they are not there yet."""
    place = cache_folder() / package
    if place.is_dir():
        return place
    cache_folder().mkdir(parents=True, exist_ok=True)
    making = cache_folder() / f".{package}.part"
    making.mkdir(exist_ok=True)
    try:
        subprocess.run(["apt-get", "download", "-qq", package], cwd=making, check=True, stdout=sys.stderr)
        for archive in making.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", archive.name, "."], cwd=making, check=True, stdout=sys.stderr)
            archive.unlink()
    except (OSError, subprocess.CalledProcessError) as error:
        raise CodecError(
            f"apt cannot bring {package} ({error}); update its lists, or give a folder of speech with --speech"
        ) from None
    making.rename(place)
    return place


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", nargs="*", default=list(PACKAGES))
    for package in parser.parse_args(argv).package:
        files = speech_files(package)
        print(f"{package}: {len(files)} files in {cache_folder() / package}")


if __name__ == "__main__":
    main()
