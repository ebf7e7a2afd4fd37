"""The verbs of ``training/run.py``, one per module."""
