"""From a folder of files to batches: sources → index → buckets → cache → sampler → loader."""
