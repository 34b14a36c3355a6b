"""`ragkit.retrieval.query`: language and embedding of a query are computed once."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from ragkit.embedding.cache import CachedEmbedder
from ragkit.embedding.hashed import HashEmbedder
from ragkit.errors import InputError
from ragkit.retrieval.query import SearchQuery, search_queries
from tests.support.experiments import Counting


def test_a_query_is_a_string() -> None:
    query = SearchQuery("Which k1?", "en")
    assert query == "Which k1?"
    assert query.split() == ["Which", "k1?"]
    assert {query: 1}["Which k1?"] == 1
    assert type(query.text) is str


def test_a_query_is_embedded_once_and_when_needed() -> None:
    embedder = Counting()
    query = SearchQuery("one two", "en", embedder=CachedEmbedder(embedder, False))
    assert embedder.calls == 0
    first = query.vector
    assert np.array_equal(first, HashEmbedder(dimension=64).embed(["one two"], kind="query")[0])
    assert np.array_equal(query.embedded_by(embedder), first), "a cached embedder counts as the same embedder"
    assert embedder.calls == 1


def test_another_embedder_makes_another_vector() -> None:
    one, other = Counting(), Counting(dimension=32)
    query = SearchQuery("one two", embedder=one)
    assert query.vector.shape == (64,)
    assert query.embedded_by(other).shape == (32,)
    assert query.vector.shape == (64,)
    assert (one.calls, other.calls) == (1, 1)


def test_a_given_vector_is_used() -> None:
    vector = np.ones(3, dtype=np.float32)
    assert np.array_equal(SearchQuery("x", "en", vector).vector, vector)


def test_a_query_without_vector_and_embedder_raises() -> None:
    with pytest.raises(InputError, match="no embedder"):
        SearchQuery("x").vector  # noqa: B018


def test_a_batch_is_embedded_in_one_call() -> None:
    embedder = Counting()
    queries = search_queries(["one", "two", "one"], ["en", "fr", "en"], embedder=embedder)
    assert [query.language for query in queries] == ["en", "fr", "en"]
    assert np.array_equal(queries[0].vector, queries[2].vector)
    assert not np.array_equal(queries[0].vector, queries[1].vector)
    assert embedder.calls == 1


def test_a_copy_is_the_same_query_and_a_pickle_has_no_embedder() -> None:
    query = SearchQuery("x", "fr", embedder=HashEmbedder())
    assert copy.deepcopy([query])[0] is query
    loaded = pickle.loads(pickle.dumps(query))
    assert (loaded, loaded.language, loaded.batch.embedder) == ("x", "fr", None)
