"""Ask, stream and hold a conversation in plain Python: an answer or an exception, and nothing to await."""

import sys

import anyio.to_thread
from returns.result import Failure, Result, Success

from llm_effects import LLM, LLMEnv, LLMError, LLMFailure, TextDelta

QUESTION = "The disk of a web server is 97 % full. Name the likely cause in one sentence."


def program(llm: LLM) -> str:
    """Run the example; a call that fails raises ``LLMFailure``."""
    answer = llm.generate(QUESTION, task_type="analysis", max_tokens=40, temperature=0.2)
    print(f"{answer.model}: {answer.content.strip()}\n")

    for event in llm.stream("How do I find the largest files?", max_tokens=40):
        if isinstance(event, TextDelta):
            print(event.text, end="", flush=True)
    print("\n")

    conversation = llm.start_conversation(system="Answer in one short sentence.")
    for message in ("I run web servers.", "What should I watch?"):
        print(f"> {message}\n{llm.converse(conversation.id, message, max_tokens=40).content.strip()}\n")

    total = llm.usage_report().total
    return f"{total.requests} answers for ${total.cost_usd}"


async def main(env: LLMEnv) -> Result[str, LLMError]:
    """Run the example with the models of an environment."""
    try:
        with LLM(env) as llm:
            return Success(await anyio.to_thread.run_sync(program, llm))
    except LLMFailure as failure:
        return Failure(failure.error)


if __name__ == "__main__":
    try:
        print(program(LLM()))
    except LLMFailure as failure:
        sys.exit(str(failure))
