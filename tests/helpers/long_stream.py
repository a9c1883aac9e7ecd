"""Classifies a stream of 15,000 texts and prints by how many MB the last 10,000 made the process grow."""

import itertools
import resource
import sys

from tiny import build, tiny_texts, tiny_tokenizer
from transformers import pipeline

import modeling_romebert  # noqa: F401, registers the task

if __name__ == "__main__":
    texts = tiny_texts(4000, longest=60)
    policy = {"name": "entropy", "threshold": 0.6}
    model = build(exit_policy=policy)
    classify = pipeline("early-exit-classification", model=model, tokenizer=tiny_tokenizer(), window=256)
    peaks = []
    for number, _ in enumerate(classify(itertools.islice(itertools.cycle(texts), 15000)), start=1):
        if number in (5000, 15000):  # by then most numbers of rows have occurred
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    mega = 2**20 if sys.platform == "darwin" else 2**10
    print((peaks[1] - peaks[0]) / mega)
