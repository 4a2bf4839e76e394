"""The folder to name as `custom_pipeline` of diffusers; it ships with the package, and a Hub repository can hold it."""
