"""Many requests at once: ``generate_many``, ``generate_each``, batches at providers, and the journals of both."""

from llm_effects.batches.journals import Journal as Journal
from llm_effects.batches.journals import file_journal as file_journal
from llm_effects.batches.journals import store_journal as store_journal
from llm_effects.batches.provider_batches import BatchStatus as BatchStatus
from llm_effects.batches.provider_batches import batch_status as batch_status
from llm_effects.batches.provider_batches import cancel_batch as cancel_batch
from llm_effects.batches.provider_batches import collect_batch as collect_batch
from llm_effects.batches.provider_batches import submit_batch as submit_batch
from llm_effects.batches.runs import Progress as Progress
from llm_effects.batches.runs import Via as Via
from llm_effects.batches.runs import generate_each as generate_each
from llm_effects.batches.runs import generate_many as generate_many
