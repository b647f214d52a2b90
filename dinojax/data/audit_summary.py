"""What an audit has found, in numbers."""

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from dinojax.data.audit import KINDS, PLACES, Audit, Pairs


def summary(audit: Audit, pairs: Pairs, table: pd.DataFrame) -> dict[str, Any]:
    """What `audit.json` says: the data sets, the numbers of pairs, and the test images that are no fair test.

    Returns:
      `data`, a list of the sets; `pairs`, {where: {kind: number}}; `labels_differ`, the pairs of identical images that
      have two labels; `leaks`, of each fold of each set its test images with a twin in its other parts; `corpus`, of
      each set its images that may be tested on with a twin in a corpus. Twins are `identical`, or `near` alone.
    """
    counts = Counter(zip(table["where"].tolist(), table["kind"].tolist(), strict=True))
    exact = np.isin(pairs.kind.astype(str), ["file", "pixels"])
    near = pairs.kind.astype(str) == "near"
    data, leaks, corpus = [], [], []
    for number, one in enumerate(audit.sets):
        own = audit.of == number
        data.append(
            {
                **{
                    "name": one.name,
                    "images": len(one.records),
                    "corpus": one.corpus,
                    "patients": None if one.records.patients is None else len(set(one.records.patients)),
                    "folds": len(one.parts),
                },
                "unreadable": sum(bool(own[place]) for place in audit.found.unreadable) + len(one.bad),
                "flat": int((audit.found.flat & own & audit.readable).sum()),
            }
        )
        if one.corpus:
            continue
        for fold, parts in enumerate(one.parts, start=1):
            part = np.full(len(audit.of), "", object)
            part[own] = parts
            tests, others = part == "test", np.isin(part.astype(str), ["train", "val"])
            leaks.append(
                {"data": one.name, "fold": fold, "test": int(tests.sum())} | _twins(pairs, exact, near, tests, others)
            )
        if audit.corpus.any():
            tests = own.copy()
            if len(one.parts):
                tests[own] = (one.parts == "test").any(axis=0)
            corpus.append(
                {"data": one.name, "test": int(tests.sum())} | _twins(pairs, exact, near, tests, audit.corpus)
            )
    return {
        "data": data,
        "pairs": {
            where: {kind: counts[where, kind] for kind in KINDS}
            for where in PLACES
            if any(counts[where, kind] for kind in KINDS)
        },
        "labels_differ": sum(
            kind in ("file", "pixels") and differ == "true"
            for kind, differ in zip(table["kind"].tolist(), table["labels_differ"].tolist(), strict=True)
        ),
        "leaks": leaks,
        "corpus": corpus,
    }


def _twins(pairs: Pairs, exact: np.ndarray, near: np.ndarray, tests: np.ndarray, others: np.ndarray) -> dict[str, int]:
    """How many of the images `tests` (bool [N]) have a twin among `others`: identical, or else near."""

    def having(chosen: np.ndarray) -> set[int]:
        a, b = pairs.a[chosen], pairs.b[chosen]
        return {*a[tests[a] & others[b]].tolist(), *b[tests[b] & others[a]].tolist()}

    identical = having(exact)
    return {"identical": len(identical), "near": len(having(near) - identical)}
