"""What is told of calls to whoever watches: traces and metrics by the GenAI conventions, and the log."""
