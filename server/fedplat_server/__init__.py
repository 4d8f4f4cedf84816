"""The aggregation server: enrols silos, drives rounds, keeps the SQL store. Imports no torch."""
