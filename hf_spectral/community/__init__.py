"""Modules that a repository of the Hub can hold: they name a pipeline's class and import the installed package.

The folder itself may be named as `custom_pipeline` of diffusers.
"""
