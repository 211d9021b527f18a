"""LongCat-Audio-Codec: semantic and acoustic tokens of 16 kHz speech, 60 ms a frame (arXiv 2510.15227)."""
