"""The plain face of the library: ``LLM`` and ``AsyncLLM`` return an answer or raise ``LLMFailure``."""

from llm_effects.plain.async_llm import AsyncLLM as AsyncLLM
from llm_effects.plain.fields import LLMFailure as LLMFailure
from llm_effects.plain.fields import RequestFields as RequestFields
from llm_effects.plain.fields import TurnFields as TurnFields
from llm_effects.plain.llm import LLM as LLM
from llm_effects.plain.streams import AsyncEventStream as AsyncEventStream
from llm_effects.plain.streams import AsyncPartialStream as AsyncPartialStream
from llm_effects.plain.streams import EventStream as EventStream
from llm_effects.plain.streams import PartialStream as PartialStream
