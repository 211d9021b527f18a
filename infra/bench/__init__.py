"""Benchmarks: one module each, run by `voxmill bench NAME`; every figure is a ratio measured within one run.

A module has `add_flags(parser)` and `bench(arguments) -> BenchReport`.
"""

BENCHES = {
    "codec": "encoding on one device: share of its matrix product, speed over the plain way, agreement of precisions",
    "streaming": "streams of tokens and audio: latency, real-time factor, agreement of semantic ids by look-ahead",
    "padding": "padded over real seconds of the batches that a run plans",
    "feed": "reading, decoding and writing around a codec of no cost, over the bare libraries",
    "pipeline": "how busy a run keeps a codec of set cost, with 1 and 4 replicas",
    "rivals": "the same work by Ray Data, and by webdataset with a torch DataLoader",
    "s3": "shard bytes a second over plain GETs, and requests a shard",
    "memory": "peak memory of a replica on a large shard over a small one",
    "driver": "processor time of the driver a shard, at 100,000 shards",
    "resume": "the start of a run on 1,000,000 committed shards",
    "tail": "the end of a run with shards of many sizes",
    "start": "`voxmill --help`, and `voxmill plan` of 10,000 shards",
}
