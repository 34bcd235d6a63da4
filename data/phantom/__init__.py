"""Radiographs without patients: procedural chest films whose findings are known, with their reports."""

from medunifier.data.phantom.study import Phantom, PhantomStudy

__all__ = ["Phantom", "PhantomStudy"]
