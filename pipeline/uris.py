"""Which places a setting may name, and what of a URI may be shown."""

from __future__ import annotations

import re

URI_SCHEMES = ("file", "s3", "hf", "calibrated")


def check_uri(uri: str) -> None:
    """Refuse what is no plain path or known scheme, and URIs that carry credentials.

    Raises `ValueError`; `pipe:` and http inputs of WebDataset, and chains of fsspec (`simplecache::http://`), are
    refused here, since they would run programs or reach addresses inside a cluster.
    """
    if uri.startswith("pipe:"):
        raise ValueError("'pipe:' inputs run programs and are refused; give a path or an s3:// URI")
    if not uri.strip():
        raise ValueError("is no place; give a path or an s3:// URI")
    if "\0" in uri:
        raise ValueError("has a NUL character in it, which no name can hold")
    match = re.match(r"([A-Za-z][A-Za-z0-9+.:-]+):(/+)([^/]*)", uri)
    if not match:
        return
    scheme, slashes, authority = match.groups()
    if scheme not in URI_SCHEMES:
        raise ValueError(f"scheme {scheme!r} is not known; allowed: a plain path, {', '.join(URI_SCHEMES)}")
    if slashes not in ("//", "///") or (slashes == "///" and scheme != "file") or not authority:
        raise ValueError(f"is no {scheme}:// URI with a name behind it; is a variable empty?")
    if scheme != "file" and re.search("[@:]", authority):
        raise ValueError(
            f"a {scheme}:// URI has credentials in it; give them by environment or profile (storage.profile)"
        )


def without_credentials(text: str) -> str:
    """The text with what stands before an `@` of a URI blotted out, and the values of a URL's query."""
    blotted = re.sub(r"(:/+|//).*@", r"\1***@", text, flags=re.DOTALL)
    return re.sub(r"([?&][\w.-]+=)[^&\s'\"]+", r"\1***", blotted)
