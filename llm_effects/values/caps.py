"""The limits on whatever a server or a file says: each is checked before the value is used, and named in its error.

An answer within them is decoded in time that grows with its length; an answer beyond them is an error value.
"""

from __future__ import annotations

from typing import Final

# What a server suggests.

HINT_CHARACTERS: Final = 64
"""Longest header that suggests a pause or reports a rate limit, in characters; a longer one is ignored."""

PAUSE_S: Final = 86_400.0
"""Longest pause that a server can ask for, in seconds: a day; a longer one counts as this."""

MESSAGE_CHARACTERS: Final = 500
"""Most characters of a server's message that are shown."""

NAME_CHARACTERS: Final = 200
"""Most characters of a server's name or id that are shown."""

ERROR_CHARACTERS: Final = 4096
"""Most characters of an error answer that are read."""

HEADER_BYTES: Final = 32 * 2**10
"""Longest header line of an answer, in bytes."""

HEADERS: Final = 256
"""Most header lines of an answer."""

# The size of an answer, after decompression.

ANSWER_BYTES: Final = 32 * 2**20
"""Largest answer that is read whole, in bytes."""

STREAM_BYTES: Final = 64 * 2**20
"""Largest stream, in bytes of all its events."""

BATCH_BYTES: Final = 4 * 2**30
"""Largest file of results of a batch, in bytes: it is read line by line."""

CONTENT_CHARACTERS: Final = 8 * 2**20
"""Most characters of text, reasoning and arguments in one stream."""

STREAM_EVENTS: Final = 2**18
"""Most events with content in one stream: each is kept for those that share the call."""

EVENT_BYTES: Final = 2**20
"""Largest event of a stream, in bytes."""

PREAMBLE_BYTES: Final = 4096
"""Most blank bytes before a stream."""

STEP_BYTES: Final = 64 * 2**10
"""Bytes decompressed at once, and the longest answer decoded in the event loop: a longer one goes to a thread."""

STEP_EVENT_BYTES: Final = 8 * 2**10
"""Bytes of a stream parsed at once: they may hold a thousand events."""

STEP_ITEMS: Final = 64
"""Chunks or events handled at once; other tasks run between two steps, also if more are already there."""

# The contents of an answer.

JSON_VALUES: Final = 100_000
"""Most values in one JSON text: numbers, texts, lists and objects together."""

DIMENSIONS: Final = 16_384
"""Most numbers of one vector; an answer with vectors may have so many values more for each text."""

NESTING: Final = 100
"""Most levels of lists and objects in one JSON text."""

INTEGER_BITS: Final = 1023
"""Largest integer of JSON, in bits: larger ones have no nearest float, the only number type of most readers."""

COUNT: Final = 2**53
"""Largest count, index or number of tokens; readers of JSON agree on integers up to here."""

TOOL_CALLS: Final = 128
"""Most tool calls of one answer; ``ModelConfig.max_tool_calls`` changes it."""

NAME_CHECKS: Final = 64
"""How often a repeated name lets the arguments so far be parsed, to see whether another tool call starts."""

PARTS: Final = 4096
"""Most parts of one answer: texts, pieces of reasoning, tool calls."""

CITATIONS: Final = 1024
"""Most citations of one answer; the rest is dropped, with a warning."""

EXCERPTS: Final = 20
"""Most excerpts of an answer that are tried as JSON, where the whole is none."""

PROBLEMS: Final = 100
"""Most problems listed of an answer that does not fit its type."""

CHOICES: Final = 50
"""Most choices listed in one problem."""

PROMPT_SLACK_TOKENS: Final = 32_768
"""Tokens that a server may count beyond the bytes sent: its own instructions, and what its own tools found."""

TOKENS: Final = 10_000_000
"""Most plausible tokens of a prompt or an answer, where the model's context window is unknown."""

# Files.

FILE_BYTES: Final = 50 * 2**20
"""Largest file that is read, in bytes: no provider accepts more."""

PICTURE_SEGMENTS: Final = 1024
"""Most segments before the size of a JPEG; with more, its size counts as unknown."""
