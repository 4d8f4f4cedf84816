"""Reading, checking and splitting what a hospital has on disk. Names of columns may leave the silo, values never."""
