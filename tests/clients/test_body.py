"""Bodies: what is decoded is what was meant, in any chunks, and never more than the cap."""

import gzip
import tracemalloc
import zlib
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_effects.clients.transport.body import STEP, Decoder
from llm_effects.clients.transport.faults import TransportFault
from llm_effects.values.errors import LLMError

WAYS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "identity": bytes,
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
}


def bare_deflate(data: bytes) -> bytes:
    engine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return engine.compress(data) + engine.flush()


def decoded(encoding: str, chunks: list[bytes], cap: int = 2**20) -> tuple[bytes, LLMError | None]:
    decoder = Decoder(encoding, cap)
    whole = b"".join(piece for chunk in chunks for piece in decoder.decode(chunk))
    return whole, decoder.finish()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(bounds)]


@given(st.binary(max_size=3000), st.lists(st.integers(min_value=0)), st.sampled_from(sorted(WAYS)))
def test_any_chunks_give_the_same_body(data: bytes, places: list[int], way: str) -> None:
    assert decoded(way, cut(WAYS[way](data), places)) == (data, None)


@pytest.mark.parametrize("size", [0, 1, STEP - 1, STEP, STEP + 1, 3 * STEP, 3 * STEP + 5])
@pytest.mark.parametrize("way", ["gzip", "deflate"])
def test_sizes_around_the_step_are_whole(way: str, size: int) -> None:
    data = bytes(size)
    assert decoded(way, [WAYS[way](data)]) == (data, None)


def test_a_bare_deflate_stream_is_taken_too() -> None:
    assert decoded("deflate", [bare_deflate(b"hello" * 50)]) == (b"hello" * 50, None)


def test_several_gzip_members_are_one_body() -> None:
    assert decoded("gzip", [gzip.compress(b"one ") + gzip.compress(b"two")]) == (b"one two", None)


@given(st.binary(min_size=1, max_size=300), st.integers(min_value=1))
def test_a_cut_compressed_body_is_never_a_success(data: bytes, place: int) -> None:
    packed = gzip.compress(data)
    kept = packed[: 1 + place % (len(packed) - 1)] if len(packed) > 1 else packed
    if kept != packed:
        assert decoded("gzip", [kept])[1] is not None


def test_fault_74_broken_gzip_is_a_network_error() -> None:
    with pytest.raises(TransportFault) as caught:
        decoded("gzip", [b"\x1f\x8b" + b"nothing like it"])
    assert caught.value.error.tag == "NetworkError"
    assert caught.value.__context__ is None


def test_an_encoding_nobody_asked_for_is_malformed() -> None:
    with pytest.raises(TransportFault) as caught:
        decoded("br", [b"x"])
    assert caught.value.error.tag == "MalformedResponse"


def test_an_empty_body_of_any_encoding_is_empty() -> None:
    assert decoded("br", []) == (b"", None)
    assert decoded("gzip", []) == (b"", None)


@pytest.mark.parametrize("way", ["", "gzip", "deflate"])
def test_the_cap_counts_decoded_bytes(way: str) -> None:
    packed = WAYS[way](bytes(1000))
    assert decoded(way, [packed], cap=1000)[0] == bytes(1000)
    with pytest.raises(TransportFault) as caught:
        decoded(way, [packed], cap=999)
    assert caught.value.error.tag == "MalformedResponse"
    assert "999 bytes" in str(caught.value.error)


def test_fault_72_a_gzip_bomb_costs_its_cap_and_a_little() -> None:
    engine = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    bomb = b"".join(engine.compress(bytes(2**20)) for _ in range(200)) + engine.flush()
    cap = 4 * 2**20
    tracemalloc.start()
    with pytest.raises(TransportFault):
        decoded("gzip", [bomb], cap=cap)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < cap + 3 * 2**20
