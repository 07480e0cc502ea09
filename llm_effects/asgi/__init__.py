"""An endpoint that speaks OpenAI's chat completions, for any program that does: an ASGI app over the pipeline.

It needs the extra ``[asgi]`` (Starlette).
"""

from llm_effects.asgi.answers import WARNING_HEADER as WARNING_HEADER
from llm_effects.asgi.answers import ErrorStatus as ErrorStatus
from llm_effects.asgi.answers import status_of as status_of
from llm_effects.asgi.app import Identify as Identify
from llm_effects.asgi.app import create_app as create_app
from llm_effects.asgi.chat_requests import AUTO as AUTO
from llm_effects.asgi.chat_requests import ChatRequest as ChatRequest
from llm_effects.asgi.chat_requests import model_names as model_names
from llm_effects.asgi.chat_requests import read_chat_request as read_chat_request
