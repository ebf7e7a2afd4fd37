"""Packages on the Hugging Face Hub: compare, commit, push, pull."""
