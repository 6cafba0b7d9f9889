"""The observables of this library, one a file: each is found by `dmft.schema.registry`, in no list."""
