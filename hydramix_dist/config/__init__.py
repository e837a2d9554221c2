"""Typed settings, their YAML files and overrides."""
