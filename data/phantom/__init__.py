"""Synthetic chest radiographs: procedurally rendered images with known findings, and their reports."""

from medunifier.data.phantom.study import Phantom, PhantomStudy

__all__ = ["Phantom", "PhantomStudy"]
