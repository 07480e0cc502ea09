"""The in-process engine: a GGUF model, loaded once a process, that answers llama.cpp's own chat protocol.

The work happens in the model's threads, which are joined at exit: the engine crashes with a dying interpreter. Event
loops run on meanwhile, but for one time: the engine holds the interpreter's lock (GIL) while it loads the model, and
nothing in Python can release it. All threads stand still for that long, so a server loads before it serves (see the
guide to local models).
"""

from collections.abc import Callable
from importlib import import_module
from typing import Final, TypeAlias, TypeVar, final

from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.errors import ConfigurationError, InvalidRequest, LLMError
from llm_effects.exceptions import cause_of
from llm_effects.mailboxes import BEGUN, Admitted, Deliver, Mailbox, delivered, unheard
from llm_effects.providers.targets import Target
from llm_effects.weights import CONTEXT_LENGTH, Importer, Model, Server, Settings, prepared, shared, tried

_Made = TypeVar("_Made")


_Work: TypeAlias = Callable[[Server, str, Mailbox], _Made]


def _answer(server: Server, body: str, mailbox: Mailbox) -> None:
    server.handle_chat_completions(body, mailbox.put)


def _embed(server: Server, body: str, _: Mailbox) -> str:
    return server.handle_embeddings(body)


def _done(work: _Work[_Made], model: Model, body: bytes, mailbox: Mailbox) -> Result[_Made, LLMError]:
    mailbox.put(BEGUN)
    opened = model.load()
    if not is_successful(opened):
        return Failure(opened.failure())
    try:
        return Success(work(opened.unwrap(), body.decode(), mailbox))
    except (ValueError, RuntimeError) as problem:  # by either, the engine refuses a body
        return Failure(InvalidRequest(message=str(problem), cause=cause_of(problem)))


_CLOSED: Final = ConfigurationError(message="the in-process engine is closed: make a new one")


async def _nothing(_: str) -> None: ...


@final
class Engine:
    """The in-process model of one ``Target``, for any number of event loops and threads, also at once."""

    def __init__(self, target: Target, importer: Importer = import_module) -> None:
        config = target.config
        self.target: Target = target
        path = config.model_path or target.endpoint
        self.context_length: int = config.context_length or CONTEXT_LENGTH
        embeds = bool(target.capabilities.embeddings)
        settings = Settings(path, self.context_length, config.slots, config.threads, importer, embeds)
        self._model: Model | None = shared(settings)

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        model = self._model
        return model is not None and model.server is not None

    def check(self) -> Result[None, LLMError]:
        """See, without loading the model, that the engine is installed and the file is one; may block a little."""
        model = self._model
        if model is None:
            return Failure(self._named(_CLOSED))
        return tried(prepared, model.settings).map(lambda _: None).alt(self._named)

    async def run(
        self,
        body: bytes,
        deliver: Deliver,
        admitted: Admitted = unheard,
    ) -> Result[None, LLMError]:
        """Answer one streamed chat completion: each chunk is awaited into ``deliver``, until that gives an error.

        Calls beyond the slots wait their turn, and ``admitted`` is called when it has come. A cancellation, or an
        exception of ``deliver``, comes out at once; the answer ends with its next token, a long prompt within 128.
        """
        return await self._worked(_answer, body, deliver, admitted)

    async def embed(self, body: bytes, admitted: Admitted = unheard) -> Result[str, LLMError]:
        """Give the JSON of the vectors of some texts, or of an error; a cancellation comes out at once.

        What has begun goes on to its end, in its slot.
        """
        return await self._worked(_embed, body, _nothing, admitted)

    async def _worked(
        self, work: _Work[_Made], body: bytes, deliver: Deliver, admitted: Admitted
    ) -> Result[_Made, LLMError]:
        model = self._model
        if model is None:
            return Failure(self._named(_CLOSED))
        mailbox = Mailbox()
        job = model.threads.submit(_done, work, model, body, mailbox)
        job.add_done_callback(lambda _: mailbox.put(None))
        try:
            broken = await delivered(mailbox, deliver, admitted)
        finally:
            mailbox.left = True
            job.cancel()
        return Failure(self._named(broken)) if broken is not None else job.result().alt(self._named)

    def close(self) -> None:
        """Let go of the model: answers under way go on to their end, new ones are refused."""
        self._model = None

    def _named(self, error: LLMError) -> LLMError:
        return evolve(error, model=self.target.name, provider=self.target.preset.name)
