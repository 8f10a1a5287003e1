"""The first run on a GPU or a TPU: are the results those of a CPU, and how fast is it?

``python -m experiments.accelerator`` needs no network, and no package but those of the library. It
has two parts; one that needs a package that is missing is skipped and says so. It writes one JSON
file:

* `correctness`: the functions of :mod:`experiments.accelerator.correctness`, computed on the device
  and by a process that uses the CPU. Integers are counted where they differ, floats are compared.
* `speed`: the hot paths and decoding, measured, beside the least time that the count of
  :mod:`experiments.bench.program_count` predicts for such a device.

On a CPU it runs in the shape of an accelerator and at small sizes.
"""
