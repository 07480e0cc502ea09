"""What a first mistake says: the error's own sentence, well-formed text, and the remedy."""

import pickle

import anyio
import pytest
from returns.future import FutureResult
from returns.maybe import Nothing
from returns.primitives.exceptions import UnwrapFailedError
from returns.result import Failure, Success

from llm_effects import ConfigurationError, LLMError, NetworkError, RequestFailed, describe, fail, run, scripted_env
from llm_effects.values import StorageFailed

REFUSED = NetworkError(model="lm-studio", message="connection refused", phase="refused")


def test_fault_185_unwrapping_a_failure_says_the_sentence_of_its_error() -> None:
    with pytest.raises(UnwrapFailedError) as raised:
        anyio.run(run, fail(REFUSED), scripted_env()).unwrap()
    assert str(raised.value) == "NetworkError (lm-studio): connection refused"
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_fault_185_unwrapping_the_failure_of_a_future_says_the_sentence_too() -> None:
    async def main() -> None:
        (await FutureResult.from_failure(REFUSED)).unwrap()

    with pytest.raises(UnwrapFailedError, match=r"^NetworkError \(lm-studio\): connection refused$"):
        anyio.run(main)


def test_fault_185_other_failures_keep_their_message() -> None:
    with pytest.raises(UnwrapFailedError, match=r"^$"):
        Failure("a text").unwrap()
    with pytest.raises(UnwrapFailedError, match=r"^$"):
        Success(1).failure()
    with pytest.raises(UnwrapFailedError, match=r"^$"):
        Nothing.unwrap()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConfigurationError(message="The file has 1 problem:\nname: blank"), "The file has 1 problem: name: blank"),
        (ConfigurationError(message="It has 2 problems:\na: blank\nb: blank"), "It has 2 problems: a: blank; b: blank"),
        (ConfigurationError(message="one\n\n  two \n"), "one; two"),
        (StorageFailed(operation="read"), "read failed"),
        (RequestFailed(errors=(REFUSED, REFUSED)), "NetworkError (lm-studio): connection refused"),
    ],
)
def test_fault_185_a_description_is_well_formed(error: LLMError, message: str) -> None:
    assert describe(error) == f"{error.tag}: {message}"
