"""``python -m llm_effects``: the same program as ``llm-effects``."""

from llm_effects.cli import main

if __name__ == "__main__":
    main()
