"""Response bodies: decoded from any chunks, and never beyond the cap."""

import gzip
import tracemalloc
import zlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_effects.clients.transport.connections import TransportFault
from llm_effects.clients.transport.transport import Decoder, _decompress_step  # pyright: ignore[reportPrivateUsage]
from llm_effects.values.caps import STEP_BYTES as STEP
from llm_effects.values.errors import LLMError

ENCODERS: dict[str, Callable[[bytes], bytes]] = {
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


def cut(data: bytes, positions: list[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(position % (len(data) + 1) for position in positions)})
    return [data[start:end] for start, end in pairwise(bounds)]


@given(st.binary(max_size=3000), st.lists(st.integers(min_value=0)), st.sampled_from(sorted(ENCODERS)))
def test_a_body_does_not_depend_on_its_chunks(data: bytes, positions: list[int], encoding: str) -> None:
    assert decoded(encoding, cut(ENCODERS[encoding](data), positions)) == (data, None)


@pytest.mark.parametrize("size", [0, 1, STEP - 1, STEP, STEP + 1, 3 * STEP, 3 * STEP + 5])
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_bodies_around_the_step_size_are_complete(encoding: str, size: int) -> None:
    data = bytes(size)
    assert decoded(encoding, [ENCODERS[encoding](data)]) == (data, None)


def test_a_bare_deflate_stream_is_decoded() -> None:
    assert decoded("deflate", [bare_deflate(b"hello" * 50)]) == (b"hello" * 50, None)


def test_several_gzip_members_are_one_body() -> None:
    assert decoded("gzip", [gzip.compress(b"one ") + gzip.compress(b"two")]) == (b"one two", None)


@given(st.binary(min_size=1, max_size=300), st.integers(min_value=1))
def test_a_truncated_compressed_body_never_succeeds(data: bytes, position: int) -> None:
    compressed = gzip.compress(data)
    truncated = compressed[: 1 + position % (len(compressed) - 1)] if len(compressed) > 1 else compressed
    if truncated != compressed:
        assert decoded("gzip", [truncated])[1] is not None


def test_fault_74_broken_gzip_is_a_network_error() -> None:
    with pytest.raises(TransportFault) as caught:
        decoded("gzip", [b"\x1f\x8b" + b"nothing like it"])
    assert caught.value.error.tag == "NetworkError"
    assert caught.value.__context__ is None


def test_an_unrequested_encoding_is_malformed() -> None:
    with pytest.raises(TransportFault) as caught:
        decoded("br", [b"x"])
    assert caught.value.error.tag == "MalformedResponse"


def test_an_empty_body_of_any_encoding_is_empty() -> None:
    assert decoded("br", []) == (b"", None)
    assert decoded("gzip", []) == (b"", None)


@pytest.mark.parametrize("encoding", ["", "gzip", "deflate"])
def test_the_cap_counts_decoded_bytes(encoding: str) -> None:
    compressed = ENCODERS[encoding](bytes(1000))
    assert decoded(encoding, [compressed], cap=1000)[0] == bytes(1000)
    with pytest.raises(TransportFault) as caught:
        decoded(encoding, [compressed], cap=999)
    assert caught.value.error.tag == "MalformedResponse"
    assert "999 bytes" in str(caught.value.error)


def test_fault_72_a_gzip_bomb_uses_little_more_memory_than_its_cap() -> None:
    engine = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    bomb = b"".join(engine.compress(bytes(2**20)) for _ in range(200)) + engine.flush()
    cap = 4 * 2**20
    tracemalloc.start()
    with pytest.raises(TransportFault):
        decoded("gzip", [bomb], cap=cap)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < cap + 3 * 2**20


def test_many_streams_in_a_row_are_copied_in_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fed = list[int]()

    def step(decompressor: Any, data: bytes) -> Any:
        fed.append(len(data))
        return _decompress_step(decompressor, data)

    monkeypatch.setattr("llm_effects.clients.transport.transport._decompress_step", step)

    def copied(members: int) -> int:
        fed.clear()
        assert list(Decoder("gzip", 100).decode(gzip.compress(b"") * members)) == []
        return sum(fed)

    assert copied(4_000) < 2.3 * copied(2_000)
