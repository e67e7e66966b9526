"""Editing pictures: other starts, grids and solvers for the one scan, and transforms of a denoiser."""
