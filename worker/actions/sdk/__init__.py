"""Runs plugins of the published SDK unchanged, without importing it: their own process has loaded it."""

from worker.actions.sdk.adapter import action_for

__all__ = ["action_for"]
