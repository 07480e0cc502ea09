"""Counting the words of a prompt: only as far as the server's own count."""

from hypothesis import given
from hypothesis import strategies as st

from llm_effects.policies.complete import has_more_words

TEXTS = st.lists(st.text(st.sampled_from("aö_ -\n"), max_size=40).map(lambda text: text * 250), max_size=3)


@given(TEXTS, st.integers(-3, 3))
def test_words_are_counted_exactly_across_pieces(texts: list[str], more: int) -> None:
    words = sum(len("".join(each if each.isalnum() or each == "_" else " " for each in text).split()) for text in texts)
    limit = max(0, words + more)
    assert has_more_words(texts, limit) is (words > limit)


def test_the_rest_of_a_long_prompt_is_not_counted() -> None:
    class Text(str):
        __slots__ = ()

        def __len__(self) -> int:
            return 10**9  # a billion characters would take half a minute

    assert has_more_words([Text("word " * 1000)], 500)
