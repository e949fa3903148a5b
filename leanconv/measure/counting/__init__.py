"""Counts of parameters, multiply-adds and bytes, in every named convention."""
