"""Scaling laws of neural force fields, as a pipeline.

Data flows one way: config.yaml -> cell spec -> curve.parquet -> frontier and fits -> figures -> report.html.
Units are eV, Angstrom and eV/Angstrom; a value that is divided by sigma is called normalised.
"""

__version__ = "0.1.0"
