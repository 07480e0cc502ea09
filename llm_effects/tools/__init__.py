"""Tools: ``tool``, ``Toolkit``, ``run_tools`` and its journal."""
