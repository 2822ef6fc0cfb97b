"""One file per screen; each has a `build` function."""
