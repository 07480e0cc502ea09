"""Many requests at once: ``generate_many``, ``generate_each`` and the journals that make a run resumable."""

from llm_effects.batches.journals import Journal as Journal
from llm_effects.batches.journals import file_journal as file_journal
from llm_effects.batches.journals import store_journal as store_journal
from llm_effects.batches.runs import Progress as Progress
from llm_effects.batches.runs import generate_each as generate_each
from llm_effects.batches.runs import generate_many as generate_many
