"""Speculative decoding: draft models, draft tokens and their verification."""
