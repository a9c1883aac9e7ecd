"""The study: what each ingredient of multi-exit training is worth (docs/study.md)."""
