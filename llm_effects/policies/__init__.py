"""The layers of the onion, one file each; ``layered`` puts them together."""

from functools import reduce

from llm_effects.effects.effect import Generate, Policy


def layered(innermost: Generate, *policies: Policy) -> Generate:
    """Wrap a ``Generate`` in layers, from the inside out.

    >>> from llm_effects.effects.effect import succeed
    >>> layered(lambda call: succeed(call.model)) is not None
    True
    """
    return reduce(lambda inner, policy: policy(inner), policies, innermost)
