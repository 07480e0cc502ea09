"""Files for pyright hold mistakes on purpose: they are read, never imported."""

collect_ignore_glob = ["pyright_*.py"]
