"""Vision models of Hugging Face transformers, one file per family. Only this folder knows their attribute names.

A family's file is imported when the first model of that family is passed in.
"""
