"""Whether the model that answered is the one that was asked: some servers answer with whatever they have."""

import re
from typing import Final

from llm_effects.providers.drafts import Draft

_DATED: Final = re.compile(r"[-@:]?(\d{4}-?\d{2}-?\d{2}|\d{4}|latest)?", re.IGNORECASE)


def compare_models(draft: Draft) -> None:
    """Warn in the draft where another model answered."""
    asked, served = draft.target.wire_model, draft.served_model
    if asked and served and not same_model(asked, served):
        draft.warnings.append(f"{served!r} answered where {asked!r} was asked")


def same_model(asked: str, served: str) -> bool:
    """Whether the names differ at most by a path, a date or a word for the latest one or for the host.

    >>> same_model("gpt-4.1", "gpt-4.1-2025-04-14"), same_model("gpt-4.1", "gpt-4.1-mini")
    (True, False)
    """
    ours, theirs = (name.lower().rsplit("/", 1)[-1].removesuffix(".gguf") for name in (asked, served))
    ours = (ours if ":" in theirs else ours.partition(":")[0]).removesuffix("-latest")
    return theirs.startswith(ours) and _DATED.fullmatch(theirs[len(ours) :]) is not None
