"""Checks that prove a sampler, public as `qbs.validate`."""
