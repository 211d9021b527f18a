"""The shape of the project: which file may import which, and texts that name files and versions."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("codec", "pipeline", "jobs")

FORBIDDEN = {
    "codec": ("pipeline", "jobs", "ray", "rich"),
    "pipeline": ("jobs", "ray", "rich", "codec"),
    "jobs": (),
}
"""What a package never imports, save what `ALLOWED` says."""

ALLOWED = {"codec": (), "pipeline": ("codec.base",), "jobs": ()}

GROUND = frozenset(
    {
        "types",
        "errors",
        "settings",
        "uris",
        "config_faults",
        "config",
        "fingerprint",
        "codebooks",
        "retry",
        "pages",
        "storage",
        "storage_local",
        "storage_s3",
        "storage_s3_errors",
        "prefetch",
        "spool",
        "audio_config",
    }
)
"""What every stage of `pipeline` may know."""

STAGES: tuple[frozenset[str], ...] = (
    frozenset({"shards"}),
    frozenset({"ranges", "tar_header", "tar", "reader", "seen_keys", "admission"}),
    frozenset(
        {
            "resample",
            "containers_mp3",
            "containers",
            "flac_frames",
            "clip_limits",
            "mono",
            "media_track",
            "media_codecs",
            "media_adts",
            "media_lacing",
            "media_matroska",
            "media_boxes",
            "media_mp4_codecs",
            "media_mp4_tables",
            "media_mp4",
            "media_walk",
            "media",
            "audio",
            "plain_wav",
            "decode_chunk",
            "decode_memory",
            "decode_messages",
            "decode_worker",
            "decode_processes",
            "decoder",
        }
    ),
    frozenset({"segments", "batcher", "token_batcher"}),
    frozenset({"turn", "encoder", "synthesizer"}),
    frozenset({"writer", "audio_writer"}),
    frozenset({"layout", "records", "job", "commit", "fetch", "audio_objects"}),
    frozenset({"manifest_rows", "manifest", "orphans", "token_rows", "token_reader", "token_keys"}),
)
"""The stages in the order of the data, each with its parts. A stage never imports a later one, and takes the values
of at most one earlier one; only the joiners, one for each way of a shard, know all."""

JOINERS = frozenset({"worker", "synthesis_worker"})
PURE = {"ledger": frozenset({"types", "errors", "settings", "retry"})}
"""Files outside the chain of stages, with all that they may know of `pipeline`."""


def imports_of(path: Path, root: Path) -> set[str]:
    """Dotted names of all that a file imports, inside functions too; `a.b.c` for `from a.b import c`."""
    found = set()
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            found.update(f"{module}.{alias.name}" for alias in node.names)
    return found


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def modules_within(names: Iterable[str], package: str) -> set[str]:
    """`tar` for `pipeline.tar` and `pipeline.tar.read_members`."""
    return {name.split(".")[1] for name in names if name.startswith(package + ".")}


def package_faults(root: Path) -> Iterator[str]:
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            for name in sorted(imports_of(path, root)):
                forbidden = any(is_within(name, one) for one in FORBIDDEN[package])
                if forbidden and not any(is_within(name, one) for one in ALLOWED[package]):
                    yield f"{path.relative_to(root)} imports {name}"


def stage_of(module: str) -> int | None:
    return next((index for index, parts in enumerate(STAGES) if module in parts), None)


def stage_faults(root: Path) -> Iterator[str]:
    modules = {path.stem for path in (root / "pipeline").glob("*.py")} - {"__init__"}
    for module in sorted(modules):
        known = modules_within(imports_of(root / "pipeline" / f"{module}.py", root), "pipeline") & modules
        yield from (f"{module} imports {other}" for other in sorted(known - allowed_for(module, modules)))
        earlier = {stage_of(other) for other in known} - {None, stage_of(module)}
        if module not in JOINERS and len(earlier) > 1:
            yield f"{module} joins {len(earlier)} stages; only {', '.join(sorted(JOINERS))} may"


def allowed_for(module: str, modules: set[str]) -> frozenset[str]:
    """What a module may import of `pipeline`."""
    if module in JOINERS:
        return frozenset(modules) - PURE.keys()
    if module in PURE:
        return PURE[module]
    if module in GROUND:
        return GROUND
    stage = stage_of(module)
    assert stage is not None, (
        f"pipeline/{module}.py has no place among the stages: give it one in {Path(__file__).name}"
    )
    return GROUND.union(*STAGES[: stage + 1])


def tree_of(readme: str) -> list[str]:
    """The paths in the README's file tree: the fenced block after `<!-- tree -->` or a heading that says "tree".

    A line has a name, or some divided by single spaces, then two spaces or ` #` and what it is; folders end in
    `/`. Nesting is by indentation, drawn with lines or not. A first line `.` or `voxmill/` is the root.
    """
    block = re.search(r"^(?:<!-- tree -->|#+ .*\btree\b.*)$.*?^```\w*\n(.*?)^```$", readme, re.M | re.S | re.I)
    assert block, "the README has no fenced block after a heading with 'tree' or <!-- tree -->"
    paths: list[str] = []
    folders: list[tuple[int, str]] = []
    for line in block.group(1).splitlines():
        names = re.split(r"\s{2,}|\s#", line.lstrip(" │├└─\t|`-"), maxsplit=1)[0].split()
        if names in ([], ["."], ["voxmill/"]):
            continue
        indent = line.index(names[0])
        while folders and folders[-1][0] >= indent:
            folders.pop()
        parent = folders[-1][1] if folders else ""
        paths += [parent + name for name in names]
        if names[-1].endswith("/"):
            folders.append((indent, parent + names[-1]))
    return paths


def tree_faults(root: Path) -> Iterator[str]:
    told = tree_of((root / "README.md").read_text(encoding="utf-8"))
    yield from (f"{path} is in the tree twice" for path in sorted({path for path in told if told.count(path) > 1}))
    for path in told:
        if not (root / path).exists() or (root / path).is_dir() != path.endswith("/"):
            yield f"{path} is in the tree and not in the project"
    for package in PACKAGES:
        for path in sorted((root / package).iterdir()):
            is_package = (path / "__init__.py").exists()
            name = path.relative_to(root).as_posix() + "/" * is_package
            if (is_package or (path.suffix == ".py" and path.stem != "__init__")) and name not in told:
                yield f"{name} is in the project and not in the tree"


def claim_faults(root: Path) -> Iterator[str]:
    """What `SECURITY.md` names as shown by a test or done in a file, and is not there."""
    named = set(re.findall(r"`([\w/.]+\.py|tests/\w+|test_\w+)`", (root / "SECURITY.md").read_text(encoding="utf-8")))
    sources = [path.read_text(encoding="utf-8") for path in (root / "tests").rglob("test_*.py")]
    tests = {name for source in sources for name in re.findall(r"def (test_\w+)\(", source)}
    yield from sorted(name for name in named if name not in tests and not (root / name).exists())


def version_fault(root: Path) -> str | None:
    version = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[?v?(\d[^\s\]]*)", changelog, re.M)
    assert newest, "CHANGELOG.md has no heading such as '## 0.1.0'"
    return None if newest.group(1) == version else f"pyproject.toml says {version}, CHANGELOG.md {newest.group(1)}"


def test_packages_import_downward_only() -> None:
    assert list(package_faults(ROOT)) == []


def test_stages_import_no_later_stage_and_only_the_workers_join_them() -> None:
    assert list(stage_faults(ROOT)) == []


def test_the_readmes_tree_is_true() -> None:
    assert list(tree_faults(ROOT)) == []


def test_what_the_threat_page_names_is_there() -> None:
    assert list(claim_faults(ROOT)) == []


def test_the_version_is_the_changelogs_newest() -> None:
    assert version_fault(ROOT) is None


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of empty files that has no fault."""
    for name in ("codec/base.py", "pipeline/__init__.py", "pipeline/types.py", "pipeline/reader.py", "jobs/cli.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("file", "line", "fault"),
    [
        ("codec/base.py", "import pipeline.types", "imports pipeline.types"),
        ("codec/base.py", "def f():\n    from jobs import cli", "imports jobs.cli"),
        ("pipeline/types.py", "from jobs.cli import main", "imports jobs.cli.main"),
        ("pipeline/types.py", "def f():\n    import ray", "imports ray"),
        ("pipeline/types.py", "from codec import longcat", "imports codec.longcat"),
        (
            "pipeline/types.py",
            "from codec.longcat.model import LongCatCodec",
            "imports codec.longcat.model.LongCatCodec",
        ),
        ("pipeline/types.py", "from ..jobs import cli", "imports jobs.cli"),
        ("pipeline/types.py", "from codec.base import CodecInfo", None),
        ("pipeline/types.py", "import raylike, jobsite", None),
        ("jobs/cli.py", "import ray, codec.longcat, pipeline.types", None),
    ],
)
def test_an_upward_import_is_seen(project: Path, file: str, line: str, fault: str | None) -> None:
    (project / file).write_text(line)
    found = list(package_faults(project))
    assert found == ([f"{file} {fault}"] if fault else [])


