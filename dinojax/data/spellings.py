"""What values in data sets mean: one that is written in two ways, none at all, and which class is the normal one."""

import re
import unicodedata
from collections.abc import Mapping, Sequence

from dinojax.errors import RunError

MISSING = {
    *("nan", "NaN", "NAN", "None", "NULL", "Null", "null", "NA", "N/A", "n/a", "#N/A", "<NA>", "?", "-", "-1", "-1.0"),
}
"""What programs write for a value that is not known; a class of its own would be trained on it."""
_NORMAL = {
    *("normal", "normals", "healthy", "control", "controls", "benign", "negative", "neg"),
    *("no", "non", "not", "none", "without", "notumor", "nofinding", "unaffected"),
}
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")


def meaning(value: str) -> str:
    """What is the same for all ways to write a value: numbers, upper and lower case, spaces, and Unicode forms.

    >>> meaning("007") == meaning("7.0"), meaning("No tumor ") == meaning("no_tumor"), meaning("1+") == meaning("1-")
    (True, True, False)
    """
    text = unicodedata.normalize("NFKC", value).strip()
    if _NUMBER.fullmatch(text):
        whole, _, part = text.partition(".")
        part = part.rstrip("0")
        return f"{int(whole)}.{part}" if part else str(int(whole))
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", text.replace("_", " ")).casefold()


def check_values(values: Mapping[str, str], what: str) -> None:
    """Refuses values that stand for none, and two spellings of one.

    Args:
      values: the distinct ones, with where each stands.
      what: such as 'label'.

    Raises:
      RunError: names the value or both spellings, and where they stand.
    """
    for value, where in values.items():
        if value.strip() in MISSING:
            raise RunError(
                f"{where}: {what} {value!r} reads like a missing value; "
                f"leave these images out, or give the {what} another name"
            )
    before: dict[str, str] = {}
    for value, where in values.items():
        if (other := before.setdefault(meaning(value), value)) != value:
            raise RunError(
                f"{what} {value!r} ({where}) and {other!r} ({values[other]}) look like two spellings of one; "
                "write both the same way"
            )


def in_order(classes: Sequence[str]) -> list[str]:
    """Sorted; by value where all are numbers.

    >>> in_order(["10", "9"]), in_order(["b", "a"])
    (['9', '10'], ['a', 'b'])
    """
    if all(_NUMBER.fullmatch(name) for name in classes):
        return sorted(classes, key=lambda name: (float(name), name))
    return sorted(classes)


def says_normal(name: str) -> bool:
    """Whether a class is by its name one without findings.

    >>> [says_normal(name) for name in ("Normal", "no_tumor", "non-covid", "abnormal", "nodule", "1")]
    [True, True, True, False, False, False]
    """
    return not _NORMAL.isdisjoint(re.split(r"[\W_]+", name.casefold()))
