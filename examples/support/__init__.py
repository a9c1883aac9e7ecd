"""What the examples and benchmarks share: data, downloads, folders of runs, figures of the documentation."""
