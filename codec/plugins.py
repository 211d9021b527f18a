"""Codecs of installed packages, which offer them as entry points of the group `voxmill.codecs`.

A config names such a codec and cannot name code: what `plugin:NAME` imports was chosen by whoever installed the
package. A form like `module:function` would let any job file run any module that lies on the path.
"""

from __future__ import annotations

from importlib.metadata import entry_points

from codec.base import CodecError, CodecLoader

PREFIX = "plugin:"
GROUP = "voxmill.codecs"


def find_plugin(name: str) -> CodecLoader:
    """The codec that an installed package offers by this name: its entry point is called without arguments.

    Raises `CodecError` when none offers it, or two do, or importing or calling it fails.
    """
    offers = entry_points(group=GROUP)
    found = sorted(offers.select(name=name), key=lambda offer: offer.value)
    if len({offer.value for offer in found}) != 1:
        known = ", ".join(sorted(f"{PREFIX}{offer}" for offer in offers.names)) or "none"
        what = f"{len(found)} packages offer it" if found else "no installed package offers it"
        raise CodecError(f"found codec {PREFIX}{name}, but {what}; offered here (entry points {GROUP!r}): {known}")
    try:
        loader: CodecLoader = found[0].load()()
    except Exception as error:  # a stranger's module: anything may come
        raise CodecError(
            f"codec {PREFIX}{name} ({found[0].value}) cannot be made: {type(error).__name__}: {error}"
        ) from error
    missing = [method for method in ("info", "load") if not callable(getattr(loader, method, None))]
    if missing:
        raise CodecError(
            f"codec {PREFIX}{name} ({found[0].value}) gives a {type(loader).__name__} without "
            f"{' and '.join(missing)}; see codec.base.CodecLoader"
        )
    return loader
