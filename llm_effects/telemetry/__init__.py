"""Telemetry: OpenTelemetry traces and metrics by the GenAI conventions, and log records."""