@pytest.mark.parametrize(
    ("module", "line", "faults"),
    [
        ("reader", "from pipeline.batcher import windows", ["reader imports batcher"]),
        ("reader", "from pipeline import batcher", ["reader imports batcher"]),
        ("reader", "from . import batcher", ["reader imports batcher"]),
        ("types", "import pipeline.reader", ["types imports reader"]),
        ("batcher", "import pipeline.reader, pipeline.types", []),
        (
            "writer",
            "import pipeline.reader, pipeline.batcher",
            ["writer joins 2 stages; only synthesis_worker, worker may"],
        ),
        ("worker", "import pipeline.reader, pipeline.batcher, pipeline.types", []),
        ("worker", "import pipeline.ledger", ["worker imports ledger"]),
        ("ledger", "import pipeline.reader", ["ledger imports reader"]),
    ],
)
def test_a_stage_that_knows_too_much_is_seen(project: Path, module: str, line: str, faults: list[str]) -> None:
    for name in ("batcher", "ledger", "writer", "worker"):
        (project / "pipeline" / f"{name}.py").touch()
    (project / "pipeline" / f"{module}.py").write_text(line)
    assert list(stage_faults(project)) == faults


def test_a_file_without_a_place_among_the_stages_is_seen(project: Path) -> None:
    (project / "pipeline" / "novelty.py").touch()
    with pytest.raises(AssertionError, match=r"novelty\.py has no place"):
        list(stage_faults(project))


