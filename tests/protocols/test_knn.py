"""Neighbours and their votes against loops over images, written out."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from dinojax.data.records import Fold
from dinojax.errors import UsageError
from dinojax.protocols import knn
from dinojax.protocols.study import Unit
from dinojax.protocols.task import Task

RNG = np.random.default_rng(0)
THREE = Task("multi-class", ("a", "b", "c"))


def loop(
    queries: np.ndarray,
    searched: np.ndarray,
    memberships: np.ndarray,
    k: int,
    temperature: float | None,
    apart: np.ndarray | None = None,
) -> np.ndarray:
    """Shares of the votes, neighbour by neighbour; apart: bool [Q, N], what a query may not find."""
    shares = np.zeros((len(queries), memberships.shape[1]))
    for row, query in enumerate(queries):
        similarity = searched @ query / np.linalg.norm(searched, axis=1) / np.linalg.norm(query)
        order = [place for place in np.argsort(-similarity) if apart is None or not apart[row, place]][:k]
        for column in range(memberships.shape[1]):
            voters = [place for place in order if not np.isnan(memberships[place, column])]
            weights = [1.0 if temperature is None else np.exp(similarity[place] / temperature) for place in voters]
            shares[row, column] = np.average(memberships[voters, column], weights=weights)
    return shares


@pytest.mark.parametrize(("k", "temperature"), [(20, 0.07), (7, None), (1, 0.07)])
def test_votes_equal_a_loop(k: int, temperature: float | None) -> None:
    searched, queries, labels = RNG.normal(size=(60, 5)), RNG.normal(size=(9, 5)), np.arange(60) % 3
    memberships = THREE.memberships(labels)
    found = knn.vote(knn.nearest(queries, searched, k), memberships, temperature)
    np.testing.assert_allclose(found, loop(queries, searched, memberships, k, temperature), atol=2e-5)
    np.testing.assert_allclose(found.sum(1), 1)


def test_majority_equals_scikit_learn() -> None:
    searched, queries, labels = RNG.normal(size=(60, 5)), RNG.normal(size=(9, 5)), np.arange(60) % 3
    reference = KNeighborsClassifier(7, metric="cosine", algorithm="brute").fit(searched, labels)
    found = knn.vote(knn.nearest(queries, searched, 7), THREE.memberships(labels), None)
    np.testing.assert_allclose(found, reference.predict_proba(queries), atol=1e-12)


@pytest.mark.parametrize("images", [60, 1030])
def test_a_patients_own_images_are_not_found(images: int) -> None:
    labels, groups = RNG.integers(0, 3, images), RNG.integers(0, images // 3, images)
    features = RNG.normal(size=(images, 5)) + labels[:, None]
    memberships = THREE.memberships(labels)
    neighbours = knn.nearest(features, features, 7, groups, groups)
    assert not (groups[neighbours.places] == groups[:, None]).any()
    expected = loop(features, features, memberships, 7, 0.07, groups[:, None] == groups)
    np.testing.assert_allclose(knn.vote(neighbours, memberships), expected, atol=2e-5)


@pytest.mark.parametrize("temperature", [0.07, None])
def test_fewer_others_than_neighbours(temperature: float | None) -> None:
    labels, groups = np.asarray([0, 0, 1, 1, 2]), np.asarray([0, 0, 0, 1, 1])
    features = RNG.normal(size=(5, 4))
    found = knn.vote(knn.nearest(features, features, 20, groups, groups), THREE.memberships(labels), temperature)
    apart = groups[:, None] == groups
    np.testing.assert_allclose(
        found, loop(features, features, THREE.memberships(labels), 20, temperature, apart), atol=2e-5
    )


def test_who_does_not_know_has_no_vote() -> None:
    searched, queries = RNG.normal(size=(80, 4)), RNG.normal(size=(6, 4))
    labels = RNG.integers(0, 2, (80, 2)).astype(np.float32)
    labels[RNG.random((80, 2)) < 0.4] = np.nan
    found = knn.vote(knn.nearest(queries, searched, 15), labels)
    np.testing.assert_allclose(found, loop(queries, searched, labels, 15, 0.07), atol=2e-5)
    labels[:, 1] = np.nan
    labels[-1, 1] = 1
    far = knn.vote(knn.nearest(searched[:1], searched[:-1], 3), labels)
    assert far[0, 1] == 1  # what all that know say


def test_a_low_temperature_leaves_the_nearest_its_vote() -> None:
    similarities = np.asarray([[0.10, 0.05], [-np.inf, -np.inf]], np.float32)
    memberships = np.asarray([[0, 1], [1, 0], [1, 0]], np.float32)
    found = knn.vote(knn.Neighbours(np.asarray([[0, 1], [0, 1]]), similarities), memberships, 0.001)
    np.testing.assert_allclose(found, [[0, 1], [2 / 3, 1 / 3]], atol=1e-6)


def test_equally_similar_ones_in_the_order_of_the_table() -> None:
    np.testing.assert_array_equal(knn.nearest(np.ones((2, 3)), np.ones((5, 3)), 3).places, [[0, 1, 2]] * 2)


def test_the_protocol_reads_the_training_part_alone() -> None:
    features, labels = RNG.normal(size=(40, 6)), np.arange(40) % 3
    fold = Fold(train=np.arange(20), val=np.arange(20, 30), test=np.arange(30, 40))
    unit = Unit(1, fold, knn.Neighbourhood(5), 0)
    before = knn.protocol(features, labels, THREE, 0.07)(unit)
    expected = loop(features[20:30], features[:20], THREE.memberships(labels[:20]), 5, 0.07)
    np.testing.assert_allclose(before.val, expected, atol=2e-5)
    labels[20:] = 0
    features[30] *= 100
    after = knn.protocol(features, labels, THREE, 0.07)(unit)
    np.testing.assert_array_equal(before.val, after.val)
    np.testing.assert_allclose(before.test, after.test, atol=1e-5)


def test_numbers_of_neighbours_differ() -> None:
    folds = [Fold(np.arange(size), np.arange(2), np.arange(2)) for size in (30, 20)]
    assert [setting.name for setting in knn.make_settings([1, 20], folds)] == ["k1", "k20"]
    with pytest.raises(UsageError, match="must be different numbers"):
        knn.make_settings([5, 5], folds)
    with pytest.raises(UsageError, match="21 neighbours, but a training part has 20 cases only"):
        knn.make_settings([1, 21], folds)
