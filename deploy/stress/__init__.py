"""Stress: what processes share, used hard by real processes, and checked."""
