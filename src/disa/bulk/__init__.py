"""Very many images, drawn by several workers: shards on disk, a driver that hands out chunks, and what is made of them.

**Id**: the place of an image in the inputs of a run. **Chunk**: ids that one worker draws at a time. **Part**: the
images of a chunk, on disk. **Shard**: a thousand ids in a row, on disk in one file. **Crew**: the workers of a run.
"""
