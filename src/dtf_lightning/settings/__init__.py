"""Settings of any product: dataclasses whose fields know unit and meaning, checks, YAML files, tables for the docs."""
