"""The torch engine on CUDA devices: fused programs, a kernel chosen for every place and size, CUDA graphs."""
