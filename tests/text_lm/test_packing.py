"""Packing: a token that is lost, doubled or out of order spoils every comparison of data, without a sign."""

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import CurationError
from text_lm.packing import IGNORE, TokenBatches, TokenStream
from text_lm.tokenizer import open_tokenizer
from text_lm.tokens import TokenStore, tokenise_pool
from training.data import BatchPlan, StepBatches

BYTES = open_tokenizer("bytes")
TEXTS = ["one two three", "", "a", "four five", "  \n", "six seven eight nine ten", "é" * 7, "<|eos|> is plain text"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    folder = tmp_path_factory.mktemp("tokens")
    return tokenise_pool(Dataset.from_dict({"text": TEXTS}), BYTES, folder, batch_size=3, progress=False)


def in_memory(lengths: list[int]) -> TokenStore:
    """Documents of unlike tokens: 1000 * document + place; 256 starts and 257 ends one."""
    pieces = [np.concatenate([[256], 1000 * (i + 1) + np.arange(n), [257]]) for i, n in enumerate(lengths)]
    starts = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])])
    info = {"pool_rows": len(lengths)}
    return TokenStore(np.concatenate(pieces), starts, np.arange(len(lengths)), np.asarray(lengths), info)


def test_store_holds_every_text_and_names_the_empty_rows(store: TokenStore):
    assert store.info["empty_rows"] == [1, 4]
    for place, row in enumerate(store.rows):
        document = store.document(place)
        assert (document[0], document[-1]) == (BYTES.bos, BYTES.eos)
        assert bytes(document[1:-1].astype(np.uint8)).decode() == TEXTS[row]
        assert store.n_bytes[place] == len(TEXTS[row].encode())


def test_subset_rows_become_documents_with_their_copies(store: TokenStore):
    found = store.documents_of(np.array([7, 0, 0, 1, 3]))  # row 1 is empty
    assert store.rows[found].tolist() == [7, 0, 0, 3]
    with pytest.raises(CurationError, match=r"row 8 .* 8 rows"):
        store.documents_of(np.array([8]))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 23), min_size=1, max_size=9),
    length=st.integers(1, 17),
    seed=st.integers(0, 5),
    copies=st.integers(1, 3),
)
def test_every_token_is_a_target_once_an_epoch(lengths: list[int], length: int, seed: int, copies: int):
    store = in_memory(lengths)
    documents = np.repeat(np.arange(len(lengths)), copies)
    stream = TokenStream(store, documents, seed)
    n = -(-2 * stream.epoch_tokens // length) + 1  # two epochs and a bit
    windows = stream.windows(np.arange(n), length)
    # every document's first token but the stream's very first is left out; all else is there, whole epochs alike
    flat = windows.targets.reshape(-1)[: 2 * stream.epoch_tokens - 1]
    seen = flat[flat != IGNORE]
    wanted = np.concatenate([store.document(i)[1:] for i in documents] * 2)
    assert sorted(seen.tolist()) == sorted(wanted.tolist())
    # inputs are the same stream one token earlier
    assert np.array_equal(windows.inputs.reshape(-1)[1:], stream.read(1, n * length)[0])


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9), length=st.integers(2, 20))
def test_segments_never_mix_documents_and_positions_count_within(lengths: list[int], length: int):
    stream = TokenStream(in_memory(lengths), np.arange(len(lengths)), 0)
    windows = stream.windows(np.arange(6), length)
    for tokens, segments, positions in zip(windows.inputs, windows.documents, windows.positions, strict=True):
        for segment in np.unique(segments):
            inside = tokens[segments == segment]
            assert np.array_equal(positions[segments == segment], np.arange(len(inside)))
            text = inside[(inside != 256) & (inside != 257)]
            assert len(np.unique(text // 1000)) <= 1
            assert (inside == 256).sum() <= 1


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9),
    start=st.integers(0, 120),
    n=st.integers(1, 90),
)
def test_targets_are_counted_without_reading(lengths: list[int], start: int, n: int):
    stream = TokenStream(in_memory(lengths), np.arange(len(lengths)), 3)
    firsts = stream.read(start + 1, start + n + 1)[1]
    assert stream.count_targets(start, start + n) == n - firsts.sum()
    everything = stream.read(0, start + n)[1]
    assert stream.count_starts(start + n) == everything.sum()


