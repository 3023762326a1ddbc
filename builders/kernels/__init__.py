"""Kernels for CUDA devices: launchers and tuning candidates as plain data, Triton sources beside them.

`*_kernel.py` import Triton and are read by the compiler alone; everything else is fit for loading an engine.
"""
