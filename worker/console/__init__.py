"""The live page, `synapse-worker console`: what runs, waits and fails, and what to do about it."""
