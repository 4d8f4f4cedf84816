"""The audit: an attack on the silo's own DP-SGD by patients who do not exist. Nothing of it leaves."""
