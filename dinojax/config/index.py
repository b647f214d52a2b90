"""What `index` can be told."""

import dataclasses

from dinojax.config.bounds import Positive, PositiveInt, check, positional


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """Lists every image below a folder in a manifest that `--data` reads; an interrupted index goes on."""

    folder: str = positional("a folder of images of any kind, with all its subfolders")
    out: str
    """The manifest to write, such as `manifest.csv`; files that cannot be read are listed beside it."""
    pseudonyms: bool = False
    """Lists hashed names in place of paths, which often hold names; the key lies beside the salt."""
    group_regex: str | None = None
    """Takes the patient from the path, for pictures, whose headers tell none: the first group of this expression."""
    salt_file: str | None = None
    """Secret by which ids and paths are hashed; null: `dinojax/salt` in the user's configuration folder, made at the
    first use."""
    max_megapixels: Positive = 200.0
    """Larger images are listed as unreadable."""
    threads: PositiveInt = 8
    """Threads that read files."""

    def __post_init__(self) -> None:
        check(self)
