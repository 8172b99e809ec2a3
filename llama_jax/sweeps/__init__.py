"""Sweeps: experiments of one file, each trained once, by machines that share a directory."""