def test_coverage_counts_what_a_walk_over_the_stream_sees():
    lengths = [3, 9, 1, 5, 20]
    stream = TokenStream(in_memory(lengths), np.array([0, 1, 1, 2, 3, 4]), 1)
    for stop in (1, 17, stream.epoch_tokens, stream.epoch_tokens + 30, 3 * stream.epoch_tokens - 1):
        tokens = stream.read(0, stop + 1)[0]
        started = [int(tokens[i + 1]) // 1000 for i in range(stop) if tokens[i] == 256]
        found = stream.coverage(stop)
        assert found["documents_seen"] == len(started)
        assert found["unique_documents_seen"] == len(set(started))
        assert found["max_repetitions"] == max(started.count(i) for i in started)


def test_epochs_differ_and_repeat_with_the_seed():
    store = in_memory([4] * 30)
    stream, again, other = (TokenStream(store, np.arange(30), seed) for seed in (0, 0, 1))
    first, second = stream.read(0, stream.epoch_tokens)[0], stream.read(stream.epoch_tokens, 2 * stream.epoch_tokens)[0]
    assert not np.array_equal(first, second)
    assert np.array_equal(first, again.read(0, stream.epoch_tokens)[0])
    assert not np.array_equal(first, other.read(0, stream.epoch_tokens)[0])


@pytest.mark.parametrize(("world", "micro"), [(1, 8), (1, 2), (2, 2), (4, 1)])
def test_a_step_is_the_same_batch_for_any_number_of_processes(world: int, micro: int):
    batches = TokenBatches(TokenStream(in_memory([11] * 40), np.arange(40), 0), 8, 16)
    whole = next(iter(StepBatches(batches, BatchPlan(8, 8), 5, 6)))
    parts = [part for rank in range(world) for part in StepBatches(batches, BatchPlan(8, micro, rank, world), 5, 6)]
    rows = sorted(row.tolist() for part in parts for row in part["inputs"])
    assert rows == sorted(whole["inputs"].tolist())
    assert {int(part["n_targets"]) for part in parts} == {int((whole["targets"] != IGNORE).sum())}


def test_small_subsets_are_refused():
    stream = TokenStream(in_memory([7] * 3), np.arange(3), 2)
    with pytest.raises(CurationError, match="27 tokens, fewer than one batch of 4 x 8"):
        TokenBatches(stream, 4, 8)
    with pytest.raises(CurationError, match="no document"):
        TokenStream(stream.store, np.array([], np.int64), 0)


def test_store_of_another_tokeniser_or_pool_or_size_is_refused(tmp_path: Path):
    pool = Dataset.from_dict({"text": TEXTS})
    tokenise_pool(pool, BYTES, tmp_path, progress=False)
    other = type(BYTES)(**{**vars(BYTES), "name": "other", "fingerprint": "0" * 32})
    with pytest.raises(CurationError, match="tokenised by 'bytes'"):
        TokenStore.open(tmp_path, other)
    with pytest.raises(CurationError, match="another pool fingerprint"):
        tokenise_pool(Dataset.from_dict({"text": TEXTS[::-1]}), BYTES, tmp_path, progress=False)
    (tmp_path / "tokens.bin").write_bytes(b"12345")
    with pytest.raises(CurationError, match="tokenise again"):
        TokenStore.open(tmp_path, BYTES)


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ({"body": ["x"]}, "no column 'text'; it has body"),
        ({"text": ["x", "\n"] * 2 + [""], "n": [1] * 5}, None),
        ({"text": [" ", None]}, "none of the 2 rows has text"),
        ({"text": [1, 2]}, "holds .*int64.*, not text"),
    ],
)
def test_pools_without_text(tmp_path: Path, pool: dict, message: str | None):
    if message is None:
        assert len(tokenise_pool(Dataset.from_dict(pool), BYTES, tmp_path, progress=False)) == 2
    else:
        with pytest.raises(CurationError, match=message):
            tokenise_pool(Dataset.from_dict(pool), BYTES, tmp_path, progress=False)
