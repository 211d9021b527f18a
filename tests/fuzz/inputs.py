"""Inputs as people may write them, and the names that a bucket may hold."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.fuzz.configs import SECRET_URIS

PIECES = (
    "s3://b/", "s3://b", "s3:/", "file:///d/", "file://host/d/", "/d/", "./", "../", "{0..9}", "{0..99999999}",
    "{a,b}", "{a,{b,c}}",
    "{000..010}", "{9..0..3}", "{0..5..0}", "{,}", "{", "}", "{}", "{a..z}", "{z..a..2}", "{0..999}" * 3,
    "{a,b}" * 30,
    "x{" + "{a,b}" * 30 + ",c}", "{" * 3000 + "a,b" + "}" * 3000, "{0" + "0" * 5000 + "1..9}", "*", "**", "**/",
    "?", "[a-z]", "[!a]",
    "[z-a]", "[", "]", "[]", "[^a]", "\\", "\\{", "*a" * 30, "a.tar", ".tar", "a", ",", "..", "//", "@", "#", "\0",
    "\n", " ", "\udcff", "é",
    "~", "$HOME", "%2e%2e", "?versionId=1", "pipe:", "http://h/", "hf://a/b", "calibrated:", "d" * 5000,
)  # fmt: skip
given_inputs = st.one_of(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("".join),
    st.sampled_from(SECRET_URIS),
    st.builds("".join, st.tuples(st.sampled_from(SECRET_URIS), st.sampled_from(PIECES))),
    st.text(max_size=20),
)
object_names = st.lists(
    st.sampled_from(
        ["a.tar", "d/b.tar", ".h.tar", "a" * 1000, "-" * 1000 + ".tar", "\udcff.tar", "\n.tar", "d//a.tar", "../a.tar"]
    ),
    max_size=5,
)
list_files = st.one_of(
    st.lists(st.sampled_from(PIECES + SECRET_URIS), max_size=5).map(
        lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass")
    ),
    st.binary(max_size=40),
    st.just(b"x\n" * 5000),
)