@pytest.mark.parametrize(
    "readme",
    [
        "## The tree\n\nWords.\n\n```\ncodec/     codecs\n  base.py  the protocol\n\npipeline/  data\n"
        "  types.py reader.py  two files\njobs/cli.py  commands\n```\n",
        "<!-- tree -->\n```text\n.\n├── codec/\n│   └── base.py    # the protocol\n├── pipeline/  # data\n"
        "│   ├── types.py\n│   └── reader.py\n└── jobs/\n    └── cli.py\n```\n",
    ],
)
def test_a_true_tree_is_read_in_both_styles(project: Path, readme: str) -> None:
    (project / "README.md").write_text(readme)
    assert {"codec/base.py", "pipeline/types.py", "pipeline/reader.py", "jobs/cli.py"} <= set(tree_of(readme))
    assert list(tree_faults(project)) == []


def test_a_tree_that_is_not_true_is_seen(project: Path) -> None:
    (project / "codec" / "longcat").mkdir()
    (project / "codec" / "longcat" / "__init__.py").touch()
    tree = "codec/\n  base.py\npipeline/\n  types.py\n  types.py\n  gone.py\njobs/\n  cli.py/\n  cli.py\n"
    (project / "README.md").write_text(f"# Files as a tree\n```\n{tree}```\n")
    assert list(tree_faults(project)) == [
        "pipeline/types.py is in the tree twice",
        "pipeline/gone.py is in the tree and not in the project",
        "jobs/cli.py/ is in the tree and not in the project",
        "codec/longcat/ is in the project and not in the tree",
        "pipeline/reader.py is in the project and not in the tree",
    ]


@pytest.mark.parametrize(
    ("changelog", "fault"),
    [
        ("# Changelog\n\n## 1.2.0 - 2026-01-01\n\n## 1.1.0\n", None),
        ("## [v1.2.0]\n", None),
        ("## 1.1.0\n\n## 1.2.0\n", "pyproject.toml says 1.2.0, CHANGELOG.md 1.1.0"),
    ],
)
def test_another_version_in_the_changelog_is_seen(tmp_path: Path, changelog: str, fault: str | None) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(changelog)
    assert version_fault(tmp_path) == fault
