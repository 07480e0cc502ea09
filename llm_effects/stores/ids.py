"""Ids that come from outside, checked before any store sees them."""

from returns.pipeline import is_successful

from llm_effects.errors import LLMError
from llm_effects.exceptions import checked
from llm_effects.turns import check_id


def wrong_id(owner: str | None, **ids: str) -> LLMError | None:
    """Give what is wrong with an owner or with one of the ids, by its name; nobody is an owner too.

    >>> wrong_id(None, turn_id="1")
    >>> wrong_id("", turn_id="1").message
    'owner: must not be blank'
    """
    given = ids if owner is None else {"owner": owner, **ids}
    results = (checked(check_id, name, each) for name, each in given.items())
    return next((result.failure() for result in results if not is_successful(result)), None)
