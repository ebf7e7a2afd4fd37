"""A package at work: the emotions of files of any size, and a server for live requests."""
