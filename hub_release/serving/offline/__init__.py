"""Offline inference: the emotions of files of any size, on this machine or on a Ray cluster."""
