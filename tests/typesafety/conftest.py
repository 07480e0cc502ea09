"""The files for pyright contain deliberate mistakes: they are checked, never imported."""

collect_ignore_glob = ["pyright_*.py"]
