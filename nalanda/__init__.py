"""Nalanda: raw text to an evaluated, served language model, in one tool."""

__version__ = "0.1.0"
