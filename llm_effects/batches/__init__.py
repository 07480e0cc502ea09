"""Many requests at once: ``generate_many``, ``generate_each`` and the journals that make a run resumable."""
