"""Machinery of long runs: whole files, resuming, several processes, and tables of results.

Nothing here computes acceptances. The modules serve the runs of other packages:

* :mod:`gls_jax.runs.files`: files that are written whole or not at all, and locks on folders;
* :mod:`gls_jax.runs.resume`: manifests and configuration hashes, which decide whether a run may be
  resumed. A manifest counts the finished rows of memory-mapped files: dumps
  (:mod:`gls_jax.distributions`) and acceptances along them
  (:func:`gls_jax.studies.position_acceptance`);
* :mod:`gls_jax.runs.cluster`: several processes that share the work of one run;
* :mod:`gls_jax.runs.results_grid`: a few numbers for each scheme, pair and list length
  (:func:`gls_jax.studies.run`);
* :mod:`gls_jax.runs.jsonl_results`: one line of JSON per request (`gls-jax generate`).

The tables of the papers are made by the folder `experiments` of a clone, which stores its
unfinished arrays with :mod:`gls_jax.runs.files` alone.
"""
