"""One verb each of ``training/run.py``."""
