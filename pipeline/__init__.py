"""The data plane: from a shard of speech to a committed token shard; no Ray, no terminal."""
