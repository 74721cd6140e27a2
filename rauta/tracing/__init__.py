"""Requests that are traced: which ones, what is told of them, and spans for a collector."""
