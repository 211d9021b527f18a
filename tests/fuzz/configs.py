"""Job files and `--set` flags for fuzzing, some with a secret in a URI, some with tags that would run code."""

from __future__ import annotations

from hypothesis import strategies as st

from pipeline.config import JobConfig

SECRET = "hunter2"

SCALARS = (
    "1", "0", "-1", "1e999", ".nan", ".inf", "2026-99-99", "2001-01-01", "0x_", "0b", "1:99999:1", "true", "null",
    "~",
    "9" * 5000, "auto", "auto:residual=0.05", "auto:residual=1e999", "auto:",
    "cpu", "/data/*.tar", "s3://b/{0..3}.tar", "'a'", '"\\0"', '"\\ud800"', '"\\x1b[2J"',
    "@list", "[]",
    "{}", "[[]]", "{1: 2}", "{a: b}", "!!python/object/apply:os.system ['true']", "!!python/name:os.system ''",
    "!!python/object/new:subprocess.Popen [['true']]", "!!binary aGk=", "!!set {a}", "!!timestamp '2026-99-99'",
    "!!int x",
    "!!float x", "&a [*a]", "&b 1", "*b", "pipe:true", "http://169.254.169.254/", "calibrated:", "[", "}", "\t",
    "%", "!x",
    "[semantic]", "[semantic, semantic]", "parquet", "? [a]", "<<", "[" * 2000, "{a: " * 500, "- " * 500,
)  # fmt: skip
SECRET_URIS = (
    f"s3://key:{SECRET}@bucket/a.tar", f"s3://{SECRET}@bucket/a.tar", f"http://user:{SECRET}@host/a.tar",
    f"s3://key:a b'{SECRET}@bucket/x", f"s3://key:/{SECRET}@bucket/x", f"pipe:curl http://u:{SECRET}@host",
    f"https://bucket.host/a.tar?X-Amz-Credential=AK&X-Amz-Signature={SECRET}", f"https://h/a?sig={SECRET}",
    f"s3:{{//key:{SECRET}@bucket/x,}}", f"{{s3://key:{SECRET}@bucket/x,}}.tar", f"S3://key:{SECRET}@b/x",
    f"s3:///k:{SECRET}@b",
    f"{{http://u:{SECRET}@h/x,}}", f"s3://key:{SECRET}@*/x.tar",
)  # fmt: skip


def _names(group: type, prefix: str = "") -> list[str]:
    found = []
    for name, field in group.model_fields.items():  # type: ignore[attr-defined]
        found.append(prefix + name)
        if hasattr(field.annotation, "model_fields"):
            found += _names(field.annotation, f"{prefix}{name}.")
    return found


NAMES = (
    *_names(JobConfig),
    "num-acoustic-codebooks",
    "storage.end-point",
    "no.such",
    "input.x",
    "1",
    "",
    "<<",
    "é",
    "a b",
    "?",
)
names = st.sampled_from(NAMES)
scalars = st.sampled_from(SCALARS + SECRET_URIS) | st.text(
    st.sampled_from("ab:{}[]&*!|>'\"%@#,-\n\\0?/. "), max_size=10
)


@st.composite
def settings(draw: st.DrawFn) -> str:
    """One line of a job file: a setting, or a group with one in it."""
    *groups, last = draw(names).split(".")
    value = draw(scalars)
    lines = [f"{'  ' * depth}{group}:" for depth, group in enumerate(groups)]
    return "\n".join([*lines, f"{'  ' * len(groups)}{last}: {value}"])


bombs = st.integers(2, 30).map(
    lambda depth: "\n".join(
        [
            "x0: &a0 [lol]",
            *(f"x{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, depth)),
            f"input: *a{depth - 1}",
        ]
    )
)
merges = st.integers(2, 30).map(
    lambda depth: "\n".join(
        ["x0: &a0 {k: v}", *(f"x{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, depth))]
    )
)
job_files = st.one_of(
    st.lists(settings(), max_size=2).map("\n".join), bombs, merges, scalars, st.text(max_size=30)
).map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=40)
flags = st.just([]) | st.lists(st.tuples(names, scalars).map("=".join) | scalars, max_size=2)
