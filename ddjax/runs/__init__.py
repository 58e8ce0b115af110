"""Runs: from settings to results on disk, one module a stage.

``workdir`` holds a run's folder, ``loop`` is the outer loop of all of them,
``scores`` the table that every method ends with.
"""
