"""Triton's interpreter, with fixes: what interpreted_triton.py imports before it runs kernels."""

from __future__ import annotations

import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpretedFunction, InterpreterBuilder

product, launch = InterpreterBuilder.create_dot, GridExecutor.__call__
prepared: set[str] = set()  # modules whose language is the interpreter's, for as long as a launch takes


def create_dot(self, a, b, *rest):
    """The interpreter keeps bfloat16 as 16-bit integers, and multiplies matrices of it as such."""
    a, b = (self.cast_impl(v, tl.float32) if v.dtype.scalar == tl.bfloat16 else v for v in (a, b))
    return product(self, a, b, *rest)


def run(self, *args, **kwargs):
    prepared.clear()
    return launch(self, *args, **kwargs)


def call(self, *args, **kwargs):
    """A function that a kernel calls. The interpreter prepares the whole language for each call, in half of
    its time: here for the first from each module."""
    if self.fn.__module__ not in prepared:
        interpreter._patch_lang(self.fn)
        prepared.add(self.fn.__module__)
    return self.rewrite()(*args, **kwargs)


InterpreterBuilder.create_dot = create_dot
GridExecutor.__call__ = run
InterpretedFunction.__call__ = call
