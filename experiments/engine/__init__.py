"""The engine: arms x seeds x stages, each result kept on disk under the hash of its inputs; comparison; tracking."""
